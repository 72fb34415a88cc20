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
	"slices"

	"gonum.org/v1/gonum/dsp/fourier"
	"gonum.org/v1/gonum/stat"
)

// WindowLength is the number of deltas in a window.
const WindowLength = 2000

const (
	entropyCells = 16 // cells per octave of the histogram of all deltas
	octiles      = 8  // cells of the bigram, in each direction

	// shifts is the number of bigrams, each with its cells shifted by a part of a cell.
	shifts      = 4
	bigramCells = octiles + 1
)

// Statistics describe a window. Entropies are in bits.
type Statistics struct {
	// Symbols is what the histogram between the first and the last octile says, in bits per
	// delta, beyond the nearest histogram with a single peak. It is high if deltas encode
	// symbols, because the histogram then has several peaks and gaps. Only deltas of at least
	// LeastDistance count, and only what is as wide as that shows. Symbols is 0 if there are
	// too few such deltas.
	Symbols float64
	// Phase is the highest whitened Rayleigh score of the deltas over periods of 1/128 to 1/4
	// of their interquartile range that are not below LeastPeriod. The score is n·R², where R
	// is the length of the mean of n unit vectors, one per delta, whose angle is the phase of
	// the delta in the period. It is divided by its expectation from the scores of similar
	// frequencies, if that is above 1. Phase is 0 if there are no such periods.
	Phase float64
	// Periods is the number of periods over which Phase is the maximum.
	Periods int
	// Entropy is the entropy of the histogram of all deltas, with 16 cells per octave.
	Entropy float64
	// Information is the mutual information of consecutive deltas, each in a cell of an eighth
	// of the deltas.
	Information float64
	// Autocorrelation is the correlation of the ranks of consecutive deltas.
	Autocorrelation float64
}

// Meter computes statistics and judges them. It is not safe for concurrent use.
type Meter struct {
	sorted   []uint32
	rest     []uint32 // without those around a frequent delta
	sums     []float64
	cells    []float64
	keys     []uint64
	ranks    []float64
	near     []float64
	fft      *fourier.FFT
	spectrum []complex128
	limits   [2 * pastWindow]float64 // cache of limit, by the number of windows
}

// NewMeter returns a Meter.
func NewMeter() *Meter {
	return &Meter{cells: make([]float64, phaseCells), fft: fourier.NewFFT(phaseCells)}
}

// Measure returns the statistics of 2 to 65,536 deltas in nanoseconds, in the order of the
// packets. A delta of 0 counts as 1.
func (m *Meter) Measure(deltas []uint32) Statistics {
	m.rank(deltas)
	spaced := m.sorted[firstFrom(m.sorted, LeastDistance):]
	s := Statistics{Symbols: m.symbols(spaced), Entropy: m.entropy(), Information: m.information()}
	s.Phase, s.Periods = m.phase(spaced)
	if a := stat.Correlation(m.ranks[1:], m.ranks[:len(m.ranks)-1], nil); !math.IsNaN(a) {
		s.Autocorrelation = a
	}
	return s
}

// octile returns the i-th octile of sorted values.
func octile(sorted []uint32, i int) float64 { return float64(sorted[i*(len(sorted)-1)/octiles]) }

// firstFrom returns the index of the first sorted value that is at least as high.
func firstFrom(sorted []uint32, least float64) int {
	i, _ := slices.BinarySearch(sorted, uint32(max(0, min(math.Ceil(least), math.MaxUint32))))
	return i
}

// rank sorts the deltas and ranks them from 0. The ranks of equal deltas are in a scrambled
// order, which is the same in each run: the order of the packets would be information of its
// own, and with a common rank they would move between cells together.
func (m *Meter) rank(deltas []uint32) {
	m.keys, m.sorted = m.keys[:0], m.sorted[:0]
	for i, delta := range deltas {
		m.keys = append(m.keys, uint64(max(delta, 1))<<32|uint64(scramble(uint32(i))&^math.MaxUint16|uint32(i)))
	}
	slices.Sort(m.keys)
	m.ranks = append(m.ranks[:0], make([]float64, len(deltas))...)
	for rank, key := range m.keys {
		m.sorted = append(m.sorted, uint32(key>>32))
		m.ranks[key&math.MaxUint16] = float64(rank)
	}
}

// scramble returns another number for each number, without an apparent order: the finalizer of
// MurmurHash3.
func scramble(x uint32) uint32 {
	x = (x ^ x>>16) * 0x85ebca6b
	x = (x ^ x>>13) * 0xc2b2ae35
	return x ^ x>>16
}

func (m *Meter) entropy() float64 {
	cells := m.cells[:32*entropyCells+1]
	clear(cells)
	for _, delta := range m.sorted {
		cells[int(math.Log2(float64(delta))*entropyCells)]++
	}
	return entropyOf(cells, float64(len(m.sorted)))
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
// the next one. It is the mean over shifted cells, so that it does not jump when a frequent
// delta moves from one cell to the next.
func (m *Meter) information() float64 {
	sum, n := 0., float64(len(m.ranks)-1)
	for shift := range shifts {
		var pairs [bigramCells * bigramCells]float64
		var before, after [bigramCells]float64
		last := 0
		for i, rank := range m.ranks {
			cell := int(rank*octiles/float64(len(m.ranks)) + float64(shift)/shifts)
			if i > 0 {
				pairs[last*bigramCells+cell]++
				before[last]++
				after[cell]++
			}
			last = cell
		}
		sum += entropyOf(before[:], n) + entropyOf(after[:], n) - entropyOf(pairs[:], n)
	}
	return sum / shifts
}
