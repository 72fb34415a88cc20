// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package covert looks for covert timing channels in windows of inter-arrival times (deltas).
// The sender of a covert timing channel encodes a message in the times at which packets leave.
//
// [Meter.Measure] computes statistics of one window. [Meter.Judge] scores them against limits
// that random traffic keeps, and against the earlier windows of the flow. [Judge] does both for
// the windows of all flows, and counts alarms by device.
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
	entropyCells = 16 // cells per octave of the histogram of all deltas
	symbolCells  = 32 // cells of the histogram between the quartiles
	octiles      = 8  // cells of the bigram, in each direction

	// phaseMargin is the reach of the histogram for the phase beyond the quartiles, in
	// interquartile ranges.
	phaseMargin = 2
	phaseCells  = 4096
	// longestPeriod and shortestPeriod bound the searched periods, in interquartile ranges. A
	// longer period shows in the shape of any distribution; a shorter one is too fine for the
	// cells.
	longestPeriod, shortestPeriod = 1. / 16, 1. / 128
	// minPhaseRange is the minimum interquartile range in ns. Below it the shortest period
	// would be less than 64 ticks of a nanosecond clock.
	minPhaseRange = 8192
)

// Statistics describe a window. Entropies are in bits. Logarithms of deltas are binary.
type Statistics struct {
	// Symbols is the difference, in bits, between the entropy of a uniform histogram and that
	// of the middle half of the deltas, in 32 cells between the quartiles of their logarithms.
	// It is high if deltas encode symbols, because the histogram then has gaps.
	Symbols float64
	// Phase is the highest Rayleigh score of the deltas over periods of 1/128 to 1/16 of their
	// interquartile range. The score is n·R², where R is the length of the mean of n unit
	// vectors, one per delta, whose angle is the phase of the delta in the period. Phase is 0
	// if the interquartile range is too small.
	Phase float64
	// Periods is the number of periods over which Phase is the maximum.
	Periods int
	// Entropy is the entropy of the histogram of all deltas, with 16 cells per octave.
	Entropy float64
	// Information is the mutual information of consecutive deltas, each in one of 8 cells
	// between the octiles.
	Information float64
	// Autocorrelation is the correlation of the logarithms of consecutive deltas.
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
	limits   [2 * pastWindow]float64 // cache of limit, by the number of windows
}

// NewMeter returns a Meter.
func NewMeter() *Meter {
	return &Meter{cells: make([]float64, phaseCells), fft: fourier.NewFFT(phaseCells)}
}

// Measure returns the statistics of at least two deltas in nanoseconds, in the order of the
// packets. A delta of 0 counts as 1.
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

// octile returns the i-th octile of sorted values.
func octile(sorted []uint32, i int) float64 { return float64(sorted[i*(len(sorted)-1)/octiles]) }

func (m *Meter) symbols(first, third float64) float64 {
	if third-first < symbolCells { // cells would be finer than the clock
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

// entropyOf returns the entropy, in bits, of a histogram of n values. It divides the cells by
// n.
func entropyOf(cells []float64, n float64) float64 {
	for i := range cells {
		cells[i] /= n
	}
	return stat.Entropy(cells) / math.Ln2
}

// information returns Σ p(i,j)·log2(p(i,j)/(p(i)·p(j))) over the cells i of a delta and j of
// the next one.
func (m *Meter) information(deltas []uint32) float64 {
	var edges [octiles - 1]float64
	for i := range edges {
		edges[i] = octile(m.sorted, i+1)
	}
	m.eighths = m.eighths[:0]
	for _, delta := range deltas {
		// Equal deltas share a cell, so with few distinct deltas the cells are not equally
		// full.
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

// phase computes the Rayleigh scores from the spectrum of a fine histogram, whose cells are
// much smaller than the shortest period.
func (m *Meter) phase(first, third float64) (greatest float64, periods int) {
	spread := third - first
	if spread < minPhaseRange {
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
