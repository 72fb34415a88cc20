// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package trial

import (
	"testing"
)

// At most one fleet in a thousand has a large z while nothing changes. tools/evaluate has more.
func TestNoEffect(t *testing.T) {
	const devices, windows = 100, 40
	for _, family := range Families()[:3] {
		for _, pair := range Pairs() {
			t.Run(family.Name+", "+pair.Name, func(t *testing.T) {
				t.Parallel()
				trial := New(family, pair, devices, 3000, 1)
				large := map[int]uint64{}
				for range windows {
					z := trial.Next(1)
					if len(z) != devices {
						t.Fatalf("%d devices have a value, want %d", len(z), devices)
					}
					for _, size := range []int{3, 10, devices} {
						n, _ := Count(z, size)
						large[size] += n
					}
				}
				// One of 1,320, 400 and 40 fleets would be allowed by chance.
				for size, n := range large {
					if n > 1 {
						t.Errorf("%d fleets of %d devices have a large z", n, size)
					}
				}
			})
		}
	}
}

func TestTooFewDeltas(t *testing.T) {
	trial := New(Families()[0], Pairs()[0], 3, 2995, 1)
	if z := trial.Next(1); len(z) != 0 {
		t.Errorf("z is %v, want no value", z)
	}
}

// One of three devices that is 10 % slower is found, at whatever scale the others are.
func TestOneOfThree(t *testing.T) {
	const windows = 20
	for _, family := range Families()[:3] {
		for _, pair := range Pairs() {
			trial := New(family, pair, 3, 36_000, 1)
			found := uint64(0)
			for range windows {
				n, _ := Count(trial.Next(1.1), 3)
				found += n
			}
			if found < windows*9/10 {
				t.Errorf("%s, %s: %d of %d found", family.Name, pair.Name, found, windows)
			}
		}
	}
}
