// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package trial

import (
	"fmt"
	"math"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
	"github.com/xdp-audit/xdp_audit_exporter/internal/testnumber"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

// runs returns the number of runs of a trial. LEAK_RUNS=400 runs all that docs/leak.md speaks of.
func runs(t *testing.T, usual int) int {
	t.Helper()
	return testnumber.Of(t, "LEAK_RUNS", usual)
}

var (
	random = Clients()[0]
	blocks = Clients()[1]
)

// Without a difference the evidence stays low at every pair, whatever the shares of the classes,
// the loss of one, the number of connections and the dependence of the times. The interval has 0.
func TestNoDifference(t *testing.T) {
	n := runs(t, 60)
	for i, c := range Clients() {
		for _, s := range Services() {
			t.Run(c.Name+": "+s.Name, func(t *testing.T) {
				t.Parallel()
				trial := New(c, s, nil)
				strong, ever, invalid, misses, wrong := 0, 0, 0, 0, 0
				for run := range n {
					j := trial.Run(uint64(run), 2000, nil)
					r := j.Report()
					strong += count(r.EvidenceLog10 >= 5)
					ever += count(r.EvidenceLog10 >= math.Log10(20))
					invalid += count(r.Verdict == leak.Invalid)
					wrong += count(r.Verdict == leak.Leak)
					misses += count(r.LowNs > 0 || r.HighNs < 0)
				}
				t.Logf("of %d runs: %d reach 10⁵, %d reach 20, %d intervals miss 0, %d invalid", n, strong, ever, misses, invalid)
				if strong+wrong > 0 || ever > n/20 || misses > n/20 {
					t.Errorf("of %d runs: %d reach 10⁵, %d reach 20, %d intervals miss 0, %d verdicts are leak", n, strong, ever, misses, wrong)
				}
				// Valid data are refused in at most 3 of 10,000 runs.
				if Clients()[i].IsValid() && invalid > n/100 {
					t.Errorf("%d of %d valid runs are refused", invalid, n)
				}
			})
		}
	}
}

func count(is bool) int {
	if is {
		return 1
	}
	return 0
}

// No check refuses valid data: there are 1,000 runs in all.
func TestValidDataAreNotRefused(t *testing.T) {
	n := runs(t, 250)
	for _, c := range Clients() {
		if !c.IsValid() {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			trial := New(c, Services()[0], nil)
			for run := range n {
				if r := trial.Run(uint64(run), 500, nil).Report(); r.Verdict == leak.Invalid {
					t.Errorf("run %d is refused: %s", run, r.Sentence)
				}
			}
		})
	}
}

// Labels in runs of 200 are always refused.
func TestRunsOfLabelsAreRefused(t *testing.T) {
	for _, order := range []leak.Order{leak.Random, leak.Blocks} {
		trial := New(Client{Name: "runs of 200", Order: order, Connections: 1, Run: 200}, Services()[0], nil)
		for run := range 100 {
			if r := trial.Run(uint64(run), 3, nil).Report(); r.Verdict != leak.Invalid {
				t.Errorf("%v, run %d: %v: %s", order, run, r.Verdict, r.Sentence)
			}
		}
	}
}

// The second test finds a difference of the variances alone.
func TestSecondOrderIsFound(t *testing.T) {
	n := runs(t, 10)
	for _, c := range []Client{random, blocks} {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			trial := New(c, Service{"normal", traffic.Constant(200e3, 10e3)}, Wider(200e3, 1.2))
			found := 0
			for run := range n {
				found += count(trial.Run(uint64(run), PairsOf(c.Order, 30_000), IsFound(5)).EvidenceLog10() >= 5)
			}
			t.Logf("found in %d of %d", found, n)
			if 10*found < 9*n {
				t.Errorf("found in %d of %d", found, n)
			}
		})
	}
}

// Y is slower by 1 ms in 3 % of its responses: the verdict is leak, and at no look it is none.
// Where the times move it takes longer. Where they move by more than their spread within the
// responses that quantiles come from, there is no verdict.
func TestSlowerInSomeResponses(t *testing.T) {
	n := runs(t, 20)
	for _, c := range []Client{random, blocks} {
		for _, test := range []struct {
			Service
			least float64
		}{
			{Services()[0], 0.9}, {Services()[1], 0.8}, {Services()[2], 0.9}, {Service{"exponential", traffic.Exponential(50e3)}, 0.9},
			{Service{"moved", Moved(2000, 2e3)}, 0.8}, {Service{"moved late", Moved(5000, 2e3)}, 0.8}, {Service{"rising fast", Rising(50, 2e3)}, 0},
		} {
			t.Run(c.Name+": "+test.Name, func(t *testing.T) {
				t.Parallel()
				trial := New(c, test.Service, Sometimes(0.03, 1e6))
				found, none := 0, 0
				for run := range n {
					j := trial.Run(uint64(run), 3000, func(j *leak.Judge) bool {
						none += count(j.Pairs()%100 == 0 && j.Report().Verdict == leak.None)
						return false
					})
					found += count(j.Report().Verdict == leak.Leak)
				}
				t.Logf("leak in %d of %d, none at %d looks", found, n, none)
				if float64(found) < test.least*float64(n) || none > 0 {
					t.Errorf("leak in %d of %d, none at %d looks", found, n, none)
				}
			})
		}
	}
}

// A constant effect is inside of the interval at the end.
func TestEffectIsInsideTheInterval(t *testing.T) {
	n := runs(t, 100)
	for _, c := range []Client{random, blocks} {
		for _, s := range Noises() {
			for _, effect := range []float64{0.3, 10e3} {
				t.Run(fmt.Sprintf("%s: %s: %v ns", c.Name, s.Name, effect), func(t *testing.T) {
					t.Parallel()
					trial := New(c, s, Longer(effect))
					misses := 0
					for run := range n {
						r := trial.Run(uint64(run), 300, nil).Report()
						misses += count(r.LowNs > effect || r.HighNs < effect)
					}
					t.Logf("missed in %d of %d", misses, n)
					if 20*misses > n {
						t.Errorf("missed in %d of %d", misses, n)
					}
				})
			}
		}
	}
}

// An effect that rounding hides is inside, because half a tick is added.
func TestEffectBelowATick(t *testing.T) {
	for _, c := range []Client{random, blocks} {
		for run := range 20 {
			trial := New(c, Service{"on ticks", traffic.Constant(1000, 0)}, Longer(0.3))
			if r := trial.Run(uint64(run), 2000, nil).Report(); r.LowNs > 0.3 || r.HighNs < 0.3 {
				t.Errorf("0.3 ns is outside of %v to %v", r.LowNs, r.HighNs)
			}
		}
	}
}

// Where the effect moves with time the interval may miss it, and the report says so.
func TestMovingEffect(t *testing.T) {
	n := runs(t, 10)
	for _, c := range []Client{random, blocks} {
		moves, constant := 0, 0
		for run := range n {
			trial := New(c, Service{"normal", traffic.Constant(200e3, 10e3)}, Moving(0.05, 0.05, 0.99)(traffic.Rand(uint64(run), "moving")))
			moves += count(trial.Run(uint64(run), 5000, nil).Report().Drift.EffectMoves)
			trial.Effect = Longer(10e3)
			constant += count(trial.Run(uint64(run), 5000, nil).Report().Drift.EffectMoves)
		}
		if 10*moves < 9*n || 50*constant > n {
			t.Errorf("%s: %d of %d moving effects and %d of %d constant ones are said to move", c.Name, moves, n, constant, n)
		}
	}
}
