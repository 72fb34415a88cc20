// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package timing holds the statistics of packet timing: the online baseline of a flow, the
// score of a packet against its baseline, and the histogram of deltas.
//
// A delta is an inter-arrival time in whole nanoseconds. This package is the reference model of
// the arithmetic in bpf/xdp/baseline.h, bpf/xdp/record.h, bpf/xdp/log2.h and
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

	meanShift   = 16 // fraction bits of a mean
	factorShift = 16 // fraction bits of factors

	mostShortcutFactor = 64 // the exact test of the kernel program multiplies M2 by no more
	minClip, maxClip   = 1, 16
)

// State is the baseline of a flow or of a device. Its unit is that of the [Domain]: nanoseconds
// in the linear domain, 2⁻²⁰ octaves in the log2 domain.
type State struct {
	N       uint64  // samples, halved when they reach twice Params.Window
	MeanQ16 uint64  // mean of the samples, in 2⁻¹⁶ units
	M2      Uint128 // sum of squared deviations from the mean, in units², as clipped
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
	Clip       float64 // largest deviation of an added sample, in standard deviations; 0: any
	Calibrate  float64 // events that a flow earns for each judged packet; 0: every flag may be one
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
	case !(p.Clip == 0 || p.Clip >= minClip && p.Clip <= maxClip):
		return invalid("Clip", "clip of %v standard deviations is neither 0 (off) nor between %d and %d", p.Clip, minClip, maxClip)
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

// Observe tests a delta of at most [MaxDelta] ns against the baseline s, then adds the delta to
// s. Once s has MinSamples samples, the added deviation is clipped: an outlier cannot hide the next
// outlier, and the baseline still learns a new level.
func (p Params) Observe(s *State, deltaNs uint64) Decision {
	decision, _ := p.ObserveScore(s, deltaNs)
	return decision
}

// ObserveScore is [Params.Observe] and returns the score too, unless there are too few samples.
func (p Params) ObserveScore(s *State, deltaNs uint64) (decision Decision, score Score) {
	x := p.Domain.sample(deltaNs) << meanShift
	early := x < s.MeanQ16
	deviation := x - s.MeanQ16
	if early {
		deviation = s.MeanQ16 - x
	}
	if s.N < p.MinSamples {
		p.update(s, deviation, early)
		if s.N == p.MinSamples {
			p.learnt(s)
		}
		return TooFewSamples, score
	}
	decision = Judged
	variance := p.newVariance(s)
	score = p.score(deviation, variance, s.N)
	if p.reaches(deviation, score) {
		decision = Late
		if early {
			decision = Early
		}
	}
	p.update(s, p.clip(deviation, s, variance), early)
	return decision, score
}

// learnt ends the learning of a baseline, whose samples were not clipped. Later ones are, and M2 is
// multiplied by k for it.
func (p Params) learnt(s *State) { s.M2 = s.M2.Mul64(uint64(p.LearntFactor())).Rsh(factorShift) }

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

// variance is a sample variance in units²: mantissa · 2^exponent. The mantissa has at least 32
// bits and the exponent is even.
type variance struct {
	mantissa uint64
	exponent int
}

// newVariance returns max(k·M2/(n−1), least/12), rounded down. The relative error is at most
// 2⁻³²; at the default window it is at most 2⁻⁴³.
func (p Params) newVariance(s *State) variance {
	// Numerator and denominator are multiplied by 12, which makes the floor a whole number.
	m := s.M2.Mul64(uint64(p.VarianceFactor()))
	floor := Uint128{0, s.N - 1}.Mul64(p.Domain.leastSquared(s.MeanQ16)).Lsh(factorShift)
	if m.Cmp(floor) < 0 {
		m = floor
	}
	exponent := (m.BitLen() - 62) &^ 1 // leaves 62 or 63 bits
	var significant uint64
	if exponent >= 0 {
		significant = m.Rsh(uint(exponent)).Lo
	} else {
		significant = m.Lo << uint(-exponent)
	}
	return variance{significant / (12 * (s.N - 1)), exponent - factorShift}
}

// Score is t² divided by the square of the threshold: left / right · 2^−shift. Both have 63 or 64
// bits. It is 0 if the sample is the mean or the threshold is 0.
type Score struct {
	left, right uint64
	shift       int
}

// score compares d² with threshold² · s² · (1 + 1/n). Each side is a product of two mantissas that
// are rounded down to 32 bits, which gives a relative error of about 2⁻²⁹.
func (p Params) score(deviation uint64, v variance, n uint64) Score {
	threshold2, threshold2Exponent := p.ThresholdSquared()
	if threshold2 == 0 || deviation == 0 {
		return Score{}
	}
	d, dExponent := top32(deviation)
	s, sExponent := top32(v.mantissa + v.mantissa/n)
	return Score{
		left: d * d, right: s * uint64(threshold2),
		shift: sExponent + v.exponent + int(threshold2Exponent) - 2*dExponent + 2*meanShift,
	}
}

// reaches reports whether |t| reaches the threshold.
func (p Params) reaches(deviation uint64, s Score) bool {
	if p.Threshold == 0 || deviation == 0 {
		return p.Threshold == 0
	}
	switch s.shift {
	case 0:
		return s.left >= s.right
	case 1:
		return s.left>>1 >= s.right
	case -1:
		return s.left >= s.right>>1+s.right&1
	}
	return s.shift < 0
}

// top32 returns v > 0 as mantissa · 2^exponent. The mantissa has 32 bits and is rounded down.
func top32(v uint64) (mantissa uint64, exponent int) {
	zeros := bits.LeadingZeros64(v)
	return v << zeros >> 32, 32 - zeros
}
