// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"
)

// A score is in the bin of its t, or in the neighbouring bin if t is near an edge.
func TestScoresAreInTheBinsOfT(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, domain := range []Domain{Linear, Log2} {
		p := defaults
		p.Domain = domain
		mistaken, flagged := 0, 0
		for range 200_000 {
			n := 100 + r.Uint64N(20_000)
			deviation := math.Exp2(8 + 18*r.Float64())
			s := State{N: n, MeanQ16: (10<<log2Shift + r.Uint64N(10<<log2Shift)) << meanShift}
			s.M2 = Uint128{Lo: uint64(deviation)}.Mul64(uint64(deviation)).Mul64(n - 1)
			delta := r.Uint64N(MaxDelta)
			if domain == Log2 {
				delta = uint64(math.Exp2(31 * r.Float64()))
			}
			score := math.Abs(p.Score(delta, s))
			if score < p.Threshold*1.01 {
				continue
			}
			flagged++
			squared := score * score * (1 + 1/float64(n))
			exact := 16 * math.Log2(squared/16)
			off := float64(p.ScoreOf(&s, delta).Bin()) - min(exact, ScoreBins-1)
			if off > 0.2 || off < -1.2 { // from the lower edge of the bin
				t.Fatalf("%s: |t| = %v is in bin %d, want %v", domain, score, p.ScoreOf(&s, delta).Bin(), exact)
			}
			if off > 0 || off < -1 {
				mistaken++
			}
		}
		if share := float64(mistaken) / float64(flagged); share > 0.2 {
			t.Errorf("%s: %.2f of %d scores are in the bin next to their own", domain, share, flagged)
		}
	}
}

// At the limits of the arithmetic a score has a valid bin: the first for the lowest score, the
// last for scores above all bins.
func TestScoresAtTheLimits(t *testing.T) {
	for _, test := range []struct {
		name      string
		threshold float64
		state     State
		delta     uint64
		want      uint32
	}{
		{"the mean itself, with a threshold of 0", 0, State{N: 100, MeanQ16: 5 << meanShift}, 5, 0},
		{"nothing spreads: the rounding of a nanosecond does", 4, State{N: 8193, MeanQ16: 1000 << meanShift}, 1001, 0},
		{"the longest delta, where nothing spreads", 1, State{N: 1 << 25, M2: Uint128{}}, MaxDelta, ScoreBins - 1},
		{"the longest delta and the widest baseline", 4, State{N: 1 << 25, MeanQ16: 1 << 30 << meanShift, M2: Uint128{Hi: 1 << 22}}, MaxDelta, 0},
		{"two samples that are alike, which spread by a nanosecond", 4, State{N: 2}, 1024, 16 * (20 - 4)},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := Params{Threshold: test.threshold}
			if got := p.ScoreOf(&test.state, test.delta).Bin(); got != test.want {
				t.Errorf("got bin %d, want %d", got, test.want)
			}
		})
	}
}

// scoreIn returns the lowest score of a bin.
func scoreIn(bin uint32) Score { return Score{1, 1, int64(bin) << scoreBinShift} }

// A score far below a cut has a bin below the cut. A score that is not far below has a bin less
// than two octaves below. The shortcut never contradicts the bin.
func TestFarBelowTheCut(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	far := 0
	for range 500_000 {
		s := State{N: 2 + r.Uint64N(1<<25), MeanQ16: r.Uint64N(MaxDelta) << meanShift, M2: Uint128{Lo: r.Uint64() >> r.Uint64N(64)}}
		if r.Uint64N(4) == 0 {
			s.M2.Hi = r.Uint64N(1 << 32)
		}
		score, cut := defaults.ScoreOf(&s, r.Uint64N(MaxDelta)>>r.Uint64N(32)), r.Uint32N(ScoreBins+1)
		bin := score.Bin()
		switch {
		case score.isFarBelow(cut):
			far++
			if bin >= cut {
				t.Fatalf("%+v is in bin %d, and far below the cut %d", score, bin, cut)
			}
		case bin+2*16+1 < cut && bits.Len64(score.right) < 32:
			t.Fatalf("%+v is in bin %d, and not far below the cut %d", score, bin, cut)
		}
	}
	if far < 10_000 {
		t.Errorf("%d scores were far below the cut: too few to tell", far)
	}
}

// check fails the test unless the tails equal the sums of their bins.
func (c *Calibration) check(t *testing.T) {
	t.Helper()
	for side, scores := range c.Scores {
		tail := uint32(0)
		for _, n := range scores[c.Cuts[side]:] {
			tail += n
		}
		if tail != c.Tails[side] {
			t.Fatalf("side %d: the tail from bin %d on is %d, want %d", side, c.Cuts[side], c.Tails[side], tail)
		}
	}
}

// Flags of several kinds come and go. The tails always equal the sums of their bins. In the
// long run, events are the requested fraction of the judged packets, or all flagged packets if
// these are fewer.
func TestEventsAreTheShareThatIsAskedFor(t *testing.T) {
	const packets = 2_000_000
	for _, test := range []struct {
		name  string
		alpha float64
		flags float64 // share
		bin   func(i int, r *rand.Rand) float64
		least float64 // events on the late side, as a fraction of alpha/2
	}{
		{"an exponential tail", 1e-3, 0.05, func(_ int, r *rand.Rand) float64 { return 20 * r.ExpFloat64() }, 0.7},
		{"a heavy tail", 1e-3, 0.05, func(_ int, r *rand.Rand) float64 { return 20 * math.Pow(r.Float64(), -0.7) }, 0.7},
		{"all flags alike are not rare", 1e-3, 0.05, func(int, *rand.Rand) float64 { return 7 }, 0},
		{"all above the last bin are alike", 1e-3, 0.05, func(int, *rand.Rand) float64 { return ScoreBins }, 0},
		{"few flags are all rare", 1e-2, 4e-3, func(_ int, r *rand.Rand) float64 { return 20 * r.ExpFloat64() }, 0.79},
		{"a level that falls and rises", 1e-2, 0.05, func(i int, r *rand.Rand) float64 {
			return []float64{100, 0, 200}[i/(packets/6)%3] + 10*r.ExpFloat64()
		}, 0.4},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := defaults
			p.Calibrate = test.alpha
			r := rand.New(rand.NewPCG(3, 4))
			var c Calibration
			var flagged, events, measured uint64
			for i := range uint64(packets) {
				if r.Float64() >= test.flags {
					continue
				}
				bin := uint32(min(test.bin(int(i), r), ScoreBins-1))
				if p.IsRare(&c, scoreIn(bin), SideLate, i, flagged, i*1e5) && i >= packets/10 {
					events++
				}
				flagged++
				measured = i
				if flagged%1000 == 0 {
					c.check(t)
				}
			}
			c.check(t)
			share := float64(events) / (0.9 * float64(measured)) / (test.alpha / 2)
			t.Logf("events are %.2f of what may be, from bin %d on", share, c.Cuts[SideLate])
			if share < test.least || share > 1.15 {
				t.Errorf("events are %.2f of what may be, want %v to 1.15", share, test.least)
			}
			if c.Tails[SideEarly] != 0 || c.Scores[SideEarly] != [ScoreBins]uint32{} {
				t.Error("late packets were taken for early ones")
			}
		})
	}
}

// Halving keeps the shape of the tails: no tail loses more than half a score.
func TestForgettingKeepsTails(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 100 {
		var c Calibration
		for side := range c.Scores {
			for bin := range c.Scores[side] {
				c.Scores[side][bin] = r.Uint32N(3)
			}
			c.Cuts[side] = r.Uint32N(ScoreBins + 1)
		}
		before := c
		c.forget()
		c.check(t)
		for side := range c.Scores {
			var was, is uint32
			for bin := ScoreBins - 1; bin >= 0; bin-- {
				was += before.Scores[side][bin]
				is += c.Scores[side][bin]
				if is != was/2 {
					t.Fatalf("the tail from bin %d on was %d and is %d", bin, was, is)
				}
			}
		}
	}
}

// Every flag is rare while the tail may not have a whole packet. A calibration of other flags
// or of another threshold starts from zero.
func TestLearning(t *testing.T) {
	p := defaults
	p.Calibrate = 1e-4
	var c Calibration
	for i := range uint64(100) {
		if !p.IsRare(&c, scoreIn(3), SideLate, 100*i, i, 1e6*i) {
			t.Fatalf("after %d packets a flag is not rare", 100*i)
		}
	}
	learnt := c
	if p.IsRare(&c, scoreIn(3), SideLate, 20_001, 100, 1e9) || c.Allowed != 1 {
		t.Errorf("after 20,000 packets the hundredth flag of its kind is rare, and %d are allowed", c.Allowed)
	}
	if !p.IsRare(&c, scoreIn(300), SideLate, 20_002, 101, 1e9) || !p.IsRare(&c, scoreIn(3), SideEarly, 20_003, 102, 1e9) {
		t.Error("the first flag of its kind is not rare")
	}
	for name, change := range map[string]func(c *Calibration, p *Params, flagged *uint64){
		"flags that another program saw": func(_ *Calibration, _ *Params, flagged *uint64) { *flagged++ },
		"another threshold":              func(_ *Calibration, p *Params, _ *uint64) { p.Threshold = 5 },
	} {
		c, p, flagged := learnt, p, uint64(100)
		change(&c, &p, &flagged)
		if !p.IsRare(&c, scoreIn(3), SideLate, 1e6, flagged, 1e10) || c.Forgotten != 1e6 || c.Scores[SideLate][3] != 1 || c.Flagged != flagged+1 {
			t.Errorf("%s: the calibration did not start from zero: forgot %d of a million packets", name, c.Forgotten)
		}
		c.check(t)
	}
}

func TestEventScores(t *testing.T) {
	for _, test := range []struct {
		allowed, cut uint32
		want         float64
	}{{0, 100, 4}, {1, 0, 4}, {1, 32, 8}, {5, 16, 4 * math.Sqrt2}, {5, ScoreBins - 1, 4 * math.Exp2(511.0/32)}, {5, ScoreBins, math.Inf(1)}} {
		if got := defaults.EventScore(test.allowed, test.cut); math.Abs(got/test.want-1) > 1e-12 {
			t.Errorf("bin %d, with %d allowed: got |t| = %v, want %v", test.cut, test.allowed, got, test.want)
		}
	}
}

func TestConstantsOfCalibration(t *testing.T) {
	for alpha, want := range map[float64]struct{ share, twice uint32 }{
		0: {0, 0}, 1e-6: {2147, 1 << 30}, 1e-4: {214748, 1 << 23}, 0.1: {214748365, 1 << 13},
	} {
		p := Params{Calibrate: alpha}
		if p.TailShare() != want.share || p.CalibrationTwice() != want.twice {
			t.Errorf("%v: got %d and %d, want %+v", alpha, p.TailShare(), p.CalibrationTwice(), want)
		}
		if p = defaults; alpha >= 0 {
			p.Calibrate = alpha
			if err := p.Validate(); err != nil {
				t.Error(err)
			}
		}
	}
	for _, alpha := range []float64{-1e-4, 9e-7, 0.11, math.NaN(), math.Inf(1)} {
		p := defaults
		if p.Calibrate = alpha; p.Validate() == nil {
			t.Errorf("a calibration at %v is accepted", alpha)
		}
	}
}
