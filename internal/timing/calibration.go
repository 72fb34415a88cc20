// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import (
	"math"
	"math/bits"
)

// The shape of a calibration.
const (
	// ScoreBins is the number of bins of scores. The first bin begins at the threshold. Each bin is
	// a sixteenth of an octave of t² wide, which is 2.2 % of |t|. The last bin has no upper bound.
	ScoreBins = 512

	scoreShift    = 16 // fraction bits of a score, in octaves of t²
	scoreBinShift = 12 // 16 bins in an octave
	refreshNs     = 1e6

	sampleWeight = 8          // flagged packets far below the tail for each that is counted
	sampleStep   = 0x9e3779b1 // 2³² over the golden ratio
	sampleBelow  = 1 << 29    // an eighth of the multiples of sampleStep, modulo 2³², are below

	minCalibrate = 1e-6
	maxCalibrate = 0.1
	// calibrationTail is the smallest number of scores that a tail may have after a halving.
	calibrationTail = 200
)

// The sides of a calibration.
const (
	SideEarly = iota
	SideLate
)

// Calibration counts the scores of the flagged packets of one device on one CPU, which tells
// how rare a score is. It is the model of bpf/xdp/calibration.h. The zero value has counted no
// score.
type Calibration struct {
	Forgotten   uint64               // judged packets whose scores are no longer counted
	Flagged     uint64               // flagged packets of the CPU, counted here
	RefreshedNs uint64               // audit clock at the last refresh; 0: never
	Allowed     uint32               // scores that a tail may have; 0: too few judged packets
	Offset      int32                // Params.ScoreOffset when the scores were counted
	Cuts        [2]uint32            // first rare bin by side; ScoreBins if no bin is rare
	Tails       [2]uint32            // scores in the first rare bin and above, by side
	Scores      [2][ScoreBins]uint32 // by side and bin
}

// validateCalibrate returns an error unless alpha is 0 or within the range that a calibration
// can learn.
func validateCalibrate(alpha float64) error {
	if alpha == 0 || alpha >= minCalibrate && alpha <= maxCalibrate {
		return nil
	}
	return invalid("Calibrate", "calibration %v is neither 0 (off) nor between %v and %v", alpha, minCalibrate, maxCalibrate)
}

// TailShare returns the fraction of judged packets that may become events on each side, in
// 2⁻³²: half of Calibrate. It is 0 without calibration.
func (p Params) TailShare() uint32 { return uint32(math.Round(math.Ldexp(p.Calibrate, 31))) }

// CalibrationTwice returns the number of judged packets at which a calibration is halved; 0
// without calibration.
func (p Params) CalibrationTwice() uint32 {
	if p.Calibrate == 0 {
		return 0
	}
	least := uint64(math.Ceil(2 * calibrationTail / p.Calibrate))
	return 2 << bits.Len64(least-1)
}

// ScoreOffset returns the score of the threshold, where the first bin begins, in 2⁻¹⁶ octaves
// of t².
func (p Params) ScoreOffset() int32 {
	return int32(math.Round(math.Ldexp(2*math.Log2(max(p.Threshold, 1))+math.Log2(p.correction()), scoreShift)))
}

// EventScore returns the |t| from which a packet is rare if cut is the first rare bin. It
// returns the threshold if allowed is 0, because every flagged packet is rare until the
// calibration has learnt, and +Inf if no bin is rare. Packets are assigned to bins with an
// error of up to 0.4 % of |t|.
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

// Allowed returns the number of scores that the tail of each side may have for that many judged
// packets.
func (p Params) Allowed(judged uint64) uint32 {
	hi, lo := bits.Mul64(judged, uint64(p.TailShare()))
	return uint32(hi<<32 | lo>>32)
}

// logQ16 returns log2 of v > 0 in 2⁻¹⁶ octaves. The result is too small by up to 0.0113
// octaves.
func logQ16(v uint64) int64 {
	octave := bits.Len64(v) - 1
	index := v << (63 - octave) >> 56 & (LogEntries - 1)
	return int64(octave)<<scoreShift + int64(logTable[index]>>(32-scoreShift))
}

// leastM2 returns the smallest M2 of n samples: (n − 1) times the least variance, divided by k.
func (p Params) leastM2(s *State) uint64 {
	return Uint128{0, p.Domain.leastSquared(s.MeanQ16) * ((1 << 32) / uint64(p.VarianceFactor()))}.Mul64(s.N - 1).Rsh(16).Lo
}

// Score is t²·(1 + 1/n) = d²·(n − 1)/M2 divided by the score of the threshold. The deviation d
// is rounded up to whole units. The value is left / right · 2^base, with base in 2⁻¹⁶ octaves.
type Score struct {
	left, right uint64
	base        int64
}

// ScoreOf returns the score of a flagged delta against the baseline s, to which the delta has
// not been added.
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

// Bin returns the bin of the score, below [ScoreBins].
func (s Score) Bin() uint32 {
	octaves := s.base + logQ16(s.left|1) - logQ16(s.right|1)
	return uint32(min(max(octaves, 0)>>scoreBinShift, ScoreBins-1))
}

// isFarBelow reports whether the whole octaves of the score place it below the bin before cut.
// It reports false if the answer needs a shift other than 0 to 63 bits to the right. No score
// is below a tail that begins at bin 0, because the first bin takes all lower scores.
func (s Score) isFarBelow(cut uint32) bool {
	shift := ((int64(cut)-1)<<scoreBinShift - s.base) >> scoreShift
	return cut > 0 && shift >= 0 && shift < 64 && s.left>>shift < s.right
}

// forget halves the scores; the caller halves the number of judged packets. The odd half of a
// bin moves to the next lower bin.
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

// refresh computes the allowed tail. judged and flagged count the packets before the one to be
// scored; the flagged packets are among the judged ones. The calibration starts from zero if
// other packets were flagged than were scored, or if the bins belong to another threshold.
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

// settleCuts moves each cut to the lowest bin whose tail is at most the allowed one.
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

// IsRare counts the score of a flagged packet and reports whether the packet is rare: whether
// the packets of its side with the same or a higher score are at most the allowed tail. Every
// packet is rare while the allowed tail is below one packet.
//
// A tail that has become too large loses its lowest bin at once, and as many bins as necessary
// at the next refresh. Of the packets far below the tail, one in eight is counted for all.
// judged and flagged count the packets of the CPU before this one; the flagged packets are
// among the judged ones.
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
