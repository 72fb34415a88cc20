// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package covert

import (
	"math"
	"math/cmplx"
	"slices"
)

const (
	// LeastDistance is the distance of symbols in ns below which they do not show. Interrupt
	// moderation, batches and busy hosts make deltas of preferred lengths below it, which have
	// the distribution of a channel.
	LeastDistance = 500_000
	// LeastPeriod is the shortest period of a phase in ns. It is above the usual ticks of
	// kernels, of 1 and 4 ms.
	LeastPeriod = 5_000_000
	// leastSpaced is the number of deltas of at least LeastDistance below which a window has
	// neither symbols nor a phase.
	leastSpaced = WindowLength / 4

	symbolCells = 64 // cells of the histogram between the first and the last octile

	// phaseMargin is the reach of the histogram for the phase beyond the quartiles, in
	// interquartile ranges.
	phaseMargin = 2
	phaseCells  = 4096
	// longestPeriod and shortestPeriod bound the searched periods, in interquartile ranges. A
	// longer period shows in the shape of any distribution; a shorter one is too fine for the
	// cells.
	longestPeriod, shortestPeriod = 1. / 4, 1. / 128
	// neighbours is the number of frequencies on each side of one whose scores tell what to
	// expect of it.
	neighbours = 24
	// frequentShare is the share of the deltas that makes a frequent delta.
	frequentShare = 3. / 8
)

// symbols returns the statistic of that name. Each delta is spread over LeastDistance.
func (m *Meter) symbols(sorted []uint32) float64 {
	if len(sorted) < leastSpaced {
		return 0
	}
	from, to := octile(sorted, 1), octile(sorted, octiles-1)
	if to-from < LeastDistance {
		return 0
	}
	m.sums = append(m.sums[:0], 0)
	for i, delta := range sorted {
		m.sums = append(m.sums, m.sums[i]+float64(delta))
	}
	// area is the integral of the number of deltas below x.
	area := func(x float64) float64 {
		n := firstFrom(sorted, x)
		return float64(n)*x - m.sums[n]
	}
	below := func(x float64) float64 {
		return (area(x+LeastDistance/2) - area(x-LeastDistance/2)) / LeastDistance
	}
	cells := m.cells[:symbolCells]
	edge := func(i int) float64 { return from + (to-from)*float64(i)/symbolCells }
	n := below(to) - below(from)
	for i := range cells {
		cells[i] = max(0, below(edge(i+1))-below(edge(i))) / n
	}
	return beyondOnePeak(cells)
}

// beyondOnePeak returns the least Σ p·log2(p/q) over the histograms q that rise up to a cell and
// fall from there.
func beyondOnePeak(p []float64) float64 {
	reversed := slices.Clone(p)
	slices.Reverse(reversed)
	rising, falling := beyondRising(p), beyondRising(reversed)
	least := math.Inf(1)
	for i := range rising {
		least = min(least, rising[i]+falling[len(p)-i])
	}
	return max(0, least)
}

// beyondRising returns, for each number of first cells, the least Σ p·log2(p/q) over the
// histograms q that do not fall. The nearest one pools adjacent violators (Ayer et al., 1955).
func beyondRising(p []float64) []float64 {
	type pool struct{ sum, cells, log float64 }
	var pools []pool
	least, own, nearest := make([]float64, 1, len(p)+1), 0., 0.
	for _, x := range p {
		last := pool{x, 1, weighedLog(x, x)}
		own += last.log
		nearest += last.log
		for n := len(pools) - 1; n >= 0 && pools[n].sum*last.cells >= last.sum*pools[n].cells; n-- {
			nearest -= pools[n].log + last.log
			last = pool{sum: pools[n].sum + last.sum, cells: pools[n].cells + last.cells}
			last.log = weighedLog(last.sum, last.sum/last.cells)
			nearest += last.log
			pools = pools[:n]
		}
		pools = append(pools, last)
		least = append(least, own-nearest)
	}
	return least
}

// weighedLog returns x·log2(y), and 0 for an x of 0.
func weighedLog(x, y float64) float64 {
	if x == 0 {
		return 0
	}
	return x * math.Log2(y)
}

// phase computes the Rayleigh scores from the spectrum of a fine histogram, whose cells are
// much smaller than the shortest period.
func (m *Meter) phase(sorted []uint32) (greatest float64, periods int) {
	if len(sorted) < leastSpaced {
		return 0, 0
	}
	sorted = m.withoutFrequent(sorted)
	first, third := octile(sorted, 2), octile(sorted, 6)
	spread := third - first
	shortest := max(LeastPeriod, shortestPeriod*spread)
	if longestPeriod*spread < shortest {
		return 0, 0
	}
	clear(m.cells)
	from, width := first-phaseMargin*spread, (1+2*phaseMargin)*spread
	n := 0.
	for _, delta := range sorted {
		if i := math.Floor((float64(delta) - from) / width * phaseCells); i >= 0 && i < phaseCells {
			m.cells[int(i)]++
			n++
		}
	}
	m.spectrum = m.fft.Coefficients(m.spectrum, m.cells)
	scores := m.cells[:len(m.spectrum)]
	for i, c := range m.spectrum {
		scores[i] = real(c*cmplx.Conj(c)) / n
	}
	lowest, highest := int(math.Ceil(width/(longestPeriod*spread))), int(width/shortest)
	m.near = append(m.near[:0], scores[max(1, lowest-neighbours):lowest+neighbours+1]...)
	slices.Sort(m.near)
	for i := lowest; i <= highest; i++ {
		if i > lowest {
			if gone := i - 1 - neighbours; gone >= 1 {
				at, _ := slices.BinarySearch(m.near, scores[gone])
				m.near = slices.Delete(m.near, at, at+1)
			}
			at, _ := slices.BinarySearch(m.near, scores[i+neighbours])
			m.near = slices.Insert(m.near, at, scores[i+neighbours])
		}
		// The scores of random phases are exponential: their mean is the median / ln 2.
		expected := m.near[len(m.near)/2] / math.Ln2
		greatest = max(greatest, scores[i]/max(1, expected))
	}
	return greatest, highest + 1 - lowest
}

// withoutFrequent returns sorted deltas without those around a frequent delta, if one is within
// two periods: for example acknowledgements after a round trip, which would drown the phase of
// the other deltas. If too few would be left, it returns all.
func (m *Meter) withoutFrequent(sorted []uint32) []uint32 {
	count, start := int(frequentShare*float64(len(sorted))), 0
	for i := range len(sorted) - count {
		if sorted[i+count]-sorted[i] < sorted[start+count]-sorted[start] {
			start = i
		}
	}
	from, to := sorted[start], sorted[start+count]
	if to-from > 2*LeastPeriod {
		return sorted
	}
	below := firstFrom(sorted, float64(from)-2*LeastPeriod)
	above := firstFrom(sorted, float64(to)+2*LeastPeriod+1)
	if below+len(sorted)-above < leastSpaced {
		return sorted
	}
	m.rest = append(append(m.rest[:0], sorted[:below]...), sorted[above:]...)
	return m.rest
}
