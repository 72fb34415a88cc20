// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import (
	"math"
	"math/big"
	"math/bits"
	"math/rand/v2"
	"strings"
	"testing"
)

var defaults = Params{Threshold: 4, MinSamples: 100, Window: 8192, Clip: 1.8}

// exact is a baseline in rational arithmetic: Welford's recurrence with the halving and
// clipping of Params. Only the root in the clipping limit, and in the log2 domain the
// logarithm, are rounded to float64.
type exact struct {
	params   Params
	k        float64
	n        int64
	mean, m2 *big.Rat
}

func newExact(p Params) *exact {
	return &exact{params: p, k: exactCorrection(p.Clip), mean: new(big.Rat), m2: new(big.Rat)}
}

// sample returns a delta in nanoseconds, or its logarithm in 2⁻²⁰ octaves.
func (e *exact) sample(delta uint64) *big.Rat {
	if e.params.Domain == Log2 {
		return new(big.Rat).SetFloat64(math.Ldexp(math.Log2(float64(max(delta, 1))), 20))
	}
	return new(big.Rat).SetUint64(delta)
}

func (e *exact) variance() float64 {
	least := 1.0
	if e.params.Domain == Log2 {
		nanosecond := math.Ldexp(1/math.Ln2, 20) / math.Exp2(math.Floor(2*math.Ldexp(ratFloat(e.mean), -20))/2)
		least = nanosecond*nanosecond + 3
	}
	return math.Max(e.correction()*ratFloat(e.m2)/float64(e.n-1), least/12)
}

func ratFloat(r *big.Rat) float64 { f, _ := r.Float64(); return f }

// truncate limits the size of fractions to 2⁻²⁰⁰, which is far below every tolerance.
func truncate(r *big.Rat) *big.Rat {
	scaled := new(big.Rat).Mul(r, new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), 200)))
	whole := new(big.Int).Quo(scaled.Num(), scaled.Denom())
	return new(big.Rat).SetFrac(whole, new(big.Int).Lsh(big.NewInt(1), 200))
}

// correction returns k for clipped samples.
func (e *exact) correction() float64 {
	if uint64(e.n) < e.params.MinSamples {
		return 1
	}
	return e.k
}

// exactCorrection returns k by numerical integration of E[ψ²].
func exactCorrection(clip float64) float64 {
	if clip == 0 {
		return 1
	}
	const steps = 100_000
	squared := 0.0
	for i := range steps {
		x := 10 * (float64(i) + 0.5) / steps
		squared += 2 * min(x, clip) * min(x, clip) * math.Exp(-x*x/2) / math.Sqrt(2*math.Pi) * 10 / steps
	}
	return 1 / squared
}

func (e *exact) score(delta uint64) float64 {
	d := ratFloat(new(big.Rat).Sub(e.sample(delta), e.mean))
	return d / math.Sqrt(e.variance()*(1+1/float64(e.n)))
}

func (e *exact) observe(delta uint64) {
	p := e.params
	d := new(big.Rat).Sub(e.sample(delta), e.mean)
	if uint64(e.n) >= p.MinSamples && p.Clip > 0 {
		limit := new(big.Rat).SetFloat64(p.Clip * math.Sqrt(e.variance()))
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
	if uint64(e.n) == p.MinSamples {
		e.m2.Quo(e.m2, new(big.Rat).SetFloat64(e.k))
	}
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
			e, s := newExact(p), State{}
			worst, flips := 0.0, 0
			for i := range 20_000 {
				delta := uint64(math.Round(max(0, test.next(i, r))))
				if s.N >= p.MinSamples {
					want := e.score(delta)
					got := p.Score(delta, s)
					// The error of a large score is proportional to the score.
					worst = max(worst, math.Abs(got-want)/max(1, math.Abs(want)/4))
					if math.Abs(want) >= 4 != (math.Abs(got) >= 4) {
						flips++
					}
				}
				e.observe(delta)
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
				threshold := p.Threshold * math.Sqrt(p.Variance(s)*(1+1/float64(s.N))) * (1 + 1e-3*r.NormFloat64())
				x := domain.MeanNs(s) + threshold
				if domain == Log2 {
					x = domain.MeanNs(s) * math.Exp2(threshold)
				}
				if x > MaxDelta {
					continue
				}
				delta := uint64(math.Round(x))
				near++
				score := math.Abs(p.Score(delta, s))
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
		var run Run
		now := uint64(0)
		r := rand.New(rand.NewPCG(5, 6))
		observe := func(level float64, n int) (flags int) {
			for range n {
				delta := uint64(level + 20e3*r.NormFloat64())
				now += delta
				decision := defaults.Observe(&s, delta)
				if decision > Judged {
					flags++
				}
				defaults.Restarts(&run, &s, decision, delta, now)
			}
			return flags
		}
		observe(1e6, 1_000_000)
		flags := observe(3e6, 1000)
		if flags > 200 {
			t.Errorf("%d packets flagged after the shift, want at most 200", flags)
		}
		if deviation := math.Sqrt(defaults.Variance(s)); math.Abs(deviation/20e3-1) > 0.1 {
			t.Errorf("deviation %.0f ns 1,000 packets after the shift, want 20 µs", deviation)
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
	for _, clip := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), -1, 0.999, 16.001} {
		p := defaults
		p.Clip = clip
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), "neither 0 (off) nor between 1 and 16") {
			t.Errorf("clip %v: error %v", clip, err)
		}
	}
	for _, clip := range []float64{0, 1, 1.8, 16} {
		p := defaults
		p.Clip = clip
		if err := p.Validate(); err != nil {
			t.Errorf("clip %v: %v", clip, err)
		}
	}
	for _, p := range []Params{defaults, params(2, 2, 2), params(1e6, 100, MaxWindow)} {
		if err := p.Validate(); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
	}
}

// outside reports whether 4·deviation²·(n−1) ≥ factor · M2, with the deviation rounded up to whole
// units, as the kernel program does.
func outside(deviation, n uint64, m2 Uint128, factor uint32) bool {
	d := (deviation + 1<<meanShift - 1) >> meanShift
	hi, lo := bits.Mul64(d*d, 4*(n-1))
	return Uint128{hi, lo}.Cmp(m2.Mul64(uint64(factor))) >= 0
}

// The shortcuts never change a decision: what they skip is neither flagged nor clipped. The limit
// of near deviations is that of all others.
func TestShortcutsSkipNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	skipped, clipped, flagged, near := 0, 0, 0, 0
	for range 500_000 {
		p := Params{Threshold: 1 + 6*r.Float64(), MinSamples: 2, Window: 8192, Domain: []Domain{Linear, Log2}[r.IntN(2)]}
		if r.IntN(5) > 0 {
			p.Clip = 1 + 5*r.Float64()
		}
		s := State{N: 2 + r.Uint64N(1<<(1+r.IntN(24)))}
		s.M2 = Uint128{0, 1}.Lsh(uint(r.IntN(80))).Add(Uint128{0, r.Uint64() >> r.IntN(64)})
		if p.Domain == Log2 {
			s.MeanQ16 = r.Uint64N(31 << (log2Shift + meanShift))
		}
		sd := math.Sqrt(p.Variance(s)) / p.Domain.unit()
		deviation := uint64([]float64{p.Threshold, p.Clip}[r.IntN(2)] * sd * (0.5 + 2*r.Float64()) * (1 << meanShift))
		if deviation >= MaxDelta<<meanShift {
			continue
		}
		v, shortcuts := p.newVariance(&s), p.Shortcuts()
		isFlagged, isClipped := p.reaches(deviation, p.score(deviation, v, s.N)), p.Clip > 0 && deviation > v.clipLimit(p.ClipQ16())
		for _, test := range []struct {
			factor uint32
			is     bool
		}{{shortcuts.Near, isFlagged}, {shortcuts.Clip, isClipped}, {shortcuts.Both, isFlagged || isClipped}} {
			if test.is && !outside(deviation, s.N, s.M2, test.factor) {
				t.Fatalf("%+v: deviation %d of %+v is flagged %v, clipped %v, but inside %d", p, deviation, s, isFlagged, isClipped, test.factor)
			}
		}
		skipped += b2i(!outside(deviation, s.N, s.M2, shortcuts.Both))
		clipped += b2i(isClipped)
		flagged += b2i(isFlagged)
		limit, isNear := p.nearLimit(deviation, &s)
		floor := float64(p.Domain.leastSquared(s.MeanQ16)) / 12
		if !isNear || limit == deviation || s.N < 1000 || p.correction()*s.M2.Float64()/float64(s.N-1) < floor {
			continue
		}
		near++
		if off := float64(limit)/float64(v.clipLimit(p.ClipQ16())) - 1; math.Abs(off) > 1.5e-3 {
			t.Fatalf("%+v: the limit of a near deviation %d of %+v is off by %v", p, deviation, s, off)
		}
	}
	if min(skipped, clipped, flagged, near) < 10_000 {
		t.Errorf("only %d cases skipped, %d clipped, %d flagged, %d near", skipped, clipped, flagged, near)
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// The factor of the variance is the reciprocal of E[ψ²], and its inverse undoes it.
func TestVarianceFactor(t *testing.T) {
	for _, clip := range []float64{0, 1, 1.5, 1.75, 1.8, 2, 4, 16} {
		p := Params{Clip: clip}
		if got, want := p.correction(), exactCorrection(clip); math.Abs(got/want-1) > 1e-6 {
			t.Errorf("clip %v: factor %v, want %v", clip, got, want)
		}
		if got := p.correction() * float64(p.LearntFactor()) / 65536; math.Abs(got-1) > 2e-5 {
			t.Errorf("clip %v: a learnt M2 is multiplied by %v", clip, got)
		}
		s := State{N: 1000, MeanQ16: 5, M2: Uint128{3, 12345678901}}
		if got := p.Corrected(p.Clipped(s)); math.Abs(got.M2.Float64()-s.M2.Float64()) > 2 || got.N != s.N || got.MeanQ16 != s.MeanQ16 {
			t.Errorf("clip %v: %+v becomes %+v", clip, s, got)
		}
		if got, want := p.Variance(s), (Params{}).Variance(p.Corrected(s)); math.Abs(got/want-1) > 1e-15 {
			t.Errorf("clip %v: variance %v, corrected %v", clip, got, want)
		}
	}
}

// A root is at most 0.05 % too large.
func TestSquareRoot(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 300_000 {
		v := 1<<32 + r.Uint64()>>(1+r.IntN(31))
		if off := float64(squareRoot(v))/math.Sqrt(float64(v)) - 1; off < -2e-5 || off > 5e-4 {
			t.Fatalf("root of %d: %d, off by %v", v, squareRoot(v), off)
		}
	}
}

// Just after learning and later, the deviation is that of the traffic, at every clip.
func TestDeviationIsConsistent(t *testing.T) {
	for _, clip := range []float64{0, 1, 1.5, 1.8, 4} {
		r := rand.New(rand.NewPCG(4, 4))
		p := defaults
		p.Clip = clip
		early, late := 0.0, 0.0
		const flows = 200
		for range flows {
			var s State
			for range 101 {
				p.Observe(&s, uint64(1e6+20e3*r.NormFloat64()))
			}
			early += p.Variance(s) / flows
			for range 2000 {
				p.Observe(&s, uint64(1e6+20e3*r.NormFloat64()))
			}
			late += p.Variance(s) / flows
		}
		t.Logf("clip %v: %.4f after learning, %.4f later", clip, math.Sqrt(early)/20e3, math.Sqrt(late)/20e3)
		if off := math.Sqrt(early)/20e3 - 1; math.Abs(off) > 0.018 {
			t.Errorf("clip %v: deviation is off by %.4f after learning", clip, off)
		}
		if off := math.Sqrt(late)/20e3 - 1; math.Abs(off) > 0.005 {
			t.Errorf("clip %v: deviation is off by %.4f later", clip, off)
		}
	}
}

// A device restarts its baseline for a new level of all of its flows, but not for one pause of all
// of them, however many they are.
func TestRunOfADevice(t *testing.T) {
	const flows, usual, late = 300, 1_000_000, 50_000_000
	for _, test := range []struct {
		name     string
		late     int // late packets of each flow
		restarts int
	}{{"one pause", 1, 0}, {"a new level", 4, 1}} {
		var s State
		var r Run
		random := rand.New(rand.NewPCG(6, 6))
		now, restarts := uint64(1e12), 0
		last := make([]uint64, flows)
		for round := range 40 + test.late {
			step := uint64(usual)
			if round >= 40 {
				step = late
			}
			now += step
			for i := range last {
				at := now + uint64(i)*1000 + random.Uint64N(20_000)
				delta := at - last[i]
				last[i] = at
				if round == 0 {
					continue
				}
				restarts += b2i(defaults.DeviceRestarts(&r, &s, defaults.Observe(&s, delta), delta, at))
			}
		}
		if restarts != test.restarts {
			t.Errorf("%s: %d restarts, want %d", test.name, restarts, test.restarts)
		}
	}
}

// A run is of flagged packets on one side, nearly without others between them.
func TestRunOfFlags(t *testing.T) {
	every := func(packets int, other Decision) func(int) Decision {
		return func(i int) Decision { return []Decision{Late, other}[b2i(i%packets == packets-1)] }
	}
	for _, test := range []struct {
		name      string
		deltaNs   uint64
		decisions func(i int) Decision
		restarts  int // in 640 packets
	}{
		{"late", 1e6, func(int) Decision { return Late }, 6},
		{"early", 1e6, func(int) Decision { return Early }, 6},
		{"on both sides", 1e6, every(50, Early), 0},
		{"one in 9 is not flagged", 1e6, every(9, Judged), 0},
		{"one in 20 is not flagged", 1e6, every(20, Judged), 3},
		{"one in 100 is not judged", 1e6, every(100, TooFewSamples), 5},
		{"a burst that is too short", 190, func(i int) Decision { return []Decision{Late, Judged}[b2i(i >= 200)] }, 0},
		{"one that becomes long enough", 200, func(i int) Decision { return []Decision{Late, Judged}[b2i(i >= 256)] }, 1},
		{"none", 1e6, func(int) Decision { return Judged }, 0},
	} {
		var r Run
		restarts := 0
		for i := range 640 {
			s := State{N: 10_000}
			restarts += b2i(defaults.Restarts(&r, &s, test.decisions(i), 1e6, uint64(i)*test.deltaNs))
		}
		if restarts != test.restarts {
			t.Errorf("%s: %d restarts, want %d", test.name, restarts, test.restarts)
		}
	}
}

// A run restarts a baseline only if it lasts for 50 µs, and that of a device only if it also lasts
// for two of its deltas.
func TestDurationOfRuns(t *testing.T) {
	for _, test := range []struct {
		name                string
		deltaNs, durationNs uint64
		restarts, ofDevice  bool
	}{
		{"almost 50 µs", 1e3, 49_999, false, false},
		{"50 µs", 1e3, 50_000, true, true},
		{"almost two deltas", 1e6, 1_999_999, true, false},
		{"two deltas", 1e6, 2_000_000, true, true},
	} {
		for _, device := range []bool{false, true} {
			restarts, want := defaults.Restarts, test.restarts
			if device {
				restarts, want = defaults.DeviceRestarts, test.ofDevice
			}
			var r Run
			s, got := State{N: 10_000}, false
			for i := range defaults.RestartRun() + 1 {
				now := uint64(1e12)
				if i == defaults.RestartRun() {
					now += test.durationNs
				}
				got = restarts(&r, &s, Late, test.deltaNs, now)
			}
			if got != want {
				t.Errorf("%s, device %t: restarts %t, want %t", test.name, device, got, want)
			}
		}
	}
}

// After a baseline that judged few packets, the next run has to be twice as long, up to 16 times.
// After one that judged many, it has to be as long as the first.
func TestRunsAfterRestarts(t *testing.T) {
	var r Run
	now := uint64(1e12)
	for i, test := range []struct{ judged, packets uint64 }{
		{0, 101}, {0, 201}, {0, 401}, {0, 801}, {0, 1601}, {0, 1601},
		{1600, 1601}, {1599, 101}, {1600, 201}, {1e6, 101}, {1600, 101},
	} {
		s, packets := State{N: test.judged + test.packets}, uint64(0)
		for restarts := false; !restarts && packets < 5000; packets++ {
			now += 1e6
			restarts = defaults.Restarts(&r, &s, Late, 1e6, now)
		}
		if packets != test.packets {
			t.Errorf("baseline %d, which judged %d packets: restarts after %d, want %d", i, test.judged, packets, test.packets)
		}
	}
}

// A baseline that restarts is the one that the packets of the run would have made alone, after the
// first of them. Earlier runs leave nothing in it.
func TestLevelOfARun(t *testing.T) {
	for _, domain := range []Domain{Linear, Log2} {
		p := defaults
		p.Domain = domain
		r := rand.New(rand.NewPCG(9, 9))
		var run Run
		now, baseline := uint64(1e12), State{N: 10_000}
		send := func(decision Decision, deltaNs uint64) bool {
			now += deltaNs
			return p.Restarts(&run, &baseline, decision, deltaNs, now)
		}
		for range 90 {
			send(Early, 1e5)
		}
		var alone State
		for i := range 101 {
			deltaNs := uint64(3e6 + 20e3*r.NormFloat64())
			if restarts := send(Late, deltaNs); restarts != (i == 100) {
				t.Fatalf("%v: restarts %v at packet %d of the run", domain, restarts, i)
			}
			if i > 0 {
				p.Observe(&alone, deltaNs)
			}
		}
		if baseline != alone {
			t.Errorf("%v: restarted at %+v, want %+v", domain, baseline, alone)
		}
	}
}

// flaggedLate runs a flow of 1 ms ± 20 µs, after 20,000 packets, through levels for so many packets
// each. It returns the share of packets flagged among those late by 8 deviations at the end, one in
// a hundred of 5000, and the restarts.
func flaggedLate(levels ...struct {
	meanNs  float64
	packets int
}) (found float64, restarts int) {
	r := rand.New(rand.NewPCG(8, 8))
	var s State
	var run Run
	now := uint64(0)
	send := func(meanNs float64) Decision {
		delta := uint64(meanNs + 20e3*r.NormFloat64())
		now += delta
		decision := defaults.Observe(&s, delta)
		restarts += b2i(defaults.Restarts(&run, &s, decision, delta, now))
		return decision
	}
	for range 20_000 {
		send(1e6)
	}
	for _, level := range levels {
		for range level.packets {
			send(level.meanNs)
		}
	}
	late := 0
	for i := range 5000 {
		if i%100 != 99 {
			send(1e6)
		} else if send(1e6+8*20e3) == Late {
			late++
		}
	}
	return float64(late) / 50, restarts
}

// Neither packets that are late in a row nor levels that come and go blind a flow: however long the
// run was, packets that are late by 8 deviations are found afterwards.
func TestRunsDoNotBlind(t *testing.T) {
	type level = struct {
		meanNs  float64
		packets int
	}
	for _, meanNs := range []float64{200e3, 1.4e6, 21e6} {
		for _, packets := range []int{50, 65, 80, 114, 150, 163, 300, 2000} {
			if found, restarts := flaggedLate(level{meanNs, packets}); found < 0.9 || restarts > 2 {
				t.Errorf("%d packets at %v ns: %v of the late packets found, %d restarts", packets, meanNs, found, restarts)
			}
		}
	}
	// Two levels in turn become one baseline, which flags neither.
	var levels []level
	for range 100 {
		levels = append(levels, level{3e6, 256}, level{1e6, 256})
	}
	if _, restarts := flaggedLate(levels...); restarts > 10 {
		t.Errorf("two levels in turn: %d restarts", restarts)
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
