// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import (
	"math"
	"math/rand/v2"
	"testing"
)

// Every delta is within half a cell of the middle of its cell.
func TestOctavesOfACell(t *testing.T) {
	cuts, octaves := Cuts(), CellOctaves()
	random := rand.New(rand.NewPCG(1, 1))
	for range 1_000_000 {
		delta := uint64(math.Exp2(32 * random.Float64()))
		if delta >= 1<<32 {
			continue
		}
		got, want := octaves[Cell(delta, cuts)], math.Log2(float64(delta))
		if math.Abs(got-want) > math.Log2(17.0/16)/2+1e-3 {
			t.Fatalf("%d ns: %v octaves, want about %v", delta, got, want)
		}
		if delta < 1<<cellBits && got != want {
			t.Fatalf("%d ns: %v octaves, want %v", delta, got, want)
		}
	}
	if got := octaves[Cell(0, cuts)]; got != 0 {
		t.Errorf("0 ns: %v octaves, want 0", got)
	}
	previous := 0.0
	for cell := 0; cell < Cells; cell++ {
		if octaves[cell] < previous {
			t.Errorf("cell %d: %v octaves, less than the cell below it", cell, octaves[cell])
		}
		previous = octaves[cell]
	}
}

// The sum is a counter: it is that of the deltas, and does not fall when deltas are added, in
// whatever cell, also when the counts are too large for a float64 to show one more.
func TestOctavesNeverFall(t *testing.T) {
	buckets, cuts := NewBuckets(), Cuts()
	random := rand.New(rand.NewPCG(2, 1))
	for _, start := range []uint64{0, 1 << 55} {
		var h Histogram
		for cell := range h {
			h[cell] = start
		}
		before := buckets.Octaves(&h)
		for range 10_000 {
			h[Cell(uint64(math.Exp2(31*random.Float64())), cuts)]++
			now := buckets.Octaves(&h)
			if now < before {
				t.Fatalf("the sum fell from %v to %v", before, now)
			}
			before = now
		}
	}
	var h Histogram
	h[Cell(1, cuts)], h[Cell(2, cuts)], h[Cell(8, cuts)] = 7, 3, 2
	if got := buckets.Octaves(&h); got != 3*1+2*3 {
		t.Errorf("%v octaves, want 9", got)
	}
}
