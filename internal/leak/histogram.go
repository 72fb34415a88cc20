// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leak

import "math/bits"

const (
	cellBits = 7 // log2 of the number of cells of an octave
	octave   = 1 << cellBits
	// LongestNs is the longest response time, 18 minutes. Longer ones count as this.
	LongestNs      = 1<<40 - 1
	histogramCells = (40 - cellBits + 1) * octave
)

// histogram counts whole numbers, exactly up to 127 and then in 128 cells an octave.
type histogram struct {
	count uint64
	cells [histogramCells]uint64
}

func (h *histogram) add(v uint64) {
	h.count++
	h.cells[cellOf(v)]++
}

func cellOf(v uint64) int {
	v = min(v, LongestNs)
	shift := max(bits.Len64(v)-cellBits-1, 0)
	return shift<<cellBits + int(v>>shift)
}

// bounds returns the least and the greatest number of a cell.
func bounds(cell int) (least, greatest uint64) {
	if cell < octave {
		return uint64(cell), uint64(cell)
	}
	shift := cell>>cellBits - 1
	least = uint64(octave+cell%octave) << shift
	return least, least + 1<<shift - 1
}

// atRank returns the cell of the number of that rank, from 1 to count.
func (h *histogram) atRank(rank uint64) int {
	for cell, n := range h.cells {
		if rank <= n {
			return cell
		}
		rank -= n
	}
	return histogramCells - 1
}

// quantile returns about the quantile p of the numbers; 0 without any. Within a cell the numbers
// count as evenly spread.
func (h *histogram) quantile(p float64) float64 {
	if h.count == 0 {
		return 0
	}
	below := p * float64(h.count)
	for cell, n := range h.cells {
		if n > 0 && below <= float64(n) {
			least, greatest := bounds(cell)
			if least == greatest {
				return float64(least)
			}
			return float64(least) - 0.5 + below/float64(n)*float64(greatest-least+1)
		}
		below -= float64(n)
	}
	return LongestNs
}
