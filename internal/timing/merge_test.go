// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

func TestMergeOfKnownBaselines(t *testing.T) {
	const ns = 1 << meanShift
	for _, test := range []struct {
		name   string
		states []State
		want   State
	}{
		{"no baselines", nil, State{}},
		{"one without samples", []State{{}}, State{}},
		{"one alone is as it was", []State{{}, {N: 3, MeanQ16: 7, M2: Uint128{1, 2}}}, State{N: 3, MeanQ16: 7, M2: Uint128{1, 2}}},
		// 1, 3 and 5, 7: mean 4, and 9 + 1 + 1 + 9.
		{"two of two samples", []State{{2, 2 * ns, Uint128{0, 2}}, {2, 6 * ns, Uint128{0, 2}}}, State{4, 4 * ns, Uint128{0, 20}}},
		// 3 and 0, 0: mean 1, and 4 + 1 + 1.
		{"different numbers of samples", []State{{1, 3 * ns, Uint128{}}, {2, 0, Uint128{}}}, State{3, ns, Uint128{0, 6}}},
		// The mean 2/3 is rounded up, and so is M2 = Σ (m − 2/3)² = 2/3 units².
		{"what has no whole result", []State{{1, 0, Uint128{}}, {2, ns, Uint128{}}}, State{3, 43691, Uint128{0, 1}}},
		{"the largest", []State{
			{2 * MaxWindow, 0, Uint128{1 << 22, 0}}, {2 * MaxWindow, MaxDelta * ns, Uint128{1 << 22, 0}},
		}, State{4 * MaxWindow, MaxDelta / 2 * ns, Uint128{1<<23 + 1<<22, 0}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := Merge(test.states); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

// A merge agrees with exact arithmetic on the same baselines to half a unit, in any order of
// the baselines.
func TestMergeRoundsOnce(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		states := make([]State, 1+r.IntN(9))
		n, sum, m2 := new(big.Rat), new(big.Rat), new(big.Rat)
		rat := func(v *big.Int) *big.Rat { return new(big.Rat).SetInt(v) }
		for i := range states {
			s := State{r.Uint64N(2 * MaxWindow), r.Uint64N(MaxDelta << meanShift), Uint128{r.Uint64N(1 << 22), r.Uint64()}}
			s.M2 = s.M2.Rsh(uint(r.IntN(80)))
			states[i] = s
			count := new(big.Rat).SetUint64(s.N)
			mean := new(big.Rat).SetFrac(new(big.Int).SetUint64(s.MeanQ16), big.NewInt(1<<meanShift))
			total := new(big.Rat).Add(n, count)
			if total.Sign() == 0 {
				continue
			}
			// The formula for two baselines, applied repeatedly.
			difference := new(big.Rat).Sub(mean, safeQuo(sum, n))
			m2.Add(m2, rat(s.M2.Big()))
			m2.Add(m2, new(big.Rat).Mul(new(big.Rat).Mul(difference, difference), new(big.Rat).Quo(new(big.Rat).Mul(n, count), total)))
			sum.Add(sum, new(big.Rat).Mul(mean, count))
			n = total
		}
		got := Merge(states)
		if n.Cmp(new(big.Rat).SetUint64(got.N)) != 0 {
			t.Fatalf("%d samples, want %v", got.N, n)
		}
		if got.N == 0 {
			continue
		}
		offMean := new(big.Rat).Sub(new(big.Rat).SetFrac(new(big.Int).SetUint64(got.MeanQ16), big.NewInt(1<<meanShift)), safeQuo(sum, n))
		if math.Abs(ratFloat(offMean)) > 0.5/(1<<meanShift) {
			t.Fatalf("mean of %+v: off by %v units", states, ratFloat(offMean))
		}
		if off := ratFloat(new(big.Rat).Sub(rat(got.M2.Big()), m2)); math.Abs(off) > 0.5 {
			t.Fatalf("M2 of %+v: off by %v units²", states, off)
		}
		r.Shuffle(len(states), func(i, j int) { states[i], states[j] = states[j], states[i] })
		if again := Merge(states); again != got {
			t.Fatalf("in another order: got %+v, then %+v", got, again)
		}
	}
}

func safeQuo(a, b *big.Rat) *big.Rat {
	if b.Sign() == 0 {
		return new(big.Rat)
	}
	return new(big.Rat).Quo(a, b)
}

// Baselines that share samples merge to the baseline of all samples, within the rounding of
// each step: the mean by at most half of 2⁻¹⁶ units, which sums up as random numbers do, and
// both deviations in the product by half a unit.
func TestMergeEqualsOneBaselineOfAll(t *testing.T) {
	for _, domain := range []Domain{Linear, Log2} {
		t.Run(string(domain), func(t *testing.T) {
			// No delta is clipped and no baseline is halved: clipping depends on the baseline.
			const samples = 50_000
			p := Params{Threshold: 4, MinSamples: MaxWindow, Window: MaxWindow, Domain: domain}
			r := rand.New(rand.NewPCG(3, 4))
			parts, whole := make([]State, 4), State{}
			for range samples {
				delta := uint64(1e6 * math.Exp(0.1*r.NormFloat64()))
				p.Observe(&whole, delta)
				p.Observe(&parts[r.IntN(len(parts))], delta)
			}
			got := Merge(parts)
			if got.N != samples {
				t.Errorf("%d samples, want %d", got.N, samples)
			}
			mean := math.Abs(float64(got.MeanQ16) - float64(whole.MeanQ16))
			variance := math.Abs(p.Variance(got)/p.Variance(whole) - 1)
			t.Logf("mean off by %v of 2⁻¹⁶ units, variance by %.2g of itself", mean, variance)
			if mean > math.Sqrt(samples) {
				t.Errorf("mean: off by %v of 2⁻¹⁶ units", mean)
			}
			if variance > 1e-7 {
				t.Errorf("variance: off by %g", variance)
			}
		})
	}
}
