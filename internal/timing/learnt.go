// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import "fmt"

// maxJudged is the largest number of judged packets in a [Learnt]. A larger number could
// overflow a bin.
const maxJudged = 1 << 31

// Learnt is what one device has learnt: its baseline and the distribution of its scores.
type Learnt struct {
	State
	Judged uint64               // judged packets of the scores; 0: no calibration
	Scores [2][ScoreBins]uint32 // flagged packets by side and bin
}

// Learn merges what the CPUs of a device have learnt. Numbers of samples and of judged packets
// are halved until they are within the limits of the arithmetic.
func Learn(states []State, judged uint64, scores *[2][ScoreBins]uint64) Learnt {
	l := Learnt{State: Merge(states), Judged: judged}
	for l.N > MaxWindow {
		l.N /= 2
		l.M2 = l.M2.Rsh(1)
	}
	halvings := 0
	for l.Judged > maxJudged {
		l.Judged /= 2
		halvings++
	}
	for side := range scores {
		rest := uint64(0)
		for bin := ScoreBins - 1; bin >= 0; bin-- {
			count := scores[side][bin] + rest
			l.Scores[side][bin] = uint32(count >> halvings)
			rest = count & (1<<halvings - 1)
		}
	}
	return l
}

// Validate returns an error that names the first value that no device can have learnt.
func (l *Learnt) Validate() error {
	flagged := uint64(0)
	for side := range l.Scores {
		for _, n := range l.Scores[side] {
			flagged += uint64(n)
		}
	}
	most := Uint128{Lo: l.N}.Mul64(MaxDelta).Mul64(MaxDelta)
	switch {
	case l.N < MinMinSamples || l.N > MaxWindow:
		return fmt.Errorf("%d samples are not between %d and %d", l.N, MinMinSamples, MaxWindow)
	case l.MeanQ16 > MaxDelta<<meanShift:
		return fmt.Errorf("a mean of %d is above %d", l.MeanQ16, uint64(MaxDelta)<<meanShift)
	case l.M2.Cmp(most) > 0:
		return fmt.Errorf("squared deviations of %s are more than %d samples can have", l.M2.Big(), l.N)
	case l.Judged > maxJudged:
		return fmt.Errorf("%d judged packets are more than %d", l.Judged, uint64(maxJudged))
	case flagged > l.Judged:
		return fmt.Errorf("%d scores are more than the judged packets, %d", flagged, l.Judged)
	}
	return nil
}

// Cuts returns the number of scores that a tail may have, and the first rare bin of each side.
// Every bin is rare if allowed is 0.
func (p Params) Cuts(l *Learnt) (allowed uint32, cuts [2]uint32) {
	if allowed = p.Allowed(l.Judged); allowed == 0 {
		return 0, cuts
	}
	c := Calibration{Allowed: allowed, Cuts: [2]uint32{ScoreBins, ScoreBins}, Scores: l.Scores}
	c.settleCuts()
	return allowed, c.Cuts
}

// IsEnough reports whether a device can be audited against what was learnt: the baseline has
// MinSamples samples and, with calibration, a tail may have ten scores.
func (p Params) IsEnough(l *Learnt) bool {
	const tail = 10
	return l.N >= max(p.MinSamples, MinMinSamples) && (p.Calibrate == 0 || p.Allowed(l.Judged) >= tail)
}
