// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf/perf"
)

// A CPU that lost its ring gets a new one, and the events in the old rings are still read.
func TestLostRingsAreReopened(t *testing.T) {
	p := newProbe(t, testConfig())
	now := p.learn(t, udpFrame())
	flag := func() {
		now += 1_500_000
		run(t, p.program(0), udpFrame(), now, 1)
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
	reopen := func() *perf.Reader {
		t.Helper()
		check.next = time.Time{}
		old, err := p.reopenLostRings(&check)
		if err != nil {
			t.Fatal(err)
		}
		return old
	}

	flag()
	if old := reopen(); old != nil {
		t.Error("rings were reopened at the first check")
	}
	for ring := range p.events.rings.MaxEntries() {
		_ = p.events.rings.Delete(ring)
	}
	flag()
	old := reopen()
	if old == nil {
		t.Fatal("lost rings were not reopened")
	}
	flag()
	flag()
	if got := read(old); got != 1 {
		t.Errorf("%d events in the old rings, want 1", got)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	flag()
	if got := read(p.events.reader); got != 3 {
		t.Errorf("%d events in the new rings, want 3", got)
	}
	if reopen() != nil {
		t.Error("rings were reopened although none was lost")
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
		{"first check", map[deviceOnCPU]uint64{{0, 0}: 5, {0, 1}: 0}, nil},
		{"no count increased", map[deviceOnCPU]uint64{{0, 0}: 5, {0, 1}: 0}, nil},
		{"two CPUs increased, and a device is new",
			map[deviceOnCPU]uint64{{0, 0}: 6, {0, 1}: 1, {1, 1}: 7}, []int{0, 1}},
		{"the new device increased, and another count was reset", map[deviceOnCPU]uint64{{0, 0}: 0, {0, 1}: 1, {1, 1}: 8}, []int{1}},
	} {
		if got := check.newlyRingless(test.now); !slices.Equal(got, test.want) {
			t.Errorf("%s: got %v, want %v", test.description, got, test.want)
		}
	}
}
