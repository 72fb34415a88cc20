// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import (
	"fmt"
	"math"
	"math/bits"
)

// The shape of a calibration.
const (
	// ScoreBins is the number of bins of scores. The first begins at the threshold, and each is a sixteenth of an octave of t²
	// wide, 2.2 % of |t|; the last takes all above.
	ScoreBins = 512

	scoreShift    = 16 // fraction bits of a score, in octaves of t²
	scoreBinShift = 12 // 16 bins in an octave
	twelfthQ16    = 5461
	refreshNs     = 1e6

	sampleWeight = 8          // packets far below the tail that one stands for
	sampleStep   = 0x9e3779b1 // 2³² over the golden ratio
	sampleBelow  = 1 << 29    // an eighth of its multiples

	minCalibrate = 1e-6
	maxCalibrate = 0.1
	// calibrationTail is how many scores the tail of either side may have once a calibration was halved, at least.
	calibrationTail = 200
)

// The sides of a calibration.
const (
	SideEarly = iota
	SideLate
)

// Calibration is what is known of the scores of flagged packets on one CPU, and so of which scores are rare. It is the model
// of bpf/xdp/calibration.h. The zero value knows nothing.
type Calibration struct {
	Forgotten   uint64               // judged packets that the scores are not a part of any more
	Flagged     uint64               // packets that were given a score, ever
	RefreshedNs uint64               // when Allowed was computed; 0 for never
	Allowed     uint32               // scores that a tail may have; 0 if too little is known to tell
	Offset      int32                // Params.ScoreOffset of the bins
	Cuts        [2]uint32            // the first bin that is rare, ScoreBins if none is
	Tails       [2]uint32            // scores in this bin and those above
	Scores      [2][ScoreBins]uint32 // by side and bin
}

// validateCalibrate returns an error unless alpha is 0 or a share that can be learnt.
func validateCalibrate(alpha float64) error {
	if alpha == 0 || alpha >= minCalibrate && alpha <= maxCalibrate {
		return nil
	}
	return fmt.Errorf("calibration %v is neither 0 (off) nor between %v and %v", alpha, minCalibrate, maxCalibrate)
}

// TailShare returns the share of the judged packets that may be events on either side, half of Calibrate, in 2⁻³²; 0 without
// calibration.
func (p Params) TailShare() uint32 { return uint32(math.Round(math.Ldexp(p.Calibrate, 31))) }

// CalibrationTwice returns the judged packets at which a calibration is halved.
func (p Params) CalibrationTwice() uint32 {
	if p.Calibrate == 0 {
		return 0
	}
	least := uint64(math.Ceil(2 * calibrationTail / p.Calibrate))
	return 2 << bits.Len64(least-1)
}

// ScoreOffset returns the score at which the first bin begins, that of the threshold, in 2⁻¹⁶ octaves of t².
func (p Params) ScoreOffset() int32 {
	return int32(math.Round(math.Ldexp(2*math.Log2(max(p.Threshold, 1)), scoreShift)))
}

// EventScore returns the |t| from which on a packet is rare when the first rare bin is cut, and 0 allowed scores mean that
// nothing is known yet: then it is the threshold. It is infinite if no score is rare. Scores are put into bins with an error of
// up to 0.4 % of |t|.
func (p Params) EventScore(allowed, cut uint32) float64 {
	switch {
	case allowed == 0:
		return p.Threshold
	case cut >= ScoreBins:
		return math.Inf(1)
	}
	const binsPerOctave = 2 << (scoreShift - scoreBinShift) // of |t|
	return p.Threshold * math.Exp2(float64(cut)/binsPerOctave)
}

// Allowed returns the scores that the tail of either side may have when judged packets are known.
func (p Params) Allowed(judged uint64) uint32 {
	hi, lo := bits.Mul64(judged, uint64(p.TailShare()))
	return uint32(hi<<32 | lo>>32)
}

// logQ16 returns log2 of v > 0 in 2⁻¹⁶ octaves, too small by up to 0.0113 octaves.
func logQ16(v uint64) int64 {
	octave := bits.Len64(v) - 1
	index := v << (63 - octave) >> 56 & (LogEntries - 1)
	return int64(octave)<<scoreShift + int64(logTable[index]>>(32-scoreShift))
}

// leastM2 returns the least M2 of n samples.
func (p Params) leastM2(s *State) uint64 {
	return Uint128{0, p.Domain.leastSquared(s.MeanQ16) * twelfthQ16}.Mul64(s.N - 1).Rsh(16).Lo
}

// Score is t²·(1 + 1/n) = d²·(n − 1)/M2, where d is rounded up to whole units: left / right · 2^base, with a base in 2⁻¹⁶
// octaves, over the score of the threshold.
type Score struct {
	left, right uint64
	base        int64
}

// ScoreOf returns the score of a flagged delta against the baseline s, which does not contain it yet.
func (p Params) ScoreOf(s *State, deltaNs uint64) Score {
	x := p.Domain.sample(deltaNs) << meanShift
	d := (max(x, s.MeanQ16) - min(x, s.MeanQ16) + 1<<meanShift - 1) >> meanShift
	score := Score{left: d * d, right: s.M2.Lo, base: -int64(p.ScoreOffset())}
	if d>>19 != 0 {
		score.left >>= 25
		score.base += 25 << scoreShift
	}
	if s.M2.Hi != 0 {
		score.right = s.M2.Hi<<32 | score.right>>32
		score.base -= 32 << scoreShift
	} else {
		score.right = max(score.right, p.leastM2(s))
	}
	score.left *= s.N - 1
	return score
}

// Bin returns the bin of the score.
func (s Score) Bin() uint32 {
	octaves := s.base + logQ16(s.left|1) - logQ16(s.right|1)
	return uint32(min(max(octaves, 0)>>scoreBinShift, ScoreBins-1))
}

// isFarBelow reports whether the score is below the bin before the cut by its whole octaves. It is false if it takes another
// shift than one of 64 bits to the right to tell. The bins have no end below: at cut 0 no score is below the tail.
func (s Score) isFarBelow(cut uint32) bool {
	shift := ((int64(cut)-1)<<scoreBinShift - s.base) >> scoreShift
	return cut > 0 && shift >= 0 && shift < 64 && s.left>>shift < s.right
}

// forget halves the scores, which are those of a number of judged packets that is halved with them. The half that a bin cannot keep goes to the next one below.
func (c *Calibration) forget() {
	for side := range c.Scores {
		carry := uint32(0)
		c.Tails[side] = 0
		for bin := ScoreBins - 1; bin >= 0; bin-- {
			count := c.Scores[side][bin] + carry
			carry = count & 1
			c.Scores[side][bin] = count >> 1
			if uint32(bin) >= c.Cuts[side] {
				c.Tails[side] += count >> 1
			}
		}
	}
}

// refresh computes the allowed tail. The packets that were judged and those of them that were flagged are those before the one
// that is to be scored. If others were flagged than were scored, the scores begin anew, and if the bins are another
// threshold's.
func (p Params) refresh(c *Calibration, judged, flagged, nowNs uint64) {
	twice := uint64(p.CalibrationTwice())
	switch {
	case c.Flagged != flagged || c.RefreshedNs != 0 && c.Offset != p.ScoreOffset():
		*c = Calibration{Flagged: flagged, Forgotten: judged}
	case judged-c.Forgotten >= twice:
		c.forget()
		c.Forgotten = judged - twice/2
	}
	c.Allowed = p.Allowed(judged - c.Forgotten)
	c.Offset = p.ScoreOffset()
	c.RefreshedNs = nowNs
	c.settleCuts()
}

// settleCuts lets the tails begin as far below as they may, and no further.
func (c *Calibration) settleCuts() {
	for side := range c.Cuts {
		cut, tail := c.Cuts[side], c.Tails[side]
		for tail > c.Allowed {
			tail -= c.Scores[side][cut]
			cut++
		}
		for cut > 0 && tail+c.Scores[side][cut-1] <= c.Allowed {
			cut--
			tail += c.Scores[side][cut]
		}
		c.Cuts[side], c.Tails[side] = cut, tail
	}
}

// IsRare counts the score of a flagged packet, and reports whether it is rare: with those that had as high a score or a higher
// one on its side, it is no more than the allowed tail. As long as that is less than one packet, all are. A tail that has
// become too large loses its lowest bin at once, and as many as it takes when Allowed is computed. Of the packets that are far
// below the tail one in eight is counted for all of them. judged and flagged count the packets of the CPU before this one, the
// flagged among the judged.
func (p Params) IsRare(c *Calibration, score Score, side int, judged, flagged, nowNs uint64) bool {
	if nowNs-c.RefreshedNs >= refreshNs {
		p.refresh(c, judged, flagged, nowNs)
	}
	c.Flagged++
	if c.Allowed > 0 && score.isFarBelow(c.Cuts[side]) {
		if uint32(c.Flagged)*sampleStep < sampleBelow {
			c.Scores[side][score.Bin()] += sampleWeight
		}
		return false
	}
	bin := score.Bin()
	c.Scores[side][bin]++
	if bin >= c.Cuts[side] {
		c.Tails[side]++
		if cut := c.Cuts[side]; c.Tails[side] > c.Allowed {
			c.Tails[side] -= c.Scores[side][cut]
			c.Cuts[side]++
		}
	}
	return c.Allowed == 0 || bin >= c.Cuts[side]
}
