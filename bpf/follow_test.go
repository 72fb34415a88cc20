// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// A device that was never attached is tried at longer and longer intervals, and at once when it has
// changed. A device that was attached once is tried at each resync.
func TestRefusedDevicesAreTriedLessOften(t *testing.T) {
	needBPF(t)
	namespace, err := netlab.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(namespace.Close)
	const resyncs = 70
	doubling := []int{0, 1, 3, 7, 15, 31, 61}
	for _, test := range []struct {
		description string
		change      func(now *netdev.Device, d *device) // after every resync from the tenth on
		want        []int                               // resyncs with an attempt
	}{
		{"nothing changes", func(*netdev.Device, *device) {}, doubling},
		{"its MTU changes once", func(now *netdev.Device, _ *device) { now.MTU = 9000 }, []int{0, 1, 3, 7, 10, 11, 13, 17, 25, 41}},
		{"it is set up", func(now *netdev.Device, _ *device) { now.Flags = net.FlagUp }, []int{0, 1, 3, 7, 10, 11, 13, 17, 25, 41}},
		{"it leaves a bridge", func(now *netdev.Device, _ *device) { now.Master = 7 }, []int{0, 1, 3, 7, 10, 11, 13, 17, 25, 41}},
		{"it is replaced", func(now *netdev.Device, _ *device) { now.Index = 99 }, []int{0, 1, 3, 7, 10, 11, 13, 17, 25, 41}},
		{"another's program is off it", func(now *netdev.Device, _ *device) { now.XDP = 0 }, []int{0, 1, 3, 7, 10, 11, 13, 17, 25, 41}},
		{"it was up once", func(_ *netdev.Device, d *device) { d.wasUp = true }, []int{0, 1, 3, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}},
	} {
		t.Run(test.description, func(t *testing.T) {
			config := testConfig()
			config.Devices, config.Mode, config.Follow = []string{"lo"}, ModeDriver, true
			audit := loadTest(t, config)
			d := audit.devices.listed[0]
			now := netdev.Device{Name: "lo", Index: 1, MTU: 65536, XDP: attachedModes[ModeGeneric]}
			var attempts []int
			last := resyncs
			if len(test.want) > 10 {
				last = 20
			}
			err := namespace.Do(func() error {
				for i := range last {
					if i == 10 {
						test.change(&now, d)
					}
					d.retry.refusal = "not that of an attempt"
					if i == 0 {
						d.retry.refusal = ""
					}
					if failures := audit.devices.reconcile(t.Context(), []netdev.Device{now}, true); len(failures) > 0 {
						attempts = append(attempts, i)
					}
					// A change of another device is not a reason to try this one.
					if failures := audit.devices.reconcile(t.Context(), []netdev.Device{now}, false); len(failures) > 0 {
						t.Errorf("it was tried without a reason after resync %d", i)
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(attempts, test.want) {
				t.Errorf("it was tried at resyncs %v, want %v", attempts, test.want)
			}
		})
	}
}

// giveIndex gives a device the index that it would take.
func (s *deviceSet) giveIndex(d *device) error {
	id, _, err := s.identify(d)
	if err != nil {
		return err
	}
	return s.takeIndex(d, id)
}

// An index is assigned to the next device while events of the device before are still read and the
// device slots are requested. These events are not counted. With -race the test shows that nothing
// is read while it is written.
func TestAnIndexIsHandedOnUnderEvents(t *testing.T) {
	config := testConfig()
	config.Follow, config.MaxDevices = true, 1
	a := loadTest(t, config)
	table := a.maps.devices
	// The race detector does not see mapped memory.
	table.entries = make([]deviceEntry, len(table.entries))
	handOn := func(name string) uint32 {
		t.Helper()
		if err := a.devices.change(func() error {
			for _, d := range slices.Clone(a.devices.listed) {
				d.isNamed = false
				a.devices.vanished(d)
			}
			d, err := a.devices.appeared(name)
			if err == nil && d != nil {
				err = a.devices.giveIndex(d)
			}
			if err != nil || d == nil || d.index != 0 {
				return fmt.Errorf("%s was given no index: %+v, %w", name, d, err)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
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
	if err := a.devices.change(func() error {
		a.devices.vanished(a.devices.listed[0])
		return a.devices.giveIndex(&device{name: "d", index: -1})
	}); err != nil {
		t.Fatal(err)
	}
	if device, err := a.events.count(owner.Load(), true); err != nil || device == nil || device.name != "c" || table.entries[0].received != 0 {
		t.Errorf("the event is of %+v, %v; %d count for the next device", device, err, table.entries[0].received)
	}
}
