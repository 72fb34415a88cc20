// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import "fmt"

// Learnt is what one device has learnt: its baseline.
type Learnt struct{ State }

// Learn merges what the CPUs of a device have learnt. Numbers of samples are halved until they are
// within the limits of the arithmetic.
func Learn(states []State) Learnt {
	l := Learnt{Merge(states)}
	for l.N > MaxWindow {
		l.N /= 2
		l.M2 = l.M2.Rsh(1)
	}
	return l
}

// Validate returns an error that names the first value that no device can have learnt.
func (l *Learnt) Validate() error {
	most := Uint128{Lo: l.N}.Mul64(MaxDelta).Mul64(MaxDelta)
	switch {
	case l.N < MinMinSamples || l.N > MaxWindow:
		return fmt.Errorf("%d samples are not between %d and %d", l.N, MinMinSamples, MaxWindow)
	case l.MeanQ16 > MaxDelta<<meanShift:
		return fmt.Errorf("a mean of %d is above %d", l.MeanQ16, uint64(MaxDelta)<<meanShift)
	case l.M2.Cmp(most) > 0:
		return fmt.Errorf("squared deviations of %s are more than %d samples can have", l.M2.Big(), l.N)
	}
	return nil
}

// IsEnough reports whether a device can be audited against what was learnt: whether the baseline
// has MinSamples samples.
func (p Params) IsEnough(l *Learnt) bool { return l.N >= max(p.MinSamples, MinMinSamples) }
