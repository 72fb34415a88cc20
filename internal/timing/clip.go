// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import (
	"math"
	"math/bits"
)

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
