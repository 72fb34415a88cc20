// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leak

import "math"

// class are the responses of one class.
type class struct {
	sumNs           uint64
	times           histogram
	linear, octaves moments
}

func (c *class) add(ns uint64, octave float64) {
	c.sumNs += ns
	c.times.add(ns)
	c.linear.add(float64(ns))
	c.octaves.add(octave)
}

// moments are the central moments of numbers (Pébay, 2008).
type moments struct {
	n, mean, m2, m3, m4 float64
}

func (m *moments) add(v float64) {
	before := m.n
	m.n++
	d := v - m.mean
	dn := d / m.n
	term := d * dn * before
	m.mean += dn
	m.m4 += term*dn*dn*(m.n*m.n-3*m.n+3) + 6*dn*dn*m.m2 - 4*dn*m.m3
	m.m3 += term*dn*(m.n-2) - 3*dn*m.m2
	m.m2 += term
}

// welch returns Welch's t of the first order, of means, or of the second, of variances (Schneider &
// Moradi, 2015). It is positive if that of y is larger, and 0 for too few or equal numbers.
func welch(order int, x, y moments) float64 {
	if min(x.n, y.n) < 2 {
		return 0
	}
	difference := y.mean - x.mean
	variance := x.m2/(x.n-1)/x.n + y.m2/(y.n-1)/y.n
	if order == 2 {
		ofX, ofY := x.m2/x.n, y.m2/y.n
		difference = ofY - ofX
		variance = (x.m4/x.n-ofX*ofX)/x.n + (y.m4/y.n-ofY*ofY)/y.n
	}
	if !(variance > 0) {
		return 0
	}
	return difference / math.Sqrt(variance)
}

// mannWhitney returns the z of the test of Mann and Whitney (1947), and the probability that a time
// of y is longer than one of x, half of equal times included. Times in one cell count as equal.
func mannWhitney(x, y *histogram) (z, probability float64) {
	if x.count == 0 || y.count == 0 {
		return 0, 0.5
	}
	below, u, ties := 0., 0., 0.
	for cell, ofX := range x.cells {
		x, y := float64(ofX), float64(y.cells[cell])
		u += y * (below + x/2)
		below += x
		ties += (x+y)*(x+y)*(x+y) - (x + y)
	}
	nx, ny := float64(x.count), float64(y.count)
	n := nx + ny
	variance := nx * ny / 12 * (n + 1 - ties/(n*(n-1)))
	if variance > 0 {
		z = (u - nx*ny/2) / math.Sqrt(variance)
	}
	return z, u / (nx * ny)
}
