// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"slices"
	"testing"
	"time"
)

func everyFlow(flowID) bool { return true }

func TestBusyFlows(t *testing.T) {
	b := busyFlows{}
	for i, samples := range []int{3, 1, 4, 1, 5} {
		for range samples {
			b.add(flowID{place: uint32(i)})
		}
	}
	places := func(ids []flowID) (places []uint32) {
		for _, id := range ids {
			places = append(places, id.place)
		}
		return places
	}
	if got := places(b.busiest(9, everyFlow)); !slices.Equal(got, []uint32{4, 2, 0, 1, 3}) {
		t.Errorf("flows by their samples: %v", got)
	}
	if got := places(b.busiest(2, func(id flowID) bool { return id.place != 2 })); !slices.Equal(got, []uint32{4, 0}) {
		t.Errorf("the two busiest but for flow 2: %v", got)
	}
	for range busyHalfLife / watchInterval {
		b.forget()
	}
	if got := b[flowID{place: 2}]; got < 1.999 || got > 2.001 {
		t.Errorf("after the half-life four samples weigh %v", got)
	}
	for range 4 * time.Minute / watchInterval {
		b.forget()
	}
	if len(b) != 0 {
		t.Errorf("%d flows are remembered after four minutes", len(b))
	}
}

func TestBusyFlowsAreBounded(t *testing.T) {
	b := busyFlows{}
	for i := range 3 * mostBusy {
		b.add(flowID{place: uint32(i)})
	}
	for range 10 {
		b.add(flowID{place: 7})
	}
	b.forget()
	if len(b) != mostBusy/2 {
		t.Errorf("%d flows are remembered, want %d", len(b), mostBusy/2)
	}
	if b[flowID{place: 7}] < 10 {
		t.Error("the busiest flow is forgotten")
	}
}
