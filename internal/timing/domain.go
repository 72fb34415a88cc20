// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import "math"

// Domain is the scale on which deltas are judged. A baseline takes whole samples in the unit of
// its domain: nanoseconds or 2⁻²⁰ octaves. An octave is a factor of two.
type Domain string

// The domains. The zero value is equivalent to Linear.
const (
	Linear Domain = "linear" // the delta itself
	Log2   Domain = "log2"   // the logarithm of the delta, for traffic whose deltas vary by factors
)

// sample returns a delta in units of the domain.
func (d Domain) sample(deltaNs uint64) uint64 {
	if d == Log2 {
		return logarithm(deltaNs)
	}
	return deltaNs
}

// unit returns the unit of the domain in nanoseconds or octaves.
func (d Domain) unit() float64 {
	if d == Log2 {
		return 1.0 / (1 << log2Shift)
	}
	return 1
}

// leastSquared returns twelve times the smallest variance in units². In the linear domain that
// is 1, from rounding to whole nanoseconds.
func (d Domain) leastSquared(meanQ16 uint64) uint64 {
	if d == Log2 {
		return leastSquaredLog2(meanQ16)
	}
	return 1
}

// MeanNs returns the mean of a baseline in nanoseconds: the arithmetic mean of the deltas in
// the linear domain, the geometric mean in the log2 domain.
func (d Domain) MeanNs(s State) float64 {
	if d == Log2 {
		return math.Exp2(s.mean() * d.unit())
	}
	return s.mean()
}

// mean returns the mean in units.
func (s State) mean() float64 { return math.Ldexp(float64(s.MeanQ16), -meanShift) }

// Variance returns the sample variance of a baseline: in ns², or in octaves² in the log2
// domain. It is at least the variance that rounding to whole nanoseconds causes: 1/12 ns², or
// its equivalent at the mean. It is NaN for fewer than two samples.
func (d Domain) Variance(s State) float64 {
	if s.N < 2 {
		return math.NaN()
	}
	least := float64(d.leastSquared(s.MeanQ16)) / 12
	return math.Max(s.M2.Float64()/float64(s.N-1), least) * d.unit() * d.unit()
}

// Score returns the t-score of a delta in nanoseconds against the baseline s, to which the
// delta has not been added. It is the studentised prediction residual (x − mean)/(s·√(1+1/n)).
// For independent normal samples it has Student's t-distribution with n−1 degrees of freedom.
// It is negative for an early packet, and NaN for fewer than two samples.
func (d Domain) Score(deltaNs uint64, s State) float64 {
	n := float64(s.N)
	return (float64(d.sample(deltaNs)) - s.mean()) * d.unit() / math.Sqrt(d.Variance(s)*(1+1/n))
}
