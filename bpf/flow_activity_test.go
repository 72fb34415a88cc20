// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"slices"
	"testing"
	"time"
)

func everyFlow(flowID) bool { return true }

func TestActivityOrdersFlows(t *testing.T) {
	b := flowActivity{}
	for i, samples := range []int{3, 1, 4, 1, 5} {
		for range samples {
			b.add(flowID{slotIndex: uint32(i)})
		}
	}
	slots := func(ids []flowID) (slots []uint32) {
		for _, id := range ids {
			slots = append(slots, id.slotIndex)
		}
		return slots
	}
	if got := slots(b.busiest(9, everyFlow)); !slices.Equal(got, []uint32{4, 2, 0, 1, 3}) {
		t.Errorf("flows by activity: %v", got)
	}
	if got := slots(b.busiest(2, func(id flowID) bool { return id.slotIndex != 2 })); !slices.Equal(got, []uint32{4, 0}) {
		t.Errorf("the two busiest flows except flow 2: %v", got)
	}
	for range activityHalfLife / watchInterval {
		b.decay()
	}
	if got := b[flowID{slotIndex: 2}]; got < 1.999 || got > 2.001 {
		t.Errorf("after the half-life, the activity of four samples is %v", got)
	}
	for range 4 * time.Minute / watchInterval {
		b.decay()
	}
	if len(b) != 0 {
		t.Errorf("%d flows are remembered after four minutes", len(b))
	}
}

func TestActivityIsBounded(t *testing.T) {
	b := flowActivity{}
	for i := range 3 * maxActiveFlows {
		b.add(flowID{slotIndex: uint32(i)})
	}
	for range 10 {
		b.add(flowID{slotIndex: 7})
	}
	b.decay()
	if len(b) != maxActiveFlows/2 {
		t.Errorf("%d flows are remembered, want %d", len(b), maxActiveFlows/2)
	}
	if b[flowID{slotIndex: 7}] < 10 {
		t.Error("the busiest flow was forgotten")
	}
}
