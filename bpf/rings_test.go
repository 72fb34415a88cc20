// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf/perf"
)

// A CPU whose ring is gone gets a new one, and what is in the old one is read.
func TestRingsAreOpenedAnew(t *testing.T) {
	p := newProbe(t, testConfig())
	now := p.learn(t, udpFrame())
	flag := func() {
		now += 1_500_000
		run(t, p.devices[0].program, udpFrame(), now, 1)
	}
	read := func(reader *perf.Reader) (events int) {
		t.Helper()
		var record perf.Record
		var event Event
		reader.SetDeadline(time.Now())
		if err := p.events.drain(reader, &record, &event, func(*Event) { events++ }); err != nil {
			t.Fatal(err)
		}
		return events
	}
	check := ringCheck{reported: map[int]bool{}}
	mend := func() *perf.Reader {
		t.Helper()
		check.next = time.Time{}
		old, err := p.reopenLostRings(&check)
		if err != nil {
			t.Fatal(err)
		}
		return old
	}

	flag()
	if old := mend(); old != nil {
		t.Error("rings were opened anew at the first look")
	}
	for ring := range p.events.rings.MaxEntries() {
		_ = p.events.rings.Delete(ring)
	}
	flag()
	old := mend()
	if old == nil {
		t.Fatal("rings were not opened anew")
	}
	flag()
	flag()
	if got := read(old); got != 1 {
		t.Errorf("%d events are in the old rings, want 1", got)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	flag()
	if got := read(p.events.reader); got != 3 {
		t.Errorf("%d events are in the new rings, want 3", got)
	}
	if mend() != nil {
		t.Error("rings were opened anew, and none was gone")
	}
	fates := p.Counters()[0].Fates
	if got := p.EventCounts().Received["test0"]; got != 4 || fates[FateSent] != 4 || fates[FateNoReader] != 1 {
		t.Errorf("%d events were received, and the fates are %v", got, fates)
	}
}

func TestCPUsWithoutARing(t *testing.T) {
	var check ringCheck
	for _, test := range []struct {
		description string
		now         map[deviceOnCPU]uint64
		want        []int
	}{
		{"nothing is known yet", map[deviceOnCPU]uint64{{0, 0}: 5, {0, 1}: 0}, nil},
		{"nothing has grown", map[deviceOnCPU]uint64{{0, 0}: 5, {0, 1}: 0}, nil},
		{"two CPUs have grown, and a device is new",
			map[deviceOnCPU]uint64{{0, 0}: 6, {0, 1}: 1, {1, 1}: 7}, []int{0, 1}},
		{"the new one has grown, and another has begun anew", map[deviceOnCPU]uint64{{0, 0}: 0, {0, 1}: 1, {1, 1}: 8}, []int{1}},
	} {
		if got := check.newlyRingless(test.now); !slices.Equal(got, test.want) {
			t.Errorf("%s: got %v, want %v", test.description, got, test.want)
		}
	}
}
