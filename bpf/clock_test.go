// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"testing"
	"time"
)

// Times are converted by how long ago they were, and by the wall clock as it is set now: however that was set before, and
// however long ago the anchor was made, a packet of a second ago has the time of a second ago.
func TestWallTimeIsThatOfTheClockAsItIsSetNow(t *testing.T) {
	const tolerance = 100 * time.Millisecond
	now := monotonicNs()
	fresh := newMonotonicAnchor()
	// As if it had been made an hour ago: both clocks have run on since.
	old := monotonicAnchor{goTime: fresh.goTime.Add(-time.Hour), ktimeNs: fresh.ktimeNs - int64(time.Hour)}
	for name, anchor := range map[string]monotonicAnchor{"fresh": fresh, "old": old} {
		for _, ago := range []time.Duration{0, time.Second, 24 * time.Hour, -time.Second} {
			got := anchor.wallTime(now - uint64(ago))
			want := time.Now().Add(-ago)
			if off := got.Sub(want); off < -tolerance || off > tolerance {
				t.Errorf("%s anchor, %v ago: got %v, want %v", name, ago, got, want)
			}
		}
	}
}
