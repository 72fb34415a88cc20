// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestLogarithm(t *testing.T) {
	worst := 0.0
	check := func(delta uint64) {
		t.Helper()
		err := math.Abs(math.Ldexp(float64(logarithm(delta)), -log2Shift) - math.Log2(float64(delta)))
		worst = max(worst, err)
		if err > 1.2e-5 {
			t.Fatalf("log2 of %d: off by %.3g octaves", delta, err)
		}
		if delta > 1 && logarithm(delta-1) > logarithm(delta) {
			t.Fatalf("the logarithm falls at %d", delta)
		}
	}
	for delta := uint64(1); delta < 1<<20; delta++ {
		check(delta)
	}
	r := rand.New(rand.NewPCG(1, 1))
	for range 1_000_000 {
		check(1 + r.Uint64N(MaxDelta)>>r.IntN(12))
	}
	for octave := range uint64(32) {
		check(1 << octave)
		if got, want := logarithm(1<<octave), octave<<log2Shift; got != want {
			t.Errorf("log2 of 2^%d: got %d, want %d", octave, got, want)
		}
	}
	if got := logarithm(0); got != logarithm(1) {
		t.Errorf("log2 of 0: got %d, want that of 1", got)
	}
	t.Logf("largest error %.3g octaves", worst)
}

// Deltas that do not spread tolerate rounding to nanoseconds at every level, as in the linear
// domain. Below 3 ns a nanosecond is larger than the derivative of the logarithm says.
func TestConstantTrafficInLog2(t *testing.T) {
	p := Params{Threshold: 4, MinSamples: 100, Window: 8192, Domain: Log2}
	r := rand.New(rand.NewPCG(2, 2))
	levels := []uint64{3, 4, 5, 6, 7, 8, 15, 16, 100, 1000, 100_000, 1_000_000, 1_512_774, 1_512_776, 2_139_000, 100_000_000, MaxDelta - 1}
	for range 20_000 {
		levels = append(levels, 3+uint64(math.Exp2(r.Float64()*30.9)))
	}
	for _, level := range levels {
		var s State
		for range 200 {
			if got := p.Observe(&s, level); got > Judged {
				t.Fatalf("constant %d ns: got decision %d", level, got)
			}
		}
		for _, delta := range []uint64{level - 1, level + 1} {
			copied := s
			if got := p.Observe(&copied, delta); got != Judged {
				t.Fatalf("%d ns after constant %d: got decision %d, score %.2f", delta, level, got, p.Score(delta, s))
			}
		}
		if level < 100 || level > 100_000 {
			continue
		}
		for delta, want := range map[uint64]Decision{level - 2: Early, level + 2: Late} {
			copied := s
			if got := p.Observe(&copied, delta); got != want {
				t.Fatalf("%d ns after constant %d: got decision %d, want %d, score %.2f", delta, level, got, want, p.Score(delta, s))
			}
		}
	}
}

// The fraction of deltas with |t| ≥ 4 in traffic without planted delays. For independent normal
// samples it is 6.3e-5.
func TestFalseFlagsInLog2(t *testing.T) {
	const n = 4_000_000
	p := Params{Threshold: 4, MinSamples: 100, Window: 8192, Domain: Log2}
	lognormal := func(sigma float64) func(r *rand.Rand) float64 {
		return func(r *rand.Rand) float64 { return 1e5 * math.Exp(sigma*r.NormFloat64()) }
	}
	for _, test := range []struct {
		name string
		next func(r *rand.Rand) float64
		most float64
	}{
		{"lognormal, σ 0.5", lognormal(0.5), 1.2e-4},
		{"lognormal, σ 1", lognormal(1), 1.2e-4},
		{"lognormal, σ 1.5", lognormal(1.5), 1.2e-4},
		{"normal, 1 ms ± 20 µs", func(r *rand.Rand) float64 { return 1e6 + 20e3*r.NormFloat64() }, 1e-4},
	} {
		t.Run(test.name, func(t *testing.T) {
			var s State
			r := rand.New(rand.NewPCG(11, 12))
			flags := 0
			for range n {
				if p.Observe(&s, uint64(min(math.Round(test.next(r)), MaxDelta))) > Judged {
					flags++
				}
			}
			rate := float64(flags) / n
			t.Logf("%.3g of %d deltas flagged", rate, n)
			if rate > test.most || rate < 3e-5 {
				t.Errorf("rate %.3g, want from 3e-5 to %g", rate, test.most)
			}
		})
	}
}

// The mean is the geometric mean, and the variance is that of the logarithms.
func TestMeanAndVarianceInLog2(t *testing.T) {
	p := Params{Threshold: 4, MinSamples: 1 << 20, Window: 1 << 20, Domain: Log2}
	var s State
	r := rand.New(rand.NewPCG(5, 5))
	sum, squares, n := 0.0, 0.0, 100_000.0
	for range int(n) {
		delta := uint64(1e5 * math.Exp(r.NormFloat64()))
		p.Observe(&s, delta)
		log := math.Log2(float64(delta))
		sum += log
		squares += log * log
	}
	mean := math.Exp2(sum / n)
	variance := (squares - sum*sum/n) / (n - 1)
	if got := Log2.MeanNs(s); math.Abs(got/mean-1) > 1e-5 {
		t.Errorf("mean: got %v ns, want %v", got, mean)
	}
	if got := p.Variance(s); math.Abs(got/variance-1) > 1e-5 {
		t.Errorf("variance: got %v octaves², want %v", got, variance)
	}
}
