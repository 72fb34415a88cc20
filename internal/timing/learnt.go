// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import "fmt"

// maxJudged is how many judged packets what was learnt may be of, so that no bin overflows.
const maxJudged = 1 << 31

// Learnt is what was learnt of one device: its baseline, and how often which scores are.
type Learnt struct {
	State
	Judged uint64               // packets that the scores are a part of; 0 without calibration
	Scores [2][ScoreBins]uint32 // of the flagged packets, by side and bin
}

// Learn puts together what the CPUs of a device have learnt. It is halved where it is too much for the arithmetic.
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

// Validate returns an error unless that is something that can be learnt.
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

// Cuts returns the first bin on each side that is rare by what was learnt, and how many scores a tail may have. If that is
// none, all are.
func (p Params) Cuts(l *Learnt) (allowed uint32, cuts [2]uint32) {
	if allowed = p.Allowed(l.Judged); allowed == 0 {
		return 0, cuts
	}
	c := Calibration{Allowed: allowed, Cuts: [2]uint32{ScoreBins, ScoreBins}, Scores: l.Scores}
	c.settleCuts()
	return allowed, c.Cuts
}

// IsEnough reports whether what was learnt is enough to be audited against: the samples that a baseline needs, and with
// calibration a tail of ten scores.
func (p Params) IsEnough(l *Learnt) bool {
	const tail = 10
	return l.N >= max(p.MinSamples, MinMinSamples) && (p.Calibrate == 0 || p.Allowed(l.Judged) >= tail)
}
