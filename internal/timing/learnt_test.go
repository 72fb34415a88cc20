// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import "testing"

// What many CPUs have learnt is halved until it fits the arithmetic of one CPU. Mean, variance
// and tails stay the same.
func TestLearntIsHalvedToFit(t *testing.T) {
	states := []State{{N: 2 * MaxWindow, MeanQ16: 1 << 30, M2: Uint128{Lo: 1 << 40}}, {N: 2 * MaxWindow, MeanQ16: 1 << 30, M2: Uint128{Lo: 3 << 40}}}
	var scores [2][ScoreBins]uint64
	scores[SideLate][0], scores[SideLate][10], scores[SideLate][11], scores[SideEarly][3] = 1<<33, 3, 1, 7
	l := Learn(states, 1<<34, &scores)
	if want := (State{N: MaxWindow, MeanQ16: 1 << 30, M2: Uint128{Lo: 1 << 40}}); l.State != want {
		t.Errorf("baseline: got %+v, want %+v", l.State, want)
	}
	if l.Judged != maxJudged || l.Scores[SideLate][0] != 1<<30 || l.Scores[SideLate][10] != 0 || l.Scores[SideEarly][3] != 0 {
		t.Errorf("of %d packets: got %d in the first bin, %d and %d elsewhere", l.Judged, l.Scores[SideLate][0], l.Scores[SideLate][10], l.Scores[SideEarly][3])
	}
	if err := l.Validate(); err != nil {
		t.Error(err)
	}
}

func TestCutsOfWhatWasLearnt(t *testing.T) {
	p := defaults
	p.Calibrate = 1e-2
	l := Learnt{State: State{N: 1000}, Judged: 10_000} // tails of 50
	l.Scores[SideLate][0], l.Scores[SideLate][5], l.Scores[SideLate][100] = 500, 40, 10
	l.Scores[SideEarly][0] = 50
	if allowed, cuts := p.Cuts(&l); allowed != 49 || cuts != [2]uint32{1, 6} {
		t.Errorf("got cuts %v for tails of %d, want 1 and 6 for 49", cuts, allowed)
	}
	l.Judged = 10_100
	if allowed, cuts := p.Cuts(&l); allowed != 50 || cuts != [2]uint32{0, 1} {
		t.Errorf("got cuts %v for tails of %d, want 0 and 1 for 50", cuts, allowed)
	}
	p.Calibrate = 0
	if allowed, cuts := p.Cuts(&l); allowed != 0 || cuts != [2]uint32{} {
		t.Errorf("without calibration: got cuts %v for tails of %d", cuts, allowed)
	}
}

func TestWhatIsEnough(t *testing.T) {
	for _, test := range []struct {
		name      string
		calibrate float64
		learnt    Learnt
		want      bool
	}{
		{"nothing", 0, Learnt{}, false},
		{"the minimum of samples", 0, Learnt{State: State{N: 100}}, true},
		{"one less", 0, Learnt{State: State{N: 99}}, false},
		{"no packets for a calibration", 1e-4, Learnt{State: State{N: 100}}, false},
		{"tails of nine", 1e-4, Learnt{State: State{N: 100}, Judged: 199_999}, false},
		{"tails of ten", 1e-4, Learnt{State: State{N: 100}, Judged: 200_001}, true},
	} {
		p := defaults
		p.Calibrate = test.calibrate
		if got := p.IsEnough(&test.learnt); got != test.want {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
	}
}
