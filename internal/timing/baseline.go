// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package timing holds the statistics of packet timing: the online baseline of a flow, the score of a packet against it,
// and the histogram of deltas.
//
// A delta is an inter-arrival time in integer nanoseconds. The types here are the reference model of the arithmetic in
// bpf/xdp/baseline.h, log2.h and histogram.h: for the same deltas both give the same bits. Nothing here reads a clock.
package timing

import (
	"fmt"
	"math"
	"math/bits"
)

// The limits of the arithmetic.
const (
	MaxDelta      = 1 << 31 // ns; the largest delta that can enter a baseline
	MaxWindow     = 1 << 24 // samples; keeps the rounding of the test below the margin of its short cut
	MinMinSamples = 2       // a variance needs two samples

	meanShift = 16 // fraction bits of a mean
	clipShift = 4  // log2 of the square of the deviation, in standard deviations, at which a sample is clipped
)

// State is what a baseline knows of a flow, or of a device. The unit is that of its [Domain]: nanoseconds on the linear
// scale.
type State struct {
	N       uint64  // samples, halved from time to time (see Params.Window)
	MeanQ16 uint64  // mean of the samples in 2⁻¹⁶ units
	M2      Uint128 // sum of squared deviations from the mean in units²
}

// Decision is what a baseline says of one delta.
type Decision uint8

// The decisions.
const (
	TooFewSamples Decision = iota // the delta entered a baseline that does not judge yet
	Judged                        // |t| is below the threshold
	Early                         // |t| reaches the threshold, the delta is below the mean
	Late                          // |t| reaches the threshold, the delta is not below the mean
)

// Params are the constants of a baseline.
type Params struct {
	Threshold  float64 // |t| at which a delta is flagged
	MinSamples uint64  // samples that a baseline needs before it judges
	Window     uint64  // samples to which a baseline is halved when it has twice as many
	Domain     Domain  // scale on which deltas are judged
	Calibrate  float64 // share of the judged packets that may become events; 0: all that are flagged may
}

// Validate returns an error that names the first value outside its range.
func (p Params) Validate() error {
	switch {
	case math.IsNaN(p.Threshold) || p.Threshold < 2 || p.Threshold > 1e6:
		return fmt.Errorf("threshold %v is not between 2 and 1e6: below 2 ordinary traffic is flagged; 4 is the usual mark", p.Threshold)
	case p.MinSamples < MinMinSamples || p.MinSamples > MaxWindow:
		return fmt.Errorf("minimum of %d samples is not between %d and %d", p.MinSamples, MinMinSamples, MaxWindow)
	case p.Window < p.MinSamples || p.Window > MaxWindow:
		return fmt.Errorf("window of %d samples is not between the minimum of samples (%d) and %d", p.Window, p.MinSamples, MaxWindow)
	}
	return validateCalibrate(p.Calibrate)
}

// ThresholdSquared returns the square of the threshold as mantissa · 2^exponent with a mantissa of 32 bits, as the test
// uses it; 0, 0 for a threshold of 0, at which everything is flagged.
func (p Params) ThresholdSquared() (mantissa uint32, exponent int32) {
	if p.Threshold == 0 {
		return 0, 0
	}
	fraction, exp := math.Frexp(p.Threshold * p.Threshold)
	return uint32(math.Ldexp(fraction, 32)), int32(exp) - 32
}

// ShortcutShift returns log2 of the largest power of two that is neither above the square of the threshold nor above
// the square of the clipping deviation. A deviation whose square is below that many variances is neither flagged nor
// clipped; the kernel asks first whether it is so by a margin. Below a threshold of 1 there is no such short cut: it returns −1.
func (p Params) ShortcutShift() int32 {
	squared := p.Threshold * p.Threshold
	if squared < 1 {
		return -1
	}
	_, exp := math.Frexp(squared)
	return int32(min(exp-1, clipShift))
}

// ShortcutFactor returns 2 to the power of ShortcutShift, or 0 where there is no short cut.
func (p Params) ShortcutFactor() uint32 {
	if shift := p.ShortcutShift(); shift >= 0 {
		return 1 << shift
	}
	return 0
}

// Observe judges a delta against the samples before it, then lets it enter the baseline: from MinSamples on no further
// than four standard deviations from the mean, so that an outlier cannot hide the next one, and a new level is learnt
// all the same. deltaNs must not be above [MaxDelta].
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

// update is one step of Welford's method with a rounded division: mean += d/n, M2 += d·d′, where d and d′ are the
// deviations from the mean before and after the step, rounded to whole units.
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

// outside reports whether deviation²·(n−1) ≥ 2^shift · M2, the deviation rounded up to whole units: exact.
func outside(deviation, n uint64, m2 Uint128, shift uint) bool {
	d := (deviation + 1<<meanShift - 1) >> meanShift
	hi, lo := bits.Mul64(d*d, n-1)
	return Uint128{hi, lo}.Cmp(m2.Lsh(shift)) >= 0
}

// variance is a sample variance in units²: mantissa · 2^exponent, with a mantissa of at least 32 bits and an even exponent.
type variance struct {
	mantissa uint64
	exponent int
}

// newVariance returns max(M2/(n−1), least/12), rounded down with a relative error of at most 2⁻³² — at the default window
// 2⁻⁴³.
func newVariance(n uint64, m2 Uint128, least uint64) variance {
	// 12·M2 / 12·(n−1), so that the floor is a whole number too.
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

// reaches reports whether |t| reaches the threshold: d² ≥ threshold² · s² · (1 + 1/n). Both sides are products of two
// mantissas that are rounded down to 32 bits, a relative error of about 2⁻²⁹.
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

// top32 returns v > 0, rounded down to 32 bits, as mantissa · 2^exponent.
func top32(v uint64) (mantissa uint64, exponent int) {
	zeros := bits.LeadingZeros64(v)
	return v << zeros >> 32, 32 - zeros
}

// clipLimit returns four standard deviations in 2⁻¹⁶ units, rounded down: at the default window with a relative error of
// about 2⁻²².
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
