// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import (
	"math"
	"math/rand/v2"
	"testing"
)

const hourNs = uint64(3600e9)

// scoreOf returns the score of a flag with t² that many octaves above the square of the threshold.
func scoreOf(octaves float64) Score {
	whole := math.Floor(octaves)
	return Score{left: uint64(math.Exp2(62 + octaves - whole)), right: 1 << 62, shift: -int(whole)}
}

// flows sends flags to the record of one flow and counts them by token.
type flows struct {
	p      Params
	record FlowRecord
	n      uint64 // samples of a baseline that is never halved
	nowNs  uint64
	tokens [NoTokenLeft + 1]int
}

func newFlow(alpha float64) *flows {
	p := defaults
	p.Calibrate = alpha
	return &flows{p: p, n: p.MinSamples, nowNs: 1e12, record: NewFlowRecord(1e12)}
}

// flagAt flags a packet that is the last of n samples. The baseline does not restart.
func (f *flows) flagAt(n uint64, flag Flagged) Token {
	token, _ := f.p.Flag(&f.record, &State{N: n}, flag)
	f.record.N = uint32(n)
	return token
}

// flag sends judged packets, the last of which is flagged, and returns its token.
func (f *flows) flag(judged uint64, octaves float64, isLate bool) Token {
	f.n += judged
	token := f.flagAt(f.n, Flagged{Score: scoreOf(octaves), IsLate: isLate, Samples: f.n - 1, NowNs: f.nowNs})
	if token <= TokenUnearned {
		f.p.Spend(&f.record, token, f.nowNs)
	}
	f.tokens[token]++
	return token
}

// 2^cut is approximated to within 6.2 % of t², and a higher score never falls below a cut that a
// lower one reaches.
func TestScoresReachTheirCuts(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300_000 {
		left, right := 1<<62|r.Uint64()>>1, 1<<62|r.Uint64()>>1
		s := Score{left: left, right: right, shift: r.IntN(80) - 70}
		exact := math.Log2(float64(left)) - math.Log2(float64(right)) - float64(s.shift)
		cut := max(exact+0.5*r.Float64()-0.25, 0)
		got := s.isAtLeast(uint64(cut * oneToken))
		if exact > cut+0.0861 && !got || exact < cut-1e-6 && got {
			t.Fatalf("%+v is %v octaves high: reaches %v is %v", s, exact, cut, got)
		}
		s.left |= s.left >> 1
		if got && !s.isAtLeast(uint64(cut*oneToken)) {
			t.Fatalf("%+v is higher, but does not reach %v", s, cut)
		}
	}
}

// A flow has eight events at once for any flags, and eight more in each hour.
func TestUnearnedTokens(t *testing.T) {
	f := newFlow(1e-6)
	f.p.Calibrate = 1e-6 // earns nothing
	for i := range 100 {
		want := TokenUnearned
		if i >= mostTokens {
			want = NoTokenLeft
		}
		if got := f.flag(1, 0, true); got != want {
			t.Fatalf("flag %d: got %d, want %d", i, got, want)
		}
		f.record.Cuts = [2]uint64{}
	}
	for hour := range 5 {
		f.tokens = [NoTokenLeft + 1]int{}
		for range 3600 {
			f.nowNs += hourNs / 3600
			f.flag(1, 0, true)
		}
		if f.tokens[TokenUnearned] != mostTokens {
			t.Errorf("hour %d: %d events, want %d", hour, f.tokens[TokenUnearned], mostTokens)
		}
	}
	for _, test := range []struct {
		name  string
		hours int
	}{{"an hour of silence", 1}, {"ten hours of silence", 10}, {"the clock was set back", -10}} {
		f.nowNs += uint64(test.hours) * hourNs
		f.tokens = [NoTokenLeft + 1]int{}
		for range 100 {
			f.flag(1, 0, true)
		}
		if f.tokens[TokenUnearned] != mostTokens {
			t.Errorf("after %s: %d events, want %d", test.name, f.tokens[TokenUnearned], mostTokens)
		}
	}
}

// A flow earns tokens with its judged packets, at most eight. The last one is for any flag, the
// others are for flags that are rare.
func TestEarnedTokens(t *testing.T) {
	f := newFlow(1e-3)
	f.record.UnearnedAt = f.nowNs + unearnedIntervalNs // none is left
	if got := f.flag(999, 20, true); got != NoTokenLeft {
		t.Errorf("after 999 packets: got %d", got)
	}
	if got := f.flag(2, 20, true); got != TokenEarned {
		t.Errorf("after 1,001 packets: got %d", got)
	}
	f.flag(1_000_000, 20, true) // raises the cut
	for i := range 2 {
		if got := f.flag(1, 0, true); (got == TokenSurplus) != (i == 0) {
			t.Errorf("common flag %d: got %d with %v tokens left", i, got, float64(f.record.Earned)/oneToken)
		}
	}
	f.flag(2000, 20, true)
	for i := range 8 {
		f.record.Cuts = [2]uint64{}
		if got := f.flag(1, 0, false); (got == TokenEarned) != (i < 7) {
			t.Errorf("rare flag %d: got %d with %v tokens left", i, got, float64(f.record.Earned)/oneToken)
		}
	}
}

// Without calibration every flag is entitled and no token is spent.
func TestNoCalibration(t *testing.T) {
	f := newFlow(0)
	for range 1000 {
		if got := f.flag(1, 0, true); got != TokenEarned {
			t.Fatalf("got %d", got)
		}
	}
	if f.record != (FlowRecord{N: f.record.N, Run: f.record.Run, IsBaseline: true, UnearnedAt: f.record.UnearnedAt}) {
		t.Errorf("tokens were spent: %+v", f.record)
	}
}

// An event that the rate limit refuses costs no token but the surplus one.
func TestRefusedEventsCostNoToken(t *testing.T) {
	f := newFlow(1e-4)
	for range 100 {
		f.n++
		token := f.flagAt(f.n, Flagged{Score: scoreOf(0), Samples: f.n - 1, NowNs: f.nowNs})
		if f.p.Refuse(&f.record, token); token != TokenUnearned {
			t.Fatalf("got %d", token)
		}
	}
	f.n += 1_000_000 // a full bucket
	for i := range 100 {
		f.n++
		token := f.flagAt(f.n, Flagged{Score: scoreOf(30), Samples: f.n - 1, NowNs: f.nowNs})
		if f.p.Refuse(&f.record, token); token != TokenEarned || f.record.Earned < 7*oneToken {
			t.Fatalf("rare flag %d: got %d", i, token)
		}
	}
	f.record.UnearnedAt = f.nowNs + unearnedIntervalNs // none is left
	for i := range 100 {
		f.n++
		token := f.flagAt(f.n, Flagged{Score: scoreOf(0), Samples: f.n - 1, NowNs: f.nowNs})
		if f.p.Refuse(&f.record, token); (token == TokenSurplus) != (i < 2) || f.record.Earned < 6*oneToken {
			t.Fatalf("common flag %d: got %d with %v tokens", i, token, float64(f.record.Earned)/oneToken)
		}
	}
}

// Rare flags are half of the requested share of the packets on each side in the long run, whatever
// the distribution of the scores, and never more events than earned tokens.
func TestRareFlagsAreTheShareThatIsAskedFor(t *testing.T) {
	const packets, alpha = 3_000_000, 1e-3
	for _, test := range []struct {
		name    string
		flags   float64 // share
		octaves func(i uint64, r *rand.Rand) float64
		least   float64 // rare flags on the late side, as a fraction of alpha/2
	}{
		{"an exponential tail", 0.05, func(_ uint64, r *rand.Rand) float64 { return r.ExpFloat64() }, 0.9},
		{"a heavy tail", 0.05, func(_ uint64, r *rand.Rand) float64 { return 5 * r.ExpFloat64() }, 0.9},
		{"all flags alike", 0.05, func(uint64, *rand.Rand) float64 { return 3 }, 0.9},
		{"few flags are all rare", 4e-4, func(_ uint64, r *rand.Rand) float64 { return r.ExpFloat64() }, 0.7},
		{"a level that falls and rises", 0.05, func(i uint64, r *rand.Rand) float64 {
			return []float64{6, 0, 12}[i/(packets/6)%3] + r.ExpFloat64()
		}, 0.5},
		{"scores that rise for ever", 0.05, func(i uint64, _ *rand.Rand) float64 { return 60 * float64(i) / packets }, 0.9},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(3, 4))
			f := newFlow(alpha)
			var last uint64
			rare, earned, measured := 0, 0, 0
			for i := uint64(1); i < packets; i++ {
				if r.Float64() >= test.flags {
					continue
				}
				cut, before := f.record.Cuts[1], f.record.Earned
				token := f.flag(i-last, test.octaves(i, r), true)
				last = i
				if i < packets/10 {
					continue
				}
				if f.record.Cuts[1] != cut {
					rare++
				}
				if token <= TokenSurplus {
					earned++
				}
				if f.record.Earned > mostTokens*oneToken || before > mostTokens*oneToken {
					t.Fatalf("%d tokens", f.record.Earned)
				}
				measured = int(i)
			}
			share := float64(rare) / (float64(measured) - packets/10) / (alpha / 2)
			t.Logf("rare flags are %.2f of what they should be, earned events %.2f of the tokens; %d without a token", share,
				float64(earned)/(0.9*packets*alpha), f.tokens[NoTokenLeft])
			if share < test.least || share > 1.1 && test.name != "scores that rise for ever" {
				t.Errorf("rare flags are %.2f of what they should be, want at least %v", share, test.least)
			}
			if float64(earned) > 0.9*packets*alpha+mostTokens {
				t.Errorf("%d earned events", earned)
			}
			if f.record.Cuts[0] != 0 {
				t.Error("late packets were taken for early ones")
			}
		})
	}
}

// A young baseline raises no cut. Time lowers the cuts by an octave in 2.4 hours, packets by a step
// for each token of their side, and never below the threshold. A cut is a value of t: another
// threshold, or another share, does not change it.
func TestCuts(t *testing.T) {
	f := newFlow(1e-4)
	height := func() float64 {
		level := f.record.Drift + f.nowNs>>timeShift
		return float64(int64(f.record.Cuts[1]-level)) / oneToken
	}
	f.flagAt(f.n+1, Flagged{Score: scoreOf(30), IsLate: true, Samples: youngSamples - 1, NowNs: f.nowNs})
	if f.record.Cuts != [2]uint64{} {
		t.Errorf("a young baseline set the cuts to %v", f.record.Cuts)
	}
	f.n = 10_000
	for range 160 {
		f.flag(1, 30, true)
	}
	if got := height(); math.Abs(got-(4+20)) > 1e-2 { // the threshold of 4 is at 4 octaves
		t.Errorf("after 160 flags: cut at %v octaves, want 24", got)
	}
	f.p.Threshold, f.p.Calibrate = 8, 1e-3
	if f.flag(1, 10, true); math.Abs(height()-24) > 1e-2 {
		t.Errorf("another threshold and share: cut at %v octaves, want 24", height())
	}
	f.nowNs += 1 << 43
	if f.flag(1, 0, true); math.Abs(height()-23) > 1e-2 {
		t.Errorf("after 2.4 hours: cut at %v octaves, want 23", height())
	}
	f.record.N, f.n = uint32(f.n), f.n+160_000
	if f.flag(1, 0, true); math.Abs(height()-13) > 1e-2 {
		t.Errorf("after 80 tokens of a side: cut at %v octaves, want 13", height())
	}
	f.nowNs += 100 * hourNs
	if f.flag(1, 0, true); math.Abs(height()-6.125) > 1e-2 {
		t.Errorf("long after: cut at %v octaves, want a step above the 6 of the threshold", height())
	}
}

// Scores against the first 512 samples of a baseline raise no cut. With a shorter window it is the
// first window.
func TestYoungBaselines(t *testing.T) {
	for _, test := range []struct {
		window, samples uint64
		want            bool
	}{{8192, 511, false}, {8192, 512, true}, {512, 511, false}, {128, 127, false}, {128, 128, true}} {
		f := newFlow(1e-4)
		f.p.Window = test.window
		f.flagAt(f.n+1, Flagged{Score: scoreOf(30), IsLate: true, Samples: test.samples, NowNs: f.nowNs})
		if got := f.record.Cuts[1] != 0; got != test.want {
			t.Errorf("%d samples with a window of %d: the cut was raised: %t", test.samples, test.window, got)
		}
	}
}

// No cut is out of reach: the highest scores that there are raise a cut to at most a step above
// them, and time brings it down again. The flow has events meanwhile.
func TestCutsAreFinite(t *testing.T) {
	p := defaults
	p.Calibrate = 1e-4
	s := State{N: 1 << 24} // the least variance, 1/12
	_, highest := p.ObserveScore(&s, MaxDelta)
	f := newFlow(1e-4)
	f.n = 10_000
	for i := range 100_000 {
		f.n++
		flag := Flagged{Score: highest, IsLate: true, Samples: f.n, NowNs: f.nowNs}
		token := f.flagAt(f.n, flag)
		if token <= TokenUnearned {
			f.p.Spend(&f.record, token, f.nowNs)
			f.tokens[token]++
		}
		cut := float64(f.record.Cuts[1]-f.record.Drift-f.nowNs>>timeShift) / oneToken
		if cut > 66 {
			t.Fatalf("flag %d raised the cut to %v octaves", i, cut)
		}
		f.nowNs += 36e6 // an hour in all
	}
	if got := f.tokens[TokenUnearned]; got < 15 || f.tokens[TokenEarned]+f.tokens[TokenSurplus] < 8 {
		t.Errorf("%d unearned and %d earned events in an hour", got, f.tokens[TokenEarned]+f.tokens[TokenSurplus])
	}
	f.nowNs += uint64(1) << 43 // an octave
	if token := f.flagAt(f.n+20_000, Flagged{Score: highest, IsLate: true, Samples: f.n, NowNs: f.nowNs}); token != TokenEarned {
		t.Errorf("after 2.4 hours: token %d", token)
	}
}

// Judged packets are counted across halvings of the baseline, and from its first judged one on
// after a restart.
func TestJudgedPacketsAreCounted(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	p := defaults
	p.MinSamples, p.Window = 10, 64
	var s State
	var record FlowRecord
	judged := uint32(0)
	for range 200_000 {
		if r.IntN(5000) == 0 {
			s, judged = State{}, 0
			record.Restart()
		}
		before := s.N
		isJudged := p.Observe(&s, r.Uint64N(1000)) != TooFewSamples
		record.CountHalving(before, s.N)
		if isJudged {
			judged++
		}
		if isJudged && r.IntN(300) == 0 {
			if got := p.judged(&record, s.N); got != judged {
				t.Fatalf("got %d, want %d: %+v", got, judged, record)
			}
			p.Flag(&record, &s, Flagged{})
			judged = 0
		}
	}
	for range 2 * 64 * mostHalvings {
		before := s.N
		p.Observe(&s, 5)
		record.CountHalving(before, s.N)
	}
	if got := p.judged(&record, s.N); got < 64*(mostHalvings-1) || got > 64*(mostHalvings+2) {
		t.Errorf("after very many packets: %d", got)
	}
}

// As many halvings are counted as keep the number of judged packets below 2³² with the longest
// window.
func TestHalvingsAreCountedAsFarAsPossible(t *testing.T) {
	p := defaults
	p.Window = MaxWindow
	record := FlowRecord{N: 1000, IsBaseline: true}
	for halvings := range uint64(1000) {
		record.CountHalving(2*p.Window-1, p.Window)
		n := 2*p.Window - 1
		want := min(halvings+1, 253)*p.Window + n - 1000
		if got := uint64(p.judged(&record, n)); got != want {
			t.Fatalf("after %d halvings: %d judged packets, want %d", halvings+1, got, want)
		}
	}
}

func TestShareOfTokens(t *testing.T) {
	for alpha, want := range map[float64]uint32{0: 0, 1e-6: 4295, 1e-4: 429497, 0.1: 429496730} {
		p := defaults
		p.Calibrate = alpha
		if got := p.EarnedShare(); got != want {
			t.Errorf("%v: got %d, want %d", alpha, got, want)
		}
		if err := p.Validate(); err != nil {
			t.Error(err)
		}
	}
	for _, alpha := range []float64{-1e-4, 9e-7, 0.11, math.NaN(), math.Inf(1)} {
		p := defaults
		if p.Calibrate = alpha; p.Validate() == nil {
			t.Errorf("a calibration at %v is accepted", alpha)
		}
	}
}

// Cuts returns the |t| from which on the next flag is rare, whatever has passed since the last one.
func TestCutsAreWhereFlagsBecomeRare(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	f := newFlow(1e-3)
	f.n += youngSamples
	rare := 0
	for range 100_000 {
		judged, isLate := uint64(1+r.IntN(300)), r.IntN(2) == 0
		f.nowNs += uint64(r.ExpFloat64() * 1e10)
		early, late := f.p.Cuts(&f.record, uint32(f.n+judged), false, f.nowNs)
		side, cut := 0, early
		if isLate {
			side, cut = 1, late
		}
		height, octaves := 2*math.Log2(cut/f.p.Threshold), 3*r.ExpFloat64()
		before := f.record.Cuts[side]
		f.flag(judged, octaves, isLate)
		isRare := f.record.Cuts[side] != before
		if isRare {
			rare++
		}
		if height < 0 || math.Abs(octaves-height) > 1e-5 && isRare != (octaves > height) {
			t.Fatalf("a flag %v octaves above the threshold with the cut at %v: rare is %t", octaves, height, isRare)
		}
	}
	if rare < 1000 {
		t.Errorf("%d flags are rare", rare)
	}
}
