// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package timing holds the statistics of packet timing: the online baseline of a flow, the
// score of a packet against its baseline, and the histogram of deltas.
//
// A delta is an inter-arrival time in whole nanoseconds. This package is the reference model of
// the arithmetic in bpf/xdp/baseline.h, bpf/xdp/calibration.h, bpf/xdp/log2.h and
// bpf/xdp/histogram.h: for the same deltas the kernel program and this package compute the same
// bits. No function reads a clock.
package timing

import (
	"fmt"
	"math"
	"math/bits"
)

// The limits of the arithmetic.
const (
	MaxDelta      = 1 << 31 // ns; the largest delta that can enter a baseline
	MaxWindow     = 1 << 24 // samples; more would round beyond the margin of the shortcut
	MinMinSamples = 2       // a variance needs two samples

	meanShift = 16 // fraction bits of a mean
	clipShift = 4  // log2 of the squared deviation, in variances, at which a sample is clipped
)

// State is the baseline of a flow or of a device. Its unit is that of the [Domain]: nanoseconds
// in the linear domain, 2⁻²⁰ octaves in the log2 domain.
type State struct {
	N       uint64  // samples, halved when they reach twice Params.Window
	MeanQ16 uint64  // mean of the samples, in 2⁻¹⁶ units
	M2      Uint128 // sum of squared deviations from the mean, in units²
}

// Decision is the result of testing one delta against a baseline.
type Decision uint8

// The decisions.
const (
	TooFewSamples Decision = iota // not tested: fewer than Params.MinSamples
	Judged                        // |t| is below the threshold
	Early                         // |t| reaches the threshold, the delta is below the mean
	Late                          // |t| reaches the threshold, the delta is not below the mean
)

// Params are the constants of a baseline.
type Params struct {
	Threshold  float64 // |t| at which a delta is flagged
	MinSamples uint64  // samples a baseline needs before it judges a delta
	Window     uint64  // samples; at twice this number the samples and M2 are halved
	Domain     Domain  // scale on which deltas are judged
	Calibrate  float64 // largest fraction of judged packets that become events; 0: no limit
}

// ParamError is the error of a parameter outside its range.
type ParamError struct {
	Param string // name of the field of Params
	text  string // the value, and its range
}

func (e *ParamError) Error() string { return e.text }

func invalid(param, format string, args ...any) error {
	return &ParamError{param, fmt.Sprintf(format, args...)}
}

// Validate returns a [ParamError] for the first value outside its range.
func (p Params) Validate() error {
	switch {
	case math.IsNaN(p.Threshold) || p.Threshold < 2 || p.Threshold > 1e6:
		return invalid("Threshold", "threshold %v is not between 2 and 1e6: below 2 ordinary traffic is flagged; the usual value is 4", p.Threshold)
	case p.MinSamples < MinMinSamples || p.MinSamples > MaxWindow:
		return invalid("MinSamples", "minimum of %d samples is not between %d and %d", p.MinSamples, MinMinSamples, MaxWindow)
	case p.Window < p.MinSamples || p.Window > MaxWindow:
		return invalid("Window", "window of %d samples is not between the minimum of samples (%d) and %d", p.Window, p.MinSamples, MaxWindow)
	}
	return validateCalibrate(p.Calibrate)
}

// ThresholdSquared returns the square of the threshold as mantissa · 2^exponent. The mantissa
// has 32 bits. A threshold of 0, at which every delta is flagged, gives 0, 0.
func (p Params) ThresholdSquared() (mantissa uint32, exponent int32) {
	if p.Threshold == 0 {
		return 0, 0
	}
	fraction, exp := math.Frexp(p.Threshold * p.Threshold)
	return uint32(math.Ldexp(fraction, 32)), int32(exp) - 32
}

// ShortcutShift returns log2 of the largest power of two that is at most the square of the
// threshold and at most the square of the clipping deviation. A deviation whose square is below
// that many variances is neither flagged nor clipped, so the kernel program tests for this case
// first. ShortcutShift returns −1 for a threshold below 1, which allows no shortcut.
func (p Params) ShortcutShift() int32 {
	squared := p.Threshold * p.Threshold
	if squared < 1 {
		return -1
	}
	_, exp := math.Frexp(squared)
	return int32(min(exp-1, clipShift))
}

// ShortcutFactor returns 2^ShortcutShift, or 0 if there is no shortcut.
func (p Params) ShortcutFactor() uint32 {
	if shift := p.ShortcutShift(); shift >= 0 {
		return 1 << shift
	}
	return 0
}

// Observe tests a delta of at most [MaxDelta] ns against the baseline s, then adds the delta to
// s. Once s has MinSamples samples, the added deviation is clipped to four standard deviations:
// an outlier cannot hide the next outlier, and the baseline still learns a new level.
func (p Params) Observe(s *State, deltaNs uint64) Decision {
	x := p.Domain.sample(deltaNs) << meanShift
	early := x < s.MeanQ16
	deviation := x - s.MeanQ16
	if early {
		deviation = s.MeanQ16 - x
	}
	decision := TooFewSamples
	if s.N >= p.MinSamples {
		decision = Judged
		variance := newVariance(s.N, s.M2, p.Domain.leastSquared(s.MeanQ16))
		if p.reaches(deviation, variance, s.N) {
			decision = Late
			if early {
				decision = Early
			}
		}
		if outside(deviation, s.N, s.M2, clipShift) {
			deviation = min(deviation, variance.clipLimit())
		}
	}
	p.update(s, deviation, early)
	return decision
}

// update is one step of Welford's method (1962) with a rounded division: mean += d/n and M2 +=
// d·d′, where d and d′ are the deviations from the mean before and after the step, rounded to
// whole units.
func (p Params) update(s *State, deviation uint64, early bool) {
	const half = 1 << (meanShift - 1)
	s.N++
	step := (deviation + s.N/2) / s.N
	if early {
		s.MeanQ16 -= step
	} else {
		s.MeanQ16 += step
	}
	d := (deviation + half) >> meanShift
	dNext := (deviation - step + half) >> meanShift
	s.M2 = s.M2.Add(Uint128{0, d * dNext})
	if s.N == 2*p.Window {
		s.N = p.Window
		s.M2 = s.M2.Rsh(1)
	}
}

// outside reports whether deviation²·(n−1) ≥ 2^shift · M2, with the deviation rounded up to
// whole units. The comparison is exact.
func outside(deviation, n uint64, m2 Uint128, shift uint) bool {
	d := (deviation + 1<<meanShift - 1) >> meanShift
	hi, lo := bits.Mul64(d*d, n-1)
	return Uint128{hi, lo}.Cmp(m2.Lsh(shift)) >= 0
}

// variance is a sample variance in units²: mantissa · 2^exponent. The mantissa has at least 32
// bits and the exponent is even.
type variance struct {
	mantissa uint64
	exponent int
}

// newVariance returns max(M2/(n−1), least/12), rounded down. The relative error is at most
// 2⁻³²; at the default window it is at most 2⁻⁴³.
func newVariance(n uint64, m2 Uint128, least uint64) variance {
	// Numerator and denominator are multiplied by 12, which makes the floor a whole number.
	m := m2.Mul64(12)
	if floor := (Uint128{0, n - 1}).Mul64(least); m.Cmp(floor) < 0 {
		m = floor
	}
	exponent := (m.BitLen() - 62) &^ 1 // leaves 62 or 63 bits
	var significant uint64
	if exponent >= 0 {
		significant = m.Rsh(uint(exponent)).Lo
	} else {
		significant = m.Lo << uint(-exponent)
	}
	return variance{significant / (12 * (n - 1)), exponent}
}

// reaches reports whether |t| reaches the threshold: d² ≥ threshold² · s² · (1 + 1/n). Each
// side is a product of two mantissas that are rounded down to 32 bits, which gives a relative
// error of about 2⁻²⁹.
func (p Params) reaches(deviation uint64, v variance, n uint64) bool {
	threshold2, threshold2Exponent := p.ThresholdSquared()
	if threshold2 == 0 {
		return true
	}
	if deviation == 0 {
		return false
	}
	d, dExponent := top32(deviation)
	s, sExponent := top32(v.mantissa + v.mantissa/n)
	left, leftExponent := d*d, 2*dExponent-2*meanShift
	right, rightExponent := s*uint64(threshold2), sExponent+v.exponent+int(threshold2Exponent)
	// Each product has 63 or 64 bits.
	switch rightExponent - leftExponent {
	case 0:
		return left >= right
	case 1:
		return left>>1 >= right
	case -1:
		return left >= right>>1+right&1
	}
	return rightExponent < leftExponent
}

// top32 returns v > 0 as mantissa · 2^exponent. The mantissa has 32 bits and is rounded down.
func top32(v uint64) (mantissa uint64, exponent int) {
	zeros := bits.LeadingZeros64(v)
	return v << zeros >> 32, 32 - zeros
}

// clipLimit returns four standard deviations in 2⁻¹⁶ units, rounded down. At the default window
// the relative error is about 2⁻²².
func (v variance) clipLimit() uint64 {
	root := sqrt64(v.mantissa)
	if by := v.exponent/2 + meanShift + clipShift/2; by >= 0 {
		return root << uint(by)
	} else {
		return root >> uint(-by)
	}
}

// sqrt64 returns ⌊√v⌋ for v below 2⁶³.
func sqrt64(v uint64) uint64 {
	r := uint64(math.Sqrt(float64(v)))
	for r*r > v {
		r--
	}
	for (r+1)*(r+1) <= v {
		r++
	}
	return r
}
