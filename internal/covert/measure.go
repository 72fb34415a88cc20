// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package covert looks for covert timing channels in windows of inter-arrival times: for messages that a sender puts into
// when packets leave, and not into what is in them.
//
// [Meter.Measure] computes statistics of one window. [Meter.Judge] judges them: by limits that random traffic keeps, and by what
// was usual in the earlier windows of the flow.
package covert

import (
	"math"
	"math/cmplx"
	"slices"
	"sort"

	"gonum.org/v1/gonum/dsp/fourier"
	"gonum.org/v1/gonum/stat"
)

// WindowLength is the number of deltas in a window.
const WindowLength = 2000

const (
	entropyCells = 16 // of the histogram, in an octave
	symbolCells  = 32 // of the histogram between the quartiles
	octiles      = 8  // cells of the bigram, in each direction

	// The histogram whose spectrum is searched for a phase reaches so many interquartile ranges beyond the quartiles.
	phaseMargin = 2
	phaseCells  = 4096
	// Periods that are searched, as parts of the interquartile range. Longer ones are seen in the shape of any
	// distribution, shorter ones not in the cells.
	longestPeriod, shortestPeriod = 1. / 16, 1. / 128
	// leastPhaseRange is the interquartile range, in ns, below which the shortest period would be less than 64 ticks of
	// a clock of nanoseconds.
	leastPhaseRange = 8192
)

// Statistics describe a window. Entropies are in bits, and logarithms of deltas binary.
type Statistics struct {
	// Symbols is the entropy that the histogram of the middle half of the deltas, 32 cells between the quartiles of their
	// logarithms, lacks to that of an even one. Where deltas stand for symbols there are gaps between these, and it is high.
	Symbols float64
	// Phase is the greatest Rayleigh score of the deltas over periods of 1/128 to 1/16 of their interquartile range: n·R²,
	// where R is the length of the mean of the n unit vectors that point to a delta's phase in the period. 0 where the
	// range is too small to tell.
	Phase float64
	// Periods is the number of periods that Phase is the greatest of.
	Periods int
	// Entropy is that of the histogram of all deltas, with 16 cells in an octave.
	Entropy float64
	// Information is the mutual information of consecutive deltas, each in one of 8 cells between their octiles.
	Information float64
	// Autocorrelation is that of consecutive logarithms.
	Autocorrelation float64
}

// Meter computes statistics and judges them. It is not safe for concurrent use.
type Meter struct {
	sorted   []uint32
	logs     []float64
	cells    []float64
	eighths  []int
	fft      *fourier.FFT
	spectrum []complex128
	limits   [2 * pastWindow]float64 // by the number of windows, once they are known
}

// NewMeter returns a Meter.
func NewMeter() *Meter {
	return &Meter{cells: make([]float64, phaseCells), fft: fourier.NewFFT(phaseCells)}
}

// Measure returns the statistics of at least two deltas in nanoseconds, in their order. A delta of 0 counts as 1.
func (m *Meter) Measure(deltas []uint32) Statistics {
	m.sorted = m.sorted[:0]
	m.logs = m.logs[:0]
	for _, delta := range deltas {
		m.sorted = append(m.sorted, max(delta, 1))
		m.logs = append(m.logs, math.Log2(float64(max(delta, 1))))
	}
	slices.Sort(m.sorted)
	first, third := octile(m.sorted, 2), octile(m.sorted, 6)
	s := Statistics{
		Symbols:     m.symbols(first, third),
		Entropy:     m.entropy(),
		Information: m.information(deltas),
	}
	s.Phase, s.Periods = m.phase(first, third)
	if a := stat.Correlation(m.logs[1:], m.logs[:len(m.logs)-1], nil); !math.IsNaN(a) {
		s.Autocorrelation = a
	}
	return s
}

// octile returns the value below which are i eighths of sorted ones.
func octile(sorted []uint32, i int) float64 { return float64(sorted[i*(len(sorted)-1)/octiles]) }

func (m *Meter) symbols(first, third float64) float64 {
	if third-first < symbolCells { // then cells would be finer than the clock
		return 0
	}
	cells := m.cells[:symbolCells]
	clear(cells)
	from, to := math.Log2(first), math.Log2(third)
	n := 0.
	for _, y := range m.logs {
		if y >= from && y <= to {
			cells[min(int((y-from)/(to-from)*symbolCells), symbolCells-1)]++
			n++
		}
	}
	return math.Log2(symbolCells) - entropyOf(cells, n)
}

func (m *Meter) entropy() float64 {
	cells := m.cells[:32*entropyCells+1]
	clear(cells)
	for _, y := range m.logs {
		cells[int(y*entropyCells)]++
	}
	return entropyOf(cells, float64(len(m.logs)))
}

// entropyOf returns the entropy, in bits, of a histogram of n values, which it changes.
func entropyOf(cells []float64, n float64) float64 {
	for i := range cells {
		cells[i] /= n
	}
	return stat.Entropy(cells) / math.Ln2
}

// information returns Σ p(i,j)·log2(p(i,j)/(p(i)·p(j))) over the cells of a delta and its successor.
func (m *Meter) information(deltas []uint32) float64 {
	var edges [octiles - 1]float64
	for i := range edges {
		edges[i] = octile(m.sorted, i+1)
	}
	m.eighths = m.eighths[:0]
	for _, delta := range deltas {
		// Equal deltas are in the same cell, so that the cells of few different ones are not equally full.
		m.eighths = append(m.eighths, sort.SearchFloat64s(edges[:], float64(max(delta, 1))))
	}
	var pairs [octiles * octiles]float64
	var before, after [octiles]float64
	for i, cell := range m.eighths[1:] {
		pairs[m.eighths[i]*octiles+cell]++
		before[m.eighths[i]]++
		after[cell]++
	}
	n := float64(len(m.eighths) - 1)
	return entropyOf(before[:], n) + entropyOf(after[:], n) - entropyOf(pairs[:], n)
}

// phase computes the Rayleigh scores as the spectrum of a fine histogram, whose cells are a small part of the shortest
// period.
func (m *Meter) phase(first, third float64) (greatest float64, periods int) {
	spread := third - first
	if spread < leastPhaseRange {
		return 0, 0
	}
	clear(m.cells)
	from, width := first-phaseMargin*spread, (1+2*phaseMargin)*spread
	n := 0.
	for _, delta := range m.sorted {
		if i := math.Floor((float64(delta) - from) / width * phaseCells); i >= 0 && i < phaseCells {
			m.cells[int(i)]++
			n++
		}
	}
	m.spectrum = m.fft.Coefficients(m.spectrum, m.cells)
	lowest, highest := int(width/(longestPeriod*spread)), int(width/(shortestPeriod*spread))
	for _, c := range m.spectrum[lowest : highest+1] {
		greatest = max(greatest, real(c*cmplx.Conj(c))/n)
	}
	return greatest, highest + 1 - lowest
}
