// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

var defaults = Params{Threshold: 4, MinSamples: 100, Window: 8192}

// exact is a baseline in rational arithmetic: Welford's recurrence with the halving and
// clipping of Params. Only the root in the clipping limit, and in the log2 domain the
// logarithm, are rounded to float64.
type exact struct {
	domain   Domain
	n        int64
	mean, m2 *big.Rat
}

func newExact(domain Domain) *exact {
	return &exact{domain: domain, mean: new(big.Rat), m2: new(big.Rat)}
}

// sample returns a delta in nanoseconds, or its logarithm in 2⁻²⁰ octaves.
func (e *exact) sample(delta uint64) *big.Rat {
	if e.domain == Log2 {
		return new(big.Rat).SetFloat64(math.Ldexp(math.Log2(float64(max(delta, 1))), 20))
	}
	return new(big.Rat).SetUint64(delta)
}

func (e *exact) variance() float64 {
	least := 1.0
	if e.domain == Log2 {
		nanosecond := math.Ldexp(1/math.Ln2, 20) / math.Exp2(math.Floor(2*math.Ldexp(ratFloat(e.mean), -20))/2)
		least = nanosecond*nanosecond + 3
	}
	return math.Max(ratFloat(e.m2)/float64(e.n-1), least/12)
}

func ratFloat(r *big.Rat) float64 { f, _ := r.Float64(); return f }

// truncate limits the size of fractions to 2⁻²⁰⁰, which is far below every tolerance.
func truncate(r *big.Rat) *big.Rat {
	scaled := new(big.Rat).Mul(r, new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), 200)))
	whole := new(big.Int).Quo(scaled.Num(), scaled.Denom())
	return new(big.Rat).SetFrac(whole, new(big.Int).Lsh(big.NewInt(1), 200))
}

func (e *exact) score(delta uint64) float64 {
	d := ratFloat(new(big.Rat).Sub(e.sample(delta), e.mean))
	return d / math.Sqrt(e.variance()*(1+1/float64(e.n)))
}

func (e *exact) observe(p Params, delta uint64) {
	d := new(big.Rat).Sub(e.sample(delta), e.mean)
	if uint64(e.n) >= p.MinSamples {
		limit := new(big.Rat).SetFloat64(4 * math.Sqrt(e.variance()))
		if new(big.Rat).Abs(d).Cmp(limit) > 0 {
			if d.Sign() < 0 {
				limit.Neg(limit)
			}
			d = limit
		}
	}
	e.n++
	step := new(big.Rat).Quo(d, new(big.Rat).SetInt64(e.n))
	e.mean = truncate(new(big.Rat).Add(e.mean, step))
	e.m2 = truncate(new(big.Rat).Add(e.m2, new(big.Rat).Mul(d, new(big.Rat).Sub(d, step))))
	if uint64(e.n) == 2*p.Window {
		e.n /= 2
		e.m2.Quo(e.m2, big.NewRat(2, 1))
	}
}

// The fixed-point baseline gives the scores of exact arithmetic: within 0.002 for a standard
// deviation of at least a microsecond, within 0.05 at 5 ns. In the log2 domain the error of the
// logarithm, 1.2e-5 octaves, is added.
func TestScoresAgreeWithExactArithmetic(t *testing.T) {
	for _, test := range []struct {
		name      string
		domain    Domain
		next      func(i int, r *rand.Rand) float64
		tolerance float64
	}{
		{"normal, sd 20 µs", Linear, func(_ int, r *rand.Rand) float64 { return 1e6 + 20e3*r.NormFloat64() }, 0.002},
		{"normal, sd 1 µs at a coefficient of variation of 1 %", Linear, func(_ int, r *rand.Rand) float64 { return 1e5 + 1e3*r.NormFloat64() }, 0.002},
		{"exponential, mean 100 µs", Linear, func(_ int, r *rand.Rand) float64 { return 1e5 * r.ExpFloat64() }, 0.002},
		{"outliers of 8 sd", Linear, func(i int, r *rand.Rand) float64 {
			if i%100 == 0 {
				return 1e6 + 160e3
			}
			return 1e6 + 20e3*r.NormFloat64()
		}, 0.002},
		{"normal, sd 5 ns", Linear, func(_ int, r *rand.Rand) float64 { return 1e6 + 5*r.NormFloat64() }, 0.05},
		{"log2: lognormal, σ 0.5", Log2, func(_ int, r *rand.Rand) float64 { return 1e5 * math.Exp(0.5*r.NormFloat64()) }, 0.002},
		{"log2: lognormal, σ 1.5", Log2, func(_ int, r *rand.Rand) float64 { return 1e5 * math.Exp(1.5*r.NormFloat64()) }, 0.002},
		{"log2: exponential, mean 100 µs", Log2, func(_ int, r *rand.Rand) float64 { return 1e5 * r.ExpFloat64() }, 0.002},
		{"log2: normal, at a coefficient of variation of 2 %", Log2, func(_ int, r *rand.Rand) float64 { return 1e6 + 20e3*r.NormFloat64() }, 0.002},
		{"log2: normal, at a coefficient of variation of 1e-4", Log2, func(_ int, r *rand.Rand) float64 { return 1e6 + 100*r.NormFloat64() }, 0.1},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			p := defaults
			p.Domain = test.domain
			e, s := newExact(p.Domain), State{}
			worst, flips := 0.0, 0
			for i := range 20_000 {
				delta := uint64(math.Round(max(0, test.next(i, r))))
				if s.N >= p.MinSamples {
					want := e.score(delta)
					got := p.Domain.Score(delta, s)
					// The error of a large score is proportional to the score.
					worst = max(worst, math.Abs(got-want)/max(1, math.Abs(want)/4))
					if math.Abs(want) >= 4 != (math.Abs(got) >= 4) {
						flips++
					}
				}
				e.observe(p, delta)
				p.Observe(&s, delta)
			}
			t.Logf("largest error of a score %.2g, decisions that differ %d", worst, flips)
			if worst > test.tolerance {
				t.Errorf("largest error of a score: got %.3g, want at most %v", worst, test.tolerance)
			}
			if flips > 0 && test.tolerance < 0.01 {
				t.Errorf("%d decisions differ from exact arithmetic", flips)
			}
		})
	}
}

// The decision agrees with the score, except within the error of 32-bit mantissas, about 2⁻²⁹.
func TestDecisionAgreesWithScore(t *testing.T) {
	for _, domain := range []Domain{Linear, Log2} {
		t.Run(string(domain), func(t *testing.T) {
			p := defaults
			p.Domain = domain
			meanLimit := uint64(MaxDelta)
			if domain == Log2 {
				meanLimit = 31 << log2Shift
			}
			r := rand.New(rand.NewPCG(3, 4))
			near := 0
			for range 200_000 {
				s := State{
					N:       100 + r.Uint64N(1<<14),
					MeanQ16: r.Uint64N(meanLimit << meanShift),
					M2:      Uint128{0, 1}.Lsh(uint(r.IntN(85))).Add(Uint128{0, r.Uint64()}),
				}
				if domain == Log2 {
					s.M2 = Uint128{0, r.Uint64() >> (6 + r.IntN(50))}
				}
				threshold := p.Threshold * math.Sqrt(domain.Variance(s)*(1+1/float64(s.N))) * (1 + 1e-3*r.NormFloat64())
				x := domain.MeanNs(s) + threshold
				if domain == Log2 {
					x = domain.MeanNs(s) * math.Exp2(threshold)
				}
				if x > MaxDelta {
					continue
				}
				delta := uint64(math.Round(x))
				near++
				score := math.Abs(domain.Score(delta, s))
				if math.Abs(score-4) < 4e-8 {
					continue
				}
				before := s
				decision := p.Observe(&s, delta)
				if flagged := decision == Early || decision == Late; flagged != (score >= 4) {
					t.Fatalf("|t| is %.12g against %+v, but the decision is %d", score, before, decision)
				}
			}
			if near < 50_000 {
				t.Errorf("only %d cases near the threshold", near)
			}
		})
	}
}

func TestObserveAtTheEdges(t *testing.T) {
	t.Run("no packet is flagged before the minimum of samples", func(t *testing.T) {
		var s State
		for i := range defaults.MinSamples {
			if got := defaults.Observe(&s, i%2*MaxDelta); got != TooFewSamples {
				t.Fatalf("sample %d: got decision %d", i, got)
			}
		}
		if got := defaults.Observe(&s, 0); got == TooFewSamples {
			t.Error("the sample after the minimum was not judged")
		}
	})
	t.Run("constant traffic tolerates what rounding to nanoseconds does", func(t *testing.T) {
		var s State
		for range 1000 {
			if got := defaults.Observe(&s, 1_000_000); got != TooFewSamples && got != Judged {
				t.Fatalf("got decision %d", got)
			}
		}
		for delta, want := range map[uint64]Decision{1_000_001: Judged, 999_999: Judged, 1_000_002: Late, 999_998: Early} {
			copied := s
			if got := defaults.Observe(&copied, delta); got != want {
				t.Errorf("%d ns: got decision %d, want %d", delta, got, want)
			}
		}
	})
	t.Run("a shift of the level is learnt", func(t *testing.T) {
		var s State
		r := rand.New(rand.NewPCG(5, 6))
		observe := func(level float64, n int) (flags int) {
			for range n {
				if defaults.Observe(&s, uint64(level+20e3*r.NormFloat64())) > Judged {
					flags++
				}
			}
			return flags
		}
		observe(1e6, 1_000_000)
		flags := observe(3e6, 100_000)
		if flags > 6000 {
			t.Errorf("%d packets flagged after the shift, want at most 6000", flags)
		}
		if math.Abs(Linear.MeanNs(s)-3e6) > 3e4 {
			t.Errorf("mean %.0f ns, want within 1 %% of 3 ms", Linear.MeanNs(s))
		}
	})
	t.Run("extremes do not overflow", func(t *testing.T) {
		p := Params{Threshold: 4, MinSamples: 2, Window: MaxWindow}
		s := State{N: 2*MaxWindow - 2, MeanQ16: MaxDelta << (meanShift - 1), M2: Uint128{1 << 31, 0}}
		before := s
		p.Observe(&s, 0)
		p.Observe(&s, MaxDelta)
		if s.N != MaxWindow || s.M2.Cmp(before.M2.Rsh(1)) < 0 || s.M2.Cmp(before.M2) > 0 {
			t.Errorf("got %+v after two more samples than %+v", s, before)
		}
	})
}

func TestInvalidParamsAreRefused(t *testing.T) {
	params := func(threshold float64, minSamples, window uint64) Params {
		return Params{Threshold: threshold, MinSamples: minSamples, Window: window}
	}
	for _, p := range []Params{
		params(math.NaN(), 100, 8192), params(math.Inf(1), 100, 8192), params(math.Inf(-1), 100, 8192), params(1.999, 100, 8192),
		params(0, 100, 8192), params(1e7, 100, 8192), params(4, 1, 8192), params(4, 0, 8192), params(4, 100, 99),
		params(4, 100, MaxWindow+1), params(4, MaxWindow+1, MaxWindow+1),
	} {
		if err := p.Validate(); err == nil {
			t.Errorf("%+v: no error", p)
		}
	}
	for _, p := range []Params{defaults, params(2, 2, 2), params(1e6, 100, MaxWindow)} {
		if err := p.Validate(); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
	}
}

// The shortcut never changes a decision: what it skips is neither flagged nor clipped.
func TestShortcutSkipsNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 300_000 {
		p := Params{Threshold: 1 + 6*r.Float64(), MinSamples: 2, Window: 8192}
		n := 2 + r.Uint64N(1<<14)
		m2 := Uint128{0, 1}.Lsh(uint(r.IntN(80))).Add(Uint128{0, r.Uint64() >> r.IntN(64)})
		least := []uint64{Linear.leastSquared(0), Log2.leastSquared(r.Uint64N(31 << (log2Shift + meanShift)))}[r.IntN(2)]
		sd := math.Sqrt(math.Max(m2.Float64()/float64(n-1), float64(least)/12))
		deviation := uint64(p.Threshold * sd * (0.5 + r.Float64()) * (1 << meanShift))
		if deviation >= MaxDelta<<meanShift || outside(deviation, n, m2, uint(p.ShortcutShift())) {
			continue
		}
		if p.reaches(deviation, newVariance(n, m2, least), n) {
			t.Fatalf("%+v: deviation %d of n %d, M2 %v is flagged, but inside", p, deviation, n, m2)
		}
		if outside(deviation, n, m2, clipShift) {
			t.Fatalf("%+v: deviation %d of n %d, M2 %v is clipped, but inside", p, deviation, n, m2)
		}
	}
}

func TestUint128AgreesWithBig(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	modulus := new(big.Int).Lsh(big.NewInt(1), 128)
	for range 10_000 {
		a := Uint128{r.Uint64() >> r.IntN(65), r.Uint64()}
		b := Uint128{r.Uint64() >> r.IntN(65), r.Uint64()}
		m, shift := r.Uint64(), uint(r.IntN(128))
		for name, pair := range map[string][2]*big.Int{
			"sum":     {a.Add(b).Big(), new(big.Int).Add(a.Big(), b.Big())},
			"differ":  {a.Sub(b).Big(), new(big.Int).Sub(a.Big(), b.Big())},
			"product": {a.Mul64(m).Big(), new(big.Int).Mul(a.Big(), new(big.Int).SetUint64(m))},
			"left":    {a.Lsh(shift).Big(), new(big.Int).Lsh(a.Big(), shift)},
			"right":   {a.Rsh(shift).Big(), new(big.Int).Rsh(a.Big(), shift)},
		} {
			if pair[0].Cmp(pair[1].Mod(pair[1], modulus)) != 0 {
				t.Fatalf("%s of %v, %v, %d, %d: got %v, want %v", name, a, b, m, shift, pair[0], pair[1])
			}
		}
		if got, want := a.Cmp(b), a.Big().Cmp(b.Big()); got != want {
			t.Fatalf("comparison of %v and %v: got %d, want %d", a, b, got, want)
		}
		if got, want := a.BitLen(), a.Big().BitLen(); got != want {
			t.Fatalf("bits of %v: got %d, want %d", a, got, want)
		}
		want, _ := new(big.Float).SetInt(a.Big()).Float64()
		if got := a.Float64(); math.Abs(got-want) > want*0x1p-51 {
			t.Fatalf("%v as float64: got %v, want %v", a, got, want)
		}
	}
}
