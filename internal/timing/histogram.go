// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import (
	"math"
	"math/big"
	"math/bits"
	"slices"
)

// The shape of the histogram of deltas.
const (
	cellBits = 4 // log2 of the linear cells in an octave

	// LinearCells is the number of linear cells: one for each of the first 16 ns, then 16 for each
	// octave.
	LinearCells = 512
	// Cells is the number of counters. A linear cell has two: one for each side of the native
	// boundary inside it.
	Cells = 2 * LinearCells

	// NativeSchema is the schema of the native histogram, whose boundaries are 2^(i/8) seconds.
	NativeSchema = 3
	// The first classic boundary is 2^classicMin seconds, the last 2^classicMax seconds.
	classicMin, classicMax = -23, 1
)

// Histogram counts deltas by cell. Each native boundary ⌊10⁹·2^(i/8)⌋ ns, upper-inclusive, is
// an edge between two cells. Counts by native and by classic buckets are therefore exact.
type Histogram [Cells]uint64

// Cell returns the cell of a delta in nanoseconds. The delta must be below 2³²; cuts is the
// result of [Cuts].
func Cell(deltaNs uint64, cuts *[LinearCells]uint32) int {
	linear := linearCell(deltaNs)
	if deltaNs > uint64(cuts[linear]) {
		return 2*linear + 1
	}
	return 2 * linear
}

func linearCell(deltaNs uint64) int {
	if deltaNs < 1<<cellBits {
		return int(deltaNs)
	}
	octave := bits.Len64(deltaNs) - 1 - cellBits
	return (octave+1)<<cellBits | int(deltaNs>>octave&(1<<cellBits-1))
}

// linearBounds returns the smallest and the largest delta of a linear cell, in nanoseconds.
func linearBounds(linear int) (first, last uint64) {
	if linear < 1<<cellBits {
		return uint64(linear), uint64(linear)
	}
	octave := linear>>cellBits - 1
	first = uint64(1<<cellBits|linear&(1<<cellBits-1)) << octave
	return first, first + 1<<octave - 1
}

// NativeBound returns ⌊10⁹·2^(i/8)⌋, the upper bound of native bucket i in nanoseconds. It is
// exact.
func NativeBound(i int) uint64 {
	// 10⁹·2^(i/8) is the eighth root of 10⁷²·2^i. A root of a floor is the floor of the root.
	v := new(big.Int).Exp(big.NewInt(10), big.NewInt(72), nil)
	if i >= 0 {
		v.Lsh(v, uint(i))
	} else {
		v.Rsh(v, uint(-i))
	}
	return v.Sqrt(v).Sqrt(v).Sqrt(v).Uint64()
}

// Cuts returns for each linear cell the native boundary inside it: the largest delta in
// nanoseconds on the lower side, or the largest uint32 if the cell has no boundary. A linear
// cell is too narrow for two boundaries.
func Cuts() *[LinearCells]uint32 {
	cuts := new([LinearCells]uint32)
	for i := range cuts {
		cuts[i] = math.MaxUint32
	}
	for i := nativeMin; i <= nativeMax; i++ {
		bound := NativeBound(i)
		linear := linearCell(bound)
		if _, last := linearBounds(linear); bound < last {
			cuts[linear] = uint32(bound)
		}
	}
	return cuts
}

// The native buckets in use: from the first that ends at or above 1 ns to that of MaxDelta.
const (
	nativeMin = -8 * 30
	nativeMax = 9
)

// Buckets maps the cells of a [Histogram] to native and classic buckets.
type Buckets struct {
	native  [Cells]int // native bucket; unused for cell 0, the deltas of 0 ns
	classic [Cells]int // index into bounds; len(bounds) above the last bound
	bounds  []float64
	octaves *[Cells]float64
}

// NewBuckets computes the buckets of every cell.
func NewBuckets() *Buckets {
	b := &Buckets{octaves: CellOctaves()}
	for e := classicMin; e <= classicMax; e++ {
		b.bounds = append(b.bounds, math.Ldexp(1, e))
	}
	var upper []uint64
	for i := nativeMin; i <= nativeMax; i++ {
		upper = append(upper, NativeBound(i))
	}
	for linear, cut := range Cuts() {
		first, last := linearBounds(linear)
		b.assign(2*linear, first, upper)
		b.assign(2*linear+1, min(uint64(cut)+1, last), upper)
	}
	return b
}

// assign sets the buckets of a cell that contains a delta of ns nanoseconds. upper holds the
// bounds of the native buckets from nativeMin on. Every eighth bound, counted from bucket 0, is
// a power of two seconds.
func (b *Buckets) assign(cell int, ns uint64, upper []uint64) {
	native, _ := slices.BinarySearch(upper, ns)
	b.native[cell] = nativeMin + native
	for b.classic[cell] < len(b.bounds) && upper[8*(classicMin+b.classic[cell])-nativeMin] < ns {
		b.classic[cell]++
	}
}

// Bounds returns the upper bounds of the classic buckets in seconds, without +Inf. All are
// powers of two. The caller must not change the slice.
func (b *Buckets) Bounds() []float64 { return b.bounds }

// Classic returns the cumulative count at each of [Buckets.Bounds], and the count of all
// deltas.
func (b *Buckets) Classic(h *Histogram) (cumulative []uint64, count uint64) {
	cumulative = make([]uint64, len(b.bounds))
	for cell, n := range h {
		count += n
		if i := b.classic[cell]; i < len(cumulative) {
			cumulative[i] += n
		}
	}
	for i := 1; i < len(cumulative); i++ {
		cumulative[i] += cumulative[i-1]
	}
	return cumulative, count
}

// NativeBucket is one populated bucket of a native histogram of schema [NativeSchema].
type NativeBucket struct {
	Index int
	Count uint64
}

// Native returns the populated buckets in ascending order of their index, and the number of
// deltas of 0 ns, which belong to the zero bucket.
func (b *Buckets) Native(h *Histogram) (buckets []NativeBucket, zeros uint64) {
	for cell, n := range h {
		switch {
		case n == 0:
		case cell < 2:
			zeros += n
		case len(buckets) > 0 && buckets[len(buckets)-1].Index == b.native[cell]:
			buckets[len(buckets)-1].Count += n
		default:
			buckets = append(buckets, NativeBucket{b.native[cell], n})
		}
	}
	return buckets, zeros
}
