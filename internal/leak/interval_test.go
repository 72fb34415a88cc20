// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leak

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// The interval is {δ : E(D − δ) < 20}, searched in steps of half a nanosecond.
func TestIntervalIsItsDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{22, 23, 24, 50, 101, 200} {
		for run := range 20 {
			var d differences
			var all []int64
			for range n {
				v := int64(r.NormFloat64() * 20)
				if run%4 == 3 {
					v = v / 10 * 10 // ties
				}
				d.add(v)
				all = append(all, v)
			}
			low, high := d.interval(0, 0, 0)
			if n == 22 {
				if !math.IsInf(low, -1) || !math.IsInf(high, 1) {
					t.Fatalf("22 pairs have the interval %v to %v", low, high)
				}
				continue
			}
			var inside []float64
			for delta := -100.; delta <= 100; delta += 0.5 {
				s, outcomes := 0., 0.
				for _, v := range all {
					if float64(v) > delta {
						s++
					}
					if float64(v) != delta {
						outcomes++
					}
				}
				if logBetaBinomial(existencePrior, s, outcomes) < math.Log(20) {
					inside = append(inside, delta)
				}
			}
			// Between the steps at the ends there may be more of it.
			if from, to := slices.Min(inside), slices.Max(inside); low > from || low < from-0.5 || high < to || high > to+0.5 {
				t.Errorf("%d pairs: got %v to %v, want %v to %v", n, low, high, from, to)
			}
		}
	}
}

// Half a tick is added to each end, because rounded times hide a smaller effect.
func TestIntervalIsWidenedByHalfATick(t *testing.T) {
	var d differences
	for range 30 {
		d.add(7)
	}
	if low, high := d.interval(0, 0, 1); low != 6.5 || high != 7.5 {
		t.Errorf("got %v to %v, want 6.5 to 7.5", low, high)
	}
}

// The ends are rounded outward to cells, of both signs.
func TestIntervalIsRoundedOutward(t *testing.T) {
	for _, v := range []int64{127, 128, 255, 256, 1001, 123_456_789} {
		for _, sign := range []int64{1, -1} {
			var d differences
			for range 30 {
				d.add(sign * v)
			}
			low, high := d.interval(0, 0, 0)
			if value := float64(sign * v); low > value || high < value || high-low > math.Abs(value)/128 {
				t.Errorf("%d: got %v to %v", sign*v, low, high)
			}
			if v < 256 && low != high {
				t.Errorf("%d is not kept exactly: %v to %v", sign*v, low, high)
			}
		}
	}
}

// Pairs at −∞ and +∞ move the ends as pairs far out do.
func TestIntervalWithLostPairs(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	var without, with differences
	for range 500 {
		v := int64(1000 * r.NormFloat64())
		without.add(v)
		with.add(v)
	}
	for range 20 {
		with.add(-1e9)
	}
	for range 5 {
		with.add(1e9)
	}
	low, high := without.interval(20, 5, 1)
	wantLow, wantHigh := with.interval(0, 0, 1)
	if low != wantLow || high != wantHigh {
		t.Errorf("got %v to %v, want %v to %v", low, high, wantLow, wantHigh)
	}
	if low, high := without.interval(490, 0, 1); !math.IsInf(low, -1) || math.IsInf(high, 1) {
		t.Errorf("490 lost pairs of 990: got %v to %v, want no lower end", low, high)
	}
}

func TestHistogram(t *testing.T) {
	for cell := range histogramCells {
		least, greatest := bounds(cell)
		if cellOf(least) != cell || cellOf(greatest) != cell {
			t.Fatalf("cell %d from %d to %d: these are in cells %d and %d", cell, least, greatest, cellOf(least), cellOf(greatest))
		}
		if cell > 0 {
			if _, before := bounds(cell - 1); before+1 != least {
				t.Fatalf("cell %d begins at %d, the one before ends at %d", cell, least, before)
			}
		}
	}
	if _, greatest := bounds(histogramCells - 1); greatest != LongestNs || cellOf(math.MaxUint64) != histogramCells-1 {
		t.Errorf("the last cell ends at %d", greatest)
	}
	r := rand.New(rand.NewPCG(1, 2))
	var h histogram
	var values []uint64
	for range 10_000 {
		v := uint64(math.Exp(25 * r.Float64()))
		h.add(v)
		values = append(values, v)
	}
	slices.Sort(values)
	for _, p := range Quantiles {
		want := float64(values[int(p*10_000)])
		if got := h.quantile(p); math.Abs(got/want-1) > 0.02 {
			t.Errorf("quantile %v: got %v, want %v", p, got, want)
		}
	}
	sum := uint64(0)
	for _, n := range h.cells {
		sum += n
	}
	if sum != h.count || h.count != 10_000 {
		t.Errorf("the cells have %d of %d values", sum, h.count)
	}
}
