// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import (
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"
)

// isAtMost reports whether ns ≤ 10⁹·2^(i/8). It compares eighth powers, which is exact.
func isAtMost(ns uint64, i int) bool {
	left := new(big.Int).Exp(new(big.Int).SetUint64(ns), big.NewInt(8), nil)
	right := new(big.Int).Exp(big.NewInt(10), big.NewInt(72), nil)
	if i < 0 {
		left.Lsh(left, uint(-i))
	} else {
		right.Lsh(right, uint(i))
	}
	return left.Cmp(right) <= 0
}

func TestNativeBoundsAreExact(t *testing.T) {
	for i := nativeMin; i <= nativeMax; i++ {
		bound := NativeBound(i)
		if !isAtMost(bound, i) || isAtMost(bound+1, i) {
			t.Errorf("bound %d: got %d ns", i, bound)
		}
	}
}

// Every delta is in the buckets that an exact comparison with the boundaries gives: at the
// boundaries, next to them, and anywhere else.
func TestEveryDeltaIsInItsBuckets(t *testing.T) {
	buckets, cuts := NewBuckets(), Cuts()
	deltas := []uint64{0, 1, 2, 3, 15, 16, 17, 31, 32, 33, MaxDelta - 1, MaxDelta}
	for i := nativeMin; i <= nativeMax; i++ {
		bound := NativeBound(i)
		deltas = append(deltas, bound, bound+1, max(bound, 1)-1)
	}
	r := rand.New(rand.NewPCG(1, 1))
	for range 5000 {
		deltas = append(deltas, r.Uint64N(MaxDelta)>>r.IntN(31))
	}
	for _, delta := range deltas {
		if delta > MaxDelta {
			continue
		}
		var h Histogram
		h[Cell(delta, cuts)]++

		native, zeros := buckets.Native(&h)
		switch {
		case delta == 0:
			if zeros != 1 || len(native) != 0 {
				t.Errorf("0 ns: got buckets %v and %d zeros", native, zeros)
			}
		case zeros != 0 || len(native) != 1 || native[0].Count != 1:
			t.Errorf("%d ns: got buckets %v and %d zeros", delta, native, zeros)
		case !isAtMost(delta, native[0].Index) || isAtMost(delta, native[0].Index-1):
			t.Errorf("%d ns: got native bucket %d", delta, native[0].Index)
		}

		cumulative, count := buckets.Classic(&h)
		if count != 1 {
			t.Errorf("%d ns: counted %d times", delta, count)
		}
		for i, bound := range buckets.Bounds() {
			exponent := int(math.Log2(bound))
			if want := isAtMost(delta, 8*exponent); (cumulative[i] == 1) != want {
				t.Errorf("%d ns: in the classic bucket up to %g s: %d, want %v", delta, bound, cumulative[i], want)
			}
		}
	}
}

func TestBucketsOfManyDeltasAddUp(t *testing.T) {
	buckets, cuts := NewBuckets(), Cuts()
	r := rand.New(rand.NewPCG(2, 2))
	var h Histogram
	const n = 100_000
	for range n {
		h[Cell(uint64(1e5*r.ExpFloat64()), cuts)]++
	}
	native, zeros := buckets.Native(&h)
	sum := zeros
	for _, b := range native {
		sum += b.Count
	}
	cumulative, count := buckets.Classic(&h)
	if sum != n || count != n || cumulative[len(cumulative)-1] != n {
		t.Errorf("native %d, classic %d, up to the last bound %d, want %d each", sum, count, cumulative[len(cumulative)-1], n)
	}
	if !slices.IsSorted(cumulative) {
		t.Errorf("cumulative counts fall: %v", cumulative)
	}
	if !slices.IsSortedFunc(native, func(a, b NativeBucket) int { return a.Index - b.Index }) {
		t.Errorf("native buckets are not in order: %v", native)
	}
}
