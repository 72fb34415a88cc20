// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import "testing"

// What many CPUs have learnt is halved until it fits the arithmetic of one CPU. Mean and variance
// stay the same.
func TestLearntIsHalvedToFit(t *testing.T) {
	states := []State{{N: 2 * MaxWindow, MeanQ16: 1 << 30, M2: Uint128{Lo: 1 << 40}}, {N: 2 * MaxWindow, MeanQ16: 1 << 30, M2: Uint128{Lo: 3 << 40}}}
	l := Learn(states)
	if want := (State{N: MaxWindow, MeanQ16: 1 << 30, M2: Uint128{Lo: 1 << 40}}); l.State != want {
		t.Errorf("baseline: got %+v, want %+v", l.State, want)
	}
	if err := l.Validate(); err != nil {
		t.Error(err)
	}
}

func TestWhatIsEnough(t *testing.T) {
	for n, want := range map[uint64]bool{0: false, 99: false, 100: true} {
		if got := defaults.IsEnough(&Learnt{State{N: n}}); got != want {
			t.Errorf("%d samples: got %v, want %v", n, got, want)
		}
	}
}
