// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import "math"

// CellOctaves returns for each cell of a [Histogram] the octaves above 1 ns of its middle: log2
// of the middle in nanoseconds. Deltas of 0 ns count as 1 ns. No value is negative, and a cell
// is at most log2(17/16) = 0.0875 octaves wide, apart from those below 16 ns.
func CellOctaves() *[Cells]float64 {
	octaves := new([Cells]float64)
	for linear, cut := range Cuts() {
		first, last := linearBounds(linear)
		end := min(uint64(cut), last)
		octaves[2*linear] = middleOctaves(first, end)
		octaves[2*linear+1] = middleOctaves(min(end+1, last), last)
	}
	return octaves
}

func middleOctaves(first, last uint64) float64 {
	return math.Log2(max(1, (float64(first)+float64(last))/2))
}

// Octaves returns the sum of the octaves above 1 ns of all deltas, each taken as the middle of
// its cell. It does not fall while no count falls: each step of the sum is monotone, rounded or
// not.
func (b *Buckets) Octaves(h *Histogram) (sum float64) {
	for cell, n := range h {
		if n != 0 {
			sum += float64(n) * b.octaves[cell]
		}
	}
	return sum
}
