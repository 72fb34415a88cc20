// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"net"
	"slices"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// A device that never took the program is tried less and less often, and anew when it has changed; one that was up once is
// tried at each resync.
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
		change      func(now *iface, d *device) // after every resync from the tenth on
		want        []int                       // resyncs with an attempt
	}{
		{"nothing changes", func(*iface, *device) {}, doubling},
		{"its MTU changes once", func(now *iface, _ *device) { now.mtu = 9000 }, []int{0, 1, 3, 7, 10, 11, 13, 17, 25, 41}},
		{"it is set up", func(now *iface, _ *device) { now.flags = net.FlagUp }, []int{0, 1, 3, 7, 10, 11, 13, 17, 25, 41}},
		{"it leaves a bridge", func(now *iface, _ *device) { now.master = 7 }, []int{0, 1, 3, 7, 10, 11, 13, 17, 25, 41}},
		{"it is made anew", func(now *iface, _ *device) { now.index = 99 }, []int{0, 1, 3, 7, 10, 11, 13, 17, 25, 41}},
		{"another's program is off it", func(now *iface, _ *device) { now.mode = 0 }, []int{0, 1, 3, 7, 10, 11, 13, 17, 25, 41}},
		{"it was up once", func(_ *iface, d *device) { d.wasUp = true }, []int{0, 1, 3, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}},
	} {
		t.Run(test.description, func(t *testing.T) {
			config := testConfig()
			config.Devices, config.Mode, config.Follow = []string{"lo"}, ModeDriver, true
			audit := loadTest(t, config)
			d := audit.devices[0]
			now := iface{name: "lo", index: 1, mtu: 65536, mode: attachedModes[ModeGeneric]}
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
					d.refusal = "not that of an attempt"
					if i == 0 {
						d.refusal = ""
					}
					if failures := audit.reconcile([]iface{now}, true); len(failures) > 0 {
						attempts = append(attempts, i)
					}
					// A message of the kernel is no reason to try what looks the same.
					if failures := audit.reconcile([]iface{now}, false); len(failures) > 0 {
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
