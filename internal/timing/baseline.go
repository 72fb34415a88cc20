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

	restartRun    = 64     // flagged packets in a row on one side after which a baseline restarts
	longestRun    = 256    // longer than any run that the kernel program counts
	shortestRunNs = 50_000 // a shorter run is a burst, such as packets after an interrupt

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

// VarianceFactor returns 12·k in 2⁻¹⁶. Clipped samples have a smaller variance, and k corrects it:
// for independent normal samples s² = k·M2/(n−1) estimates the variance without bias. With ψ the
// deviation, in standard deviations and clipped at c, k is
//
//	1/E[ψ²] = 1/(2Φ(c) − 1 − 2cφ(c) + 2c²(1 − Φ(c)))
//
// which is Huber's Proposal 2 (P. J. Huber, Robust Estimation of a Location Parameter, 1964).
func (p Params) VarianceFactor() uint32 {
	squared := 1.0
	if c := p.Clip; c > 0 {
		outside := math.Erfc(c / math.Sqrt2) // 2(1 − Φ(c))
		squared = 1 - outside - 2*c*math.Exp(-c*c/2)/math.Sqrt(2*math.Pi) + c*c*outside
	}
	return uint32(math.Round(math.Ldexp(12/squared, factorShift)))
}

// correction returns k.
func (p Params) correction() float64 {
	return math.Ldexp(float64(p.VarianceFactor())/12, -factorShift)
}

// LearntFactor returns 1/k in 2⁻¹⁶. The samples before MinSamples are not clipped; when a baseline
// has MinSamples of them, its M2 is multiplied by LearntFactor.
func (p Params) LearntFactor() uint32 {
	return uint32(math.Round(math.Ldexp(1/p.correction(), factorShift)))
}

// ClipQ16 returns the clip in 2⁻¹⁶ standard deviations; 0 if samples are not clipped. It is smaller
// by the mean error of squareRoot.
func (p Params) ClipQ16() uint32 { return uint32(math.Round(math.Ldexp(p.Clip*(1-1e-4), factorShift))) }

// Shortcuts are factors in quarters, for tests that are faster than those of a score and of the
// clip. If 4·deviation²·(n−1) < M2·factor, a sample is
type Shortcuts struct {
	Clip uint32 // not clipped
	Both uint32 // neither clipped nor flagged
	Near uint32 // not flagged, and its deviation is at most √5 times that of Both
}

// Shortcuts returns the factors that belong to the threshold and the clip. A factor is 0 if there
// is no shortcut.
func (p Params) Shortcuts() Shortcuts {
	const (
		most       = 1 << 20
		rootsError = 2e-3 // of the square of the clipping limit
	)
	k := p.correction()
	threshold := uint32(min(most, 4*p.Threshold*p.Threshold*k))
	s := Shortcuts{Clip: mostShortcutFactor}
	if p.Clip > 0 {
		s.Clip = uint32(min(mostShortcutFactor, 4*p.Clip*p.Clip*k*(1-rootsError)))
	}
	s.Both = min(s.Clip, threshold)
	if p.Clip > 0 {
		s.Near = min(5*s.Both, threshold)
	}
	return s
}

// NearScaleQ16 returns the ratio of the clip to the deviation at which Shortcuts.Both ends, in
// 2⁻¹⁶. It is smaller by the mean error of the root in nearLimit.
func (p Params) NearScaleQ16() uint32 {
	end := math.Sqrt(float64(max(1, p.Shortcuts().Both)) / 4)
	return uint32(math.Round(math.Ldexp(p.Clip*math.Sqrt(p.correction())/end*(1-3e-4), factorShift)))
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
			s.M2 = s.M2.Mul64(uint64(p.LearntFactor())).Rsh(factorShift)
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

// clip limits a deviation to the clip.
func (p Params) clip(deviation uint64, s *State, v variance) uint64 {
	if p.Clip == 0 {
		return deviation
	}
	if limit, isNear := p.nearLimit(deviation, s); isNear {
		return min(deviation, limit)
	}
	return min(deviation, v.clipLimit(p.ClipQ16()))
}

// nearLimit returns the clipping limit of a deviation that is surely not flagged and at most √5
// times the limit. It is within 0.05 % of the limit, and follows from the ratio of the squares: a
// line approximates its root to within 4 %, and one step of Newton's method follows.
func (p Params) nearLimit(deviation uint64, s *State) (limit uint64, isNear bool) {
	shortcuts := p.Shortcuts()
	d := deviation>>(meanShift-1) + 1 // half units
	if d>>19 != 0 || s.M2.Hi != 0 || s.M2.Lo>>57 != 0 {
		return 0, false
	}
	squares := d * d * (s.N - 1)
	if squares >= s.M2.Lo*uint64(shortcuts.Near) {
		return 0, false
	}
	m := s.M2.Lo * uint64(shortcuts.Both)
	if d*d*s.N < m { // neither flagged nor clipped
		return deviation, true
	}
	var ratio uint64 // of the squares of limit and deviation, in 2⁻¹⁶
	if squares>>47 != 0 {
		ratio = m / (squares >> 16)
	} else {
		ratio = m << 16 / squares
	}
	root := ratio*184>>8 + 21020
	root = (root + ratio<<16/root) >> 1
	return d * root * uint64(p.NearScaleQ16()) >> 17, true
}

// Run counts the flagged packets of a baseline in a row on one side.
type Run struct {
	packets uint32
	side    Decision
	sinceNs uint64 // time of its first packet
}

// RestartRun returns the number of flagged packets in a row on one side after which a baseline
// restarts: the level of the traffic has changed, and an empty baseline learns the new level sooner
// than one that clips it. With a threshold of 0, at which every packet is flagged, no baseline
// restarts.
func (p Params) RestartRun() uint32 {
	if p.Threshold == 0 {
		return longestRun
	}
	return restartRun
}

// Restarts counts the decision on the packet of a flow after the last counted one, with its delta.
// It reports whether the baseline restarts: whether the caller has to empty it after this packet.
// That many deltas like the last one have to be 50 µs long.
func (p Params) Restarts(r *Run, d Decision, deltaNs uint64) bool {
	return p.countRun(r, d, deltaNs, 0) && r.end()
}

// DeviceRestarts is Restarts for the baseline of a device, with the time of the packet and its
// delta. When the host pauses once, the next packet of each flow is late. Therefore the run also
// has to last for two of its deltas.
func (p Params) DeviceRestarts(r *Run, d Decision, nowNs, deltaNs uint64) bool {
	return p.countRun(r, d, deltaNs, nowNs) && nowNs-r.sinceNs >= 2*deltaNs && r.end()
}

// countRun reports whether the run is long enough for a restart.
func (p Params) countRun(r *Run, d Decision, deltaNs, nowNs uint64) bool {
	if d != Early && d != Late {
		*r = Run{}
		return false
	}
	if d != r.side {
		*r = Run{side: d, sinceNs: nowNs}
	}
	r.packets = min(r.packets+1, longestRun-1)
	return r.packets >= p.RestartRun() && uint64(r.packets)*deltaNs >= shortestRunNs
}

func (r *Run) end() bool {
	*r = Run{}
	return true
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

// clipLimit returns the largest deviation of an added sample in 2⁻¹⁶ units, to within 0.03 %.
func (v variance) clipLimit(clipQ16 uint32) uint64 {
	limit := squareRoot(v.mantissa) * uint64(clipQ16)
	if by := v.exponent / 2; by >= 0 {
		return limit << uint(by)
	} else {
		return limit >> uint(-by)
	}
}

// squareRoot returns √v for v from 2³² to below 2⁶³, up to 0.05 % too large: one step of Newton's
// method from a line that is within 3.2 % of the root.
func squareRoot(v uint64) uint64 {
	half := (bits.Len64(v) - 1) / 2
	root := (2<<half + v>>half) * 88 >> 8
	return (root + v/root) >> 1
}
