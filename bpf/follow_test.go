// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"sync"
	"sync/atomic"
	"testing"
)

// An index goes from one device to the next, while events of the one before are still read and somebody asks for the slots:
// these events count for nobody. With -race it shows that nothing is read while it is written.
func TestAnIndexIsHandedOnUnderEvents(t *testing.T) {
	config := testConfig()
	config.Follow, config.MaxDevices = true, 1
	a := loadTest(t, config)
	table := a.tables.devices
	table.entries = make([]deviceEntry, len(table.entries)) // in memory that the race detector looks at
	handOn := func(name string) uint32 {
		t.Helper()
		a.changing.Lock()
		defer a.changing.Unlock()
		for len(a.devices) > 0 {
			a.change(func() {
				d := a.devices[0]
				a.devices, a.gone = a.devices[1:], append(a.gone, d)
				table.setGone(d.index, true)
			})
		}
		if d, err := a.admit(name, false); err != nil || d == nil || d.index != 0 {
			t.Fatalf("%s was given no index: %+v, %v", name, d, err)
		}
		return table.owner(0)
	}

	owner := atomic.Uint32{}
	owner.Store(handOn("a"))
	var running sync.WaitGroup
	var isOver atomic.Bool
	running.Go(func() {
		for !isOver.Load() {
			if _, err := a.events.count(owner.Load(), true); err != nil {
				t.Error(err)
			}
		}
	})
	running.Go(func() {
		for !isOver.Load() {
			a.DeviceSlots()
			a.EventCounts()
		}
	})
	for range 20 {
		for _, name := range []string{"b", "c"} {
			next := handOn(name)
			if got := a.EventCounts().Received[name]; got != 0 {
				t.Errorf("%d events of the device before count for %s", got, name)
			}
			owner.Store(next)
		}
	}
	isOver.Store(true)
	running.Wait()

	// The same in one thread, between the two steps.
	a.changing.Lock()
	defer a.changing.Unlock()
	a.change(func() {
		a.gone, a.devices = a.devices, nil
		table.setGone(0, true)
	})
	if _, err := a.takeIndex("d"); err != nil {
		t.Fatal(err)
	}
	if device, err := a.events.count(owner.Load(), true); err != nil || device == nil || device.name != "c" || table.entries[0].received != 0 {
		t.Errorf("the event is of %+v, %v; %d count for the next device", device, err, table.entries[0].received)
	}
}
