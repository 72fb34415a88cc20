// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"net"
	"strings"
	"testing"
)

// A device that is attached and of which nothing will be audited is warned of once, at the start.
func TestWarningsAtStart(t *testing.T) {
	for _, test := range []struct {
		description string
		clock       Clock
		mode        Mode
		prepare     func(k *fakeKernel)
		want        []string // of warnings, for each device
	}{
		{"the devices are up", ClockKtime, ModeDriver, func(*fakeKernel) {}, nil},
		{"the devices are down", ClockKtime, ModeDriver, func(k *fakeKernel) { k.flags = 0 }, []string{"is down"}},
		{"the devices are down and refused", ClockKtime, ModeDriver, func(k *fakeKernel) {
			k.flags, k.refusedModes[ModeDriver] = 0, true
		}, nil},
		{"no program is in front", ClockMetadata, ModeDriver, func(*fakeKernel) {}, []string{"no device here runs another XDP program"}},
		{"a program is on another device", ClockMetadata, ModeDriver, func(k *fakeKernel) {
			k.devices["front"] = 9
			k.hooks[9] = &fakeHook{mode: ModeDriver, program: 1000, handles: 1}
		}, nil},
		{"generic mode passes no metadata on", ClockMetadata, ModeGeneric, func(k *fakeKernel) {
			k.devices["front"] = 9
			k.hooks[9] = &fakeHook{mode: ModeDriver, program: 1000, handles: 1}
		}, []string{"generic mode"}},
	} {
		t.Run(test.description, func(t *testing.T) {
			k := newFakeKernel()
			k.devices["a"], k.devices["b"], k.flags = 1, 2, net.FlagUp
			test.prepare(k)
			config := setConfig([]string{"a", "b"}, nil)
			config.Clock, config.Mode, config.AllowNone = test.clock, test.mode, true
			s := newTestSet(config, k)
			if err := s.start(t.Context(), k.list()); err != nil {
				t.Fatal(err)
			}
			s.commit()
			for range 3 {
				s.resync(t.Context(), k.list(), true)
				s.hooks()
			}
			log := s.log.String()
			for _, part := range test.want {
				for _, name := range []string{"a", "b"} {
					lines := 0
					for line := range strings.Lines(log) {
						if strings.Contains(line, "level=WARN") && strings.Contains(line, part) && strings.Contains(line, "device="+name) {
							lines++
						}
					}
					if lines != 1 {
						t.Errorf("%d warnings of %s with %q, want 1:\n%s", lines, name, part, log)
					}
				}
			}
			if got := strings.Count(log, "level=WARN"); got != 2*len(test.want) {
				t.Errorf("%d warnings, want %d:\n%s", got, 2*len(test.want), log)
			}
		})
	}
}
