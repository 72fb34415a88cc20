// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leak

import (
	"math"
	"slices"

	"gonum.org/v1/gonum/stat"
)

const (
	// mostBatches is the number of batches at which neighbours are joined.
	mostBatches = 128
	// shortestBatch is the first length of a batch, in pairs.
	shortestBatch = 16
	// leastBatches is the number of batches from which drift is reported.
	leastBatches = 10
	// driftMark is the z from which a correlation is a drift.
	driftMark = 4.5
	// scales is the number of lengths of batches whose neighbours are compared: 16, 32, 64 pairs
	// and so on.
	scales = 20
)

// history has the course of the pairs, in at most 128 batches of the same length.
type history struct {
	batches []batch
	length  uint64 // pairs of a batch
	current batch
	effects [scales]neighbours
	short   batch // of 16 pairs
}

// neighbours compare the effects of consecutive batches of one length.
type neighbours struct {
	n, sum, squares, products float64
	last                      float64
}

// add takes the effect of the next batch. It returns the effect of the last two as one batch, if
// the number of batches is even.
func (s *neighbours) add(effect float64) (both float64, ok bool) {
	if s.n > 0 {
		s.products += s.last * effect
	}
	both = s.last + effect
	s.n++
	s.sum += effect
	s.squares += effect * effect
	s.last = effect
	return both, int(s.n)%2 == 0
}

// z returns the autocorrelation times the root of the number of batches; 0 for too few.
func (s *neighbours) z() float64 {
	variance := s.squares - s.sum*s.sum/s.n
	if s.n < leastBatches || !(variance > 0) {
		return 0
	}
	return (s.products - s.sum*s.sum/s.n) / variance * math.Sqrt(s.n)
}

// batch is a number of consecutive pairs.
type batch struct {
	pairs         uint64
	endNs         uint64  // time of the last request
	octaves       float64 // sum of log2 of all times
	effect        float64 // sum of log2 of the quotients of times
	logE, maxLogE float64 // at the end
}

func newHistory() history {
	return history{batches: make([]batch, 0, mostBatches), length: shortestBatch}
}

// add takes the logarithms of the times of a pair.
func (h *history) add(x, y float64, timeNs uint64) {
	h.current.pairs++
	h.current.endNs = timeNs
	h.current.octaves += x + y
	h.current.effect += y - x
	h.short.pairs++
	h.short.effect += y - x
	if h.short.pairs == shortestBatch {
		effect, ok := h.short.effect, true
		h.short = batch{}
		for i := 0; i < scales && ok; i++ {
			effect, ok = h.effects[i].add(effect)
		}
	}
}

func (h *history) isDue() bool { return h.current.pairs == h.length }

func (h *history) next(e evidence) {
	h.current.logE, h.current.maxLogE = e.logE, e.maxLogE
	h.batches = append(h.batches, h.current)
	h.current = batch{}
	if len(h.batches) < mostBatches {
		return
	}
	for i := range mostBatches / 2 {
		a, b := h.batches[2*i], h.batches[2*i+1]
		b.pairs += a.pairs
		b.octaves += a.octaves
		b.effect += a.effect
		h.batches[i] = b
	}
	h.batches = h.batches[:mostBatches/2]
	h.length *= 2
}

// drift returns Spearman's rank correlations of batches with their order: of the times and of the
// effect; and the greatest z of the effects of neighbours, over all lengths of batches. They are 0
// for too few batches.
func (h *history) drift() (times, effect, greatest float64) {
	for i := range h.effects {
		greatest = max(greatest, h.effects[i].z())
	}
	n := len(h.batches)
	if n < leastBatches {
		return 0, 0, greatest
	}
	order, octaves, effects := make([]float64, n), make([]float64, n), make([]float64, n)
	for i, b := range h.batches {
		order[i], octaves[i], effects[i] = float64(i), b.octaves, b.effect
	}
	return spearman(order, octaves), spearman(order, effects), greatest
}

// moves reports whether the effect has a drift.
func (h *history) moves(effect, greatest float64) bool {
	return max(math.Abs(effect)*math.Sqrt(float64(len(h.batches))), greatest) >= driftMark
}

// spearman returns the rank correlation; 0 if all of one are equal.
func spearman(x, y []float64) float64 {
	r := stat.Correlation(ranks(x), ranks(y), nil)
	if math.IsNaN(r) {
		return 0
	}
	return r
}

// ranks returns the ranks of values. Equal values share the mean of their ranks.
func ranks(values []float64) []float64 {
	sorted := slices.Sorted(slices.Values(values))
	of := make([]float64, len(values))
	for i, v := range values {
		first, _ := slices.BinarySearch(sorted, v)
		last := first
		for last+1 < len(sorted) && sorted[last+1] == v {
			last++
		}
		of[i] = float64(first+last) / 2
	}
	return of
}
