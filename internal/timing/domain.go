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

// Variance returns the variance that a baseline estimates, s²: in ns², or in octaves² in the log2
// domain. It is at least the variance that rounding to whole nanoseconds causes: 1/12 ns², or its
// equivalent at the mean. It is NaN for fewer than two samples.
func (p Params) Variance(s State) float64 {
	if s.N < 2 {
		return math.NaN()
	}
	m2 := s.M2.Float64()
	if s.N >= p.MinSamples {
		m2 *= p.correction()
	}
	least := float64(p.Domain.leastSquared(s.MeanQ16)) / 12
	return math.Max(m2/float64(s.N-1), least) * p.Domain.unit() * p.Domain.unit()
}

// Score returns the t-score of a delta in nanoseconds against the baseline s, to which the
// delta has not been added. It is the studentised prediction residual (x − mean)/(s·√(1+1/n)).
// For independent normal samples that are not clipped it has Student's t-distribution with n−1
// degrees of freedom. It is negative for an early packet, and NaN for fewer than two samples.
func (p Params) Score(deltaNs uint64, s State) float64 {
	n := float64(s.N)
	return (float64(p.Domain.sample(deltaNs)) - s.mean()) * p.Domain.unit() / math.Sqrt(p.Variance(s)*(1+1/n))
}

// Corrected returns a baseline with an M2 that is corrected for clipping, M2·k: M2/(n−1) is the
// variance that the baseline estimates. Without a clip or before MinSamples, it is s.
func (p Params) Corrected(s State) State {
	if s.N >= p.MinSamples {
		s.M2 = s.M2.Mul64(uint64(p.VarianceFactor())).nearest(12 << factorShift)
	}
	return s
}

// Clipped returns the baseline that the result of [Params.Corrected] belongs to.
func (p Params) Clipped(s State) State {
	if s.N >= p.MinSamples {
		s.M2 = s.M2.Mul64(12 << factorShift).nearest(uint64(p.VarianceFactor()))
	}
	return s
}
