// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leak

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// assess feeds pairs whose labels are random, with times by class.
func assess(j *Judge, pairs int, time func(r *rand.Rand, c Class) float64) *Judge {
	r := rand.New(rand.NewPCG(7, 8))
	for j.Pairs() < uint64(pairs) {
		class := Class(r.IntN(2))
		j.Response(Request{Class: class}, uint64(time(r, class)))
	}
	return j
}

func normal(mean, deviation float64) func(*rand.Rand, Class) float64 {
	return func(r *rand.Rand, _ Class) float64 { return mean + deviation*r.NormFloat64() }
}

// slowerBy adds a time to a fraction of the responses of Y.
func slowerBy(ns, fraction float64) func(*rand.Rand, Class) float64 {
	return func(r *rand.Rand, c Class) float64 {
		t := normal(1e5, 2000)(r, c)
		if c == Y && r.Float64() < fraction {
			t += ns
		}
		return t
	}
}

func TestVerdicts(t *testing.T) {
	for _, test := range []struct {
		name   string
		pairs  int
		time   func(*rand.Rand, Class) float64
		want   Verdict
		phrase string
	}{
		{"no pair", 0, normal(1e5, 2000), Waiting, "needs 23 pairs of responses. Pairs so far: 0."},
		{"too few pairs", 22, normal(1e5, 2000), Waiting, "needs 23 pairs of responses. Pairs so far: 22."},
		{"few pairs", 100, normal(1e5, 2000), Inconclusive, "more pairs"},
		{"no difference", 20_000, normal(1e5, 2000), None, "differ by less than 1 µs: at the median"},
		{"a shift below the target", 20_000, slowerBy(300, 1), None, "differ by less than 1 µs"},
		{"a shift above the target", 2000, slowerBy(3000, 1), Leak, "Responses to `fixed` are 3.1"},
		{"a shift above the target, but too little evidence", 30, slowerBy(20_000, 1), Inconclusive, "No verdict yet"},
		{"a shift of the other sign", 2000, func(r *rand.Rand, c Class) float64 { return slowerBy(5000, 1)(r, 1-c) }, Leak, "µs slower than to `random`"},
		{"slower in 3 %", 3000, slowerBy(1e6, 0.03), Leak, "Some responses to `random` are more than 1 µs slower (near percentile 99)"},
		{"faster in 3 %", 3000, func(r *rand.Rand, c Class) float64 { return 2e6 - slowerBy(1e6, 0.03)(r, c) }, Leak, "Some responses to `random` are more than 1 µs faster"},
		{"slower in 3 %, and a large target would hide the shift", 20_000, slowerBy(1e6, 0.03), Leak, "near percentile 99"},
		{"equal times", 20_000, normal(1e5, 0), None, "differ by less than 1 µs"},
		{"at the target", 5000, slowerBy(1000, 1), Inconclusive, "No verdict yet"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, order := range []Order{Random, Observed} {
				want := test.want
				if order == Observed && want == Leak {
					want = Difference
				} else if order == Observed && want == None {
					want = NoDifference
				}
				r := assess(newTestJudge(t, order), test.pairs, test.time).Report()
				if r.Verdict != want || !strings.Contains(r.Sentence, test.phrase) {
					t.Errorf("%v: got %v, want %v: %s", order, r.Verdict, want, r.Sentence)
				}
				if strings.Contains(r.Sentence, "leak") {
					t.Errorf("the sentence speaks of a leak: %s", r.Sentence)
				}
			}
		})
	}
}

// The highest evidence counts: what was found is not forgotten when the difference turns around.
func TestEvidenceIsTheHighest(t *testing.T) {
	j := assess(newTestJudge(t, Random), 300, slowerBy(5000, 1))
	before := j.Report().EvidenceLog10
	r := assess(j, 600, func(r *rand.Rand, c Class) float64 { return slowerBy(5000, 1)(r, 1-c) }).Report()
	if r.EvidenceLog10 < before || before < 5 || r.EvidenceCurrentLog10 > before/2 {
		t.Errorf("got %v at first, then %v and currently %v", before, r.EvidenceLog10, r.EvidenceCurrentLog10)
	}
}

// Where all times exceed the limits, or none does, the classes do not agree at any level: there is
// nothing to compare.
func TestLimitsThatTheTimesHaveLeft(t *testing.T) {
	sorted := make([]uint64, 1000)
	for i := range sorted {
		sorted[i] = 1e6 + uint64(i)
	}
	for _, test := range []struct {
		from uint64
		want bool
	}{{1e6, true}, {2e6, false}, {1e5, false}} {
		l := levels{targetNs: 1000}
		l.fix(sorted)
		r := rand.New(rand.NewPCG(1, 2))
		for range 20_000 {
			l.add(test.from+r.Uint64N(1000), test.from+r.Uint64N(1000))
		}
		if got := l.allAgree(0); got != test.want {
			t.Errorf("times from %d: got %t, want %t", test.from, got, test.want)
		}
		if slower, faster := l.anyDiffers(0); len(slower)+len(faster) > 0 {
			t.Errorf("times from %d: slower at %v, faster at %v", test.from, slower, faster)
		}
	}
}

// The error is divided among all one-sided tests.
func TestLevelsAreCorrectedForTheirNumber(t *testing.T) {
	l := levels{}
	for i := range Quantiles {
		for n := uint64(1); ; n++ {
			l.slower[i], l.faster[i] = exceeding{y: n}, exceeding{x: n}
			slower, faster := l.anyDiffers(0)
			isEnough := logOneSided(float64(n), float64(n)) >= math.Log(20*22)
			if (len(slower) > 0) != isEnough || (len(faster) > 0) != isEnough {
				t.Fatalf("quantile %v, %d pairs: slower at %v, faster at %v", Quantiles[i], n, slower, faster)
			}
			if isEnough {
				break
			}
		}
		l.slower[i], l.faster[i] = exceeding{}, exceeding{}
	}
}

// The pairs that are said to be needed are about those that are.
func TestPairsNeeded(t *testing.T) {
	for _, test := range []struct {
		name string
		time func(*rand.Rand, Class) float64
	}{
		{"no difference", normal(1e5, 10_000)}, {"half the target", func(r *rand.Rand, c Class) float64 { return normal(1e5, 2000)(r, c) + 500*float64(c) }},
		{"twice the target", func(r *rand.Rand, c Class) float64 { return normal(1e5, 10_000)(r, c) + 2000*float64(c) }},
	} {
		for _, pairs := range []int{500, 1500} {
			j := assess(newTestJudge(t, Random), pairs, test.time)
			before := j.Report()
			r := rand.New(rand.NewPCG(9, 9))
			more := uint64(0)
			for ; more < 1e6 && j.find().verdict == Inconclusive; more++ {
				for before := j.Pairs(); j.Pairs() == before; {
					class := Class(r.IntN(2))
					j.Response(Request{Class: class}, uint64(test.time(r, class)))
				}
			}
			if before.PairsNeeded == nil {
				t.Logf("%s, after %d pairs: it is not known how many are needed, since %s; %d are", test.name, pairs, before.PairsUnknown, more)
				continue
			}
			needed := *before.PairsNeeded
			t.Logf("%s, after %d pairs: %d are said to be needed, %d are", test.name, pairs, needed, more)
			if float64(needed) > 8*float64(more)+500 || float64(more) > 8*float64(needed)+500 {
				t.Errorf("%s, after %d pairs: %d are said to be needed, %d are", test.name, pairs, needed, more)
			}
		}
	}
}

// No pairs are needed with a conclusion. If the number is not known, it is missing, and there is a
// reason.
func TestUnknownPairs(t *testing.T) {
	few := func(pairs int, time func(*rand.Rand, Class) float64) func(*Judge) *Judge {
		return func(j *Judge) *Judge { return assess(j, pairs, time) }
	}
	for _, test := range []struct {
		name   string
		run    func(*Judge) *Judge
		want   Verdict
		needed string // -1 if it is not known, ? for any
		reason string
	}{
		{"no pair", few(0, normal(1e5, 2000)), Waiting, "23", ""},
		{"a conclusion", few(20_000, normal(1e5, 2000)), None, "0", ""},
		{"a leak", few(2000, slowerBy(3000, 1)), Leak, "0", ""},
		{"few pairs", few(100, normal(1e5, 10_000)), Inconclusive, "?", ""},
		{"at the target", few(100_000, slowerBy(1000, 1)), Inconclusive, "-1", "too near to the target"},
		{"half the target, and few pairs at the ends", few(500, func(r *rand.Rand, c Class) float64 { return normal(1e5, 2000)(r, c) + 500*float64(c) }), Inconclusive, "-1", "at percentile 1 nothing says yet"},
		{"invalid labels", func(j *Judge) *Judge {
			for i := range 3000 {
				j.Response(Request{Class: Class(i / 200 % 2)}, 1000)
			}
			return j
		}, Invalid, "-1", "a check has failed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := test.run(newTestJudge(t, Random)).Report()
			needed := "-1"
			if r.PairsNeeded != nil {
				needed = strconv.FormatUint(*r.PairsNeeded, 10)
			}
			if r.Verdict != test.want || test.needed != needed && (test.needed != "?" || needed == "-1" || needed == "0") || !strings.Contains(r.PairsUnknown, test.reason) || (r.PairsUnknown != "") != (needed == "-1") {
				t.Errorf("got %v, %s more pairs, %q: %s", r.Verdict, needed, r.PairsUnknown, r.Sentence)
			}
			text, err := json.Marshal(&r)
			if err != nil {
				t.Fatal(err)
			}
			if hasNumber := strings.Contains(string(text), `"pairs_needed":`); hasNumber != (needed != "-1") || strings.Contains(string(text), `"pairs_unknown":`) == hasNumber {
				t.Errorf("got %s", text)
			}
			if r.Verdict == Inconclusive && !strings.Contains(r.Sentence, test.reason) {
				t.Errorf("the sentence lacks the reason: %s", r.Sentence)
			}
		})
	}
}

// No sentence says that something is slower or faster by nothing.
func TestNothingIsSlowerByNothing(t *testing.T) {
	for _, effect := range []float64{0, 0.004, -0.004, 0.4, -0.4} {
		for _, target := range []float64{0, 1000} {
			for verdict := range NumVerdicts {
				r := Report{
					Verdict: verdict, EffectNs: effect, LowNs: -5, HighNs: 5, TargetNs: target, Slower: []float64{0.99}, Faster: []float64{0.01},
					Classes: [2]ClassReport{{Name: "fixed"}, {Name: "random"}}, PairsUnknown: "the evidence does not grow",
				}
				if target == 0 && (verdict == None || verdict == NoDifference) {
					continue // there is no such verdict
				}
				sentence := r.sentence()
				for _, bad := range []string{"by 0 ns", " 0 ns slower", " 0 ns faster", "than 0 ns", "to 0 ns do"} {
					if strings.Contains(sentence, bad) {
						t.Errorf("%v, effect %v, target %v: %s", verdict, effect, target, sentence)
					}
				}
				if isNothing := math.Abs(effect) < 0.005; verdict == Inconclusive && isNothing != strings.Contains(sentence, "as fast as to `random`") {
					t.Errorf("effect %v: %s", effect, sentence)
				}
			}
		}
	}
}

// Labels that are not as configured make the data invalid, and stay so.
func TestChecksOfLabels(t *testing.T) {
	coins := rand.New(rand.NewPCG(1, 2))
	for _, test := range []struct {
		name   string
		order  Order
		label  func(i int) Class // of requests on one connection
		checks []string          // that fail
	}{
		{"random", Random, func(int) Class { return Class(coins.IntN(2)) }, nil},
		{"runs of 200", Random, func(i int) Class { return Class(i / 200 % 2) }, []string{"order", "share", "selection"}},
		{"in turn", Random, func(i int) Class { return Class(i % 2) }, []string{"order"}},
		{"XYYX", Random, func(i int) Class { return Class((i + 1) / 2 % 2) }, []string{"order"}},
		{"blocks instead of random", Random, func() func(int) Class {
			first := X
			return func(i int) Class {
				if i%2 == 1 {
					return 1 - first
				}
				first = Class(coins.IntN(2))
				return first
			}
		}(), []string{"order"}},
		{"shares of 60:40", Random, func(int) Class { return Class(coins.IntN(5) / 3) }, []string{"share", "selection"}},
		{"random instead of blocks", Blocks, func(int) Class { return Class(coins.IntN(2)) }, []string{"order"}},
		{"runs of 200 instead of blocks", Blocks, func(i int) Class { return Class(i / 200 % 2) }, []string{"order"}},
		{"blocks in the same order", Blocks, func(i int) Class { return Class(i % 2) }, []string{"order", "share", "selection"}},
		{"blocks in turn", Blocks, func(i int) Class { return Class((i + 1) / 2 % 2) }, []string{"order"}},
		{"anything observed", Observed, func(i int) Class { return Class(i / 200 % 2) }, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			j := newTestJudge(t, test.order)
			for i := range 3000 {
				j.Response(Request{Class: test.label(i), Number: uint32(i)}, 1000+uint64(i%97))
			}
			r := j.Report()
			var failed []string
			for _, check := range r.Checks {
				if !check.Passes {
					failed = append(failed, check.Name)
				}
			}
			if !slices.Equal(failed, test.checks) || (r.Verdict == Invalid) != (failed != nil) {
				t.Errorf("got %v and the verdict %v, want %v", failed, r.Verdict, test.checks)
			}
			if failed != nil && !strings.Contains(r.Sentence, "cannot be judged") {
				t.Errorf("got %q", r.Sentence)
			}
		})
	}
}

// A fault that begins after a thousand valid blocks is found.
func TestFaultThatBeginsLate(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	v := violations{logE: math.Inf(-1)}
	for range 100_000 {
		v.add(false)
	}
	if v.maxLogE > 0 {
		t.Errorf("valid blocks: ln E = %v", v.maxLogE)
	}
	for range 100 {
		v.add(r.IntN(2) == 0)
	}
	if v.maxLogE < math.Log(4*refusal) {
		t.Errorf("half of 100 blocks are none: ln E = %v", v.maxLogE)
	}
	v = violations{logE: math.Inf(-1)}
	for i := range 100_000 {
		v.add(i%200 == 0)
	}
	if v.maxLogE > math.Log(refusal) {
		t.Errorf("one block in 200 is none: ln E = %v", v.maxLogE)
	}
}

// The e-process of blocks with equal labels is the sum of those that begin at each block.
func TestViolationsAreExact(t *testing.T) {
	outcomes := []bool{false, true, true, false, true}
	v := violations{logE: math.Inf(-1)}
	for n := range outcomes {
		v.add(outcomes[n])
		want := 0.
		for first := range n + 1 {
			product := 1 / float64((first+1)*(first+2))
			for _, isViolation := range outcomes[first : n+1] {
				if isViolation {
					product *= usualViolations / mostViolations
				} else {
					product *= (1 - usualViolations) / (1 - mostViolations)
				}
			}
			want += product
		}
		if math.Abs(v.logE-math.Log(want)) > 1e-12 {
			t.Errorf("after %d: got %v, want %v", n+1, v.logE, math.Log(want))
		}
	}
}

// Loss of one class fails only if the missing pairs could change the verdict.
func TestLoss(t *testing.T) {
	for _, test := range []struct {
		name   string
		lost   [2]float64
		time   func(*rand.Rand, Class) float64
		pairs  int
		passes bool
		want   Verdict
	}{
		{"none, both classes lose alike", [2]float64{0.02, 0.02}, normal(1e5, 2000), 20_000, true, None},
		{"none, one class loses little", [2]float64{0, 0.002}, normal(1e5, 2000), 40_000, true, None},
		{"none, one class loses more than the tail", [2]float64{0, 0.03}, normal(1e5, 2000), 20_000, false, Invalid},
		{"a leak of 3 σ, one class loses some", [2]float64{0, 0.05}, slowerBy(6000, 1), 1000, true, Leak},
		{"a leak of σ/2, one class loses most", [2]float64{0, 0.6}, slowerBy(1500, 1), 20_000, false, Invalid},
		{"a leak in 10 %, one class loses little", [2]float64{0, 0.01}, slowerBy(1e6, 0.1), 4000, true, Leak},
		{"a leak in 10 %, one class loses much", [2]float64{0, 0.3}, slowerBy(1e6, 0.1), 4000, false, Invalid},
		{"no verdict, one class loses some", [2]float64{0, 0.05}, normal(1e5, 10_000), 1000, true, Inconclusive},
	} {
		t.Run(test.name, func(t *testing.T) {
			j := newTestJudge(t, Blocks)
			r := rand.New(rand.NewPCG(1, 2))
			first := X
			for number := uint32(0); j.Pairs() < uint64(test.pairs); number++ {
				class := 1 - first
				if number%2 == 0 {
					class = Class(r.IntN(2))
					first = class
				}
				q := Request{Class: class, Number: number}
				if ns := test.time(r, class); r.Float64() < test.lost[class] {
					j.Exclude(q)
				} else {
					j.Response(q, uint64(ns))
				}
			}
			report := j.Report()
			loss := report.Checks[3]
			if loss.Name != "loss" || loss.Passes != test.passes || report.Verdict != test.want {
				t.Errorf("got %+v and %v, want %v: %s", loss, report.Verdict, test.want, report.Sentence)
			}
		})
	}
}

func TestDurations(t *testing.T) {
	for _, test := range []struct {
		ns   float64
		want string
	}{
		{0, "0 ns"}, {-0.2, "-0.2 ns"}, {0.001, "0 ns"}, {-0.001, "0 ns"}, {7.5, "7.5 ns"}, {123.4, "123 ns"}, {999.6, "1 µs"}, {1000, "1 µs"}, {10_340, "10.3 µs"},
		{-10_340, "-10.3 µs"}, {999_960, "1 ms"}, {1.5e6, "1.5 ms"}, {12e9, "12 s"}, {1e12, "1000 s"},
	} {
		if got := duration(test.ns); got != test.want {
			t.Errorf("%v ns: got %q, want %q", test.ns, got, test.want)
		}
	}
}

func TestCertainty(t *testing.T) {
	for _, test := range []struct {
		log10 float64
		want  string
	}{{5, "1 of 100,000 assessments"}, {5.9, "1 of 100,000 assessments"}, {9, "1 of 1,000,000,000 assessments"}, {300, "1 of 1,000,000,000 assessments"}} {
		r := Report{EvidenceLog10: test.log10, Verdict: Leak}
		if got := r.certainty(); !strings.Contains(got, test.want) {
			t.Errorf("%v: got %q, want %q", test.log10, got, test.want)
		}
	}
}
