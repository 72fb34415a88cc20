// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

// pinnedSet returns a set that takes over hooks on network devices 1, 2, … which fill the pool.
// Each device has counted ten flows more than the one before.
func pinnedSet(t *testing.T, config Config, names ...string) *testSet {
	t.Helper()
	config.MaxDevices = uint32(len(names))
	s := newTestSet(config, newFakeKernel())
	for i, name := range names {
		id, err := s.pool.table.plan(i, name)
		if err != nil {
			t.Fatal(err)
		}
		s.pool.table.take(id)
		s.pool.table.entries[i].ifindex = uint32(i + 1)
		s.pool.table.setGone(i, true) // what takeOver does
		countInserts(&s.pool.counters.blocks[i][0], uint64(10*(i+1)))
		s.kernel.devices[name] = i + 1
		s.kernel.pinnedHook(i+1, ModeDriver, 100)
		s.kernel.lastProgram++
	}
	s.unclaimedLinks = s.kernel.pinnedLinks()
	return s
}

// pinned describes the hooks that are pinned and the devices that have an index, with their flows.
func (s *testSet) pinned() string {
	var parts []string
	for _, d := range s.kernel.list() {
		if hook := s.kernel.hooks[d.Index]; hook != nil && hook.isPinned {
			parts = append(parts, "hook "+d.Name)
		}
	}
	for i := range s.pool.table.entries {
		if e := &s.pool.table.entries[i]; e.isTaken() {
			parts = append(parts, fmt.Sprintf("%s %d", e.deviceName(), s.pool.counters.netInserts(i)))
		}
	}
	return strings.Join(parts, ", ")
}

// A start with a full pool of pinned devices keeps the devices that it wants, and changes nothing
// for the others until it is committed.
func TestStartsWithAFullPool(t *testing.T) {
	for _, test := range []struct {
		description  string
		names, globs []string
		pinned       []string
		appear       []string // network devices with the next indices
		refused      string
		failing      string // part of the error of the start
		want         string // after the commit
	}{
		{
			"a device that refuses takes no index", []string{"x"}, nil, []string{"a"}, []string{"x"}, "x",
			"refuses mode drv", "",
		},
		{
			"a device that accepts takes the index of one that is not wanted", []string{"x"}, nil, []string{"a"}, []string{"x"}, "",
			"", "hook x, x 0",
		},
		{
			"wanted devices keep their indices, whatever comes first", []string{"x", "a"}, nil, []string{"a", "b"}, []string{"x"}, "",
			"", "hook a, hook x, a 10, x 0",
		},
		{
			"a device that a glob matches keeps its index", []string{"x"}, []string{"b*"}, []string{"a", "b"}, []string{"x"}, "",
			"", "hook b, hook x, x 0, b 20",
		},
		{
			"all indices are those of wanted devices", []string{"x", "a"}, []string{"b*"}, []string{"a", "b"}, []string{"x"}, "",
			"", "hook a, hook b, a 10, b 20",
		},
		{
			"a device that refuses precedes one that accepts", nil, []string{"v*", "a"}, []string{"a", "b"}, []string{"v1", "v2"}, "v1",
			"", "hook a, hook v2, a 10, v2 0",
		},
		{
			"an absent device takes no index", []string{"absent", "a"}, nil, []string{"a", "b"}, nil, "",
			"", "hook a, a 10, b 20",
		},
	} {
		t.Run(test.description, func(t *testing.T) {
			config := setConfig(test.names, test.globs)
			s := pinnedSet(t, config, test.pinned...)
			for i, name := range test.appear {
				s.kernel.devices[name] = len(test.pinned) + 1 + i
			}
			if test.refused != "" {
				s.kernel.refused[test.refused] = true
			}
			before := s.pinned()
			for _, name := range config.Devices { // what load does
				if _, err := s.appeared(name); err != nil {
					t.Fatal(err)
				}
			}
			err := s.start(t.Context(), s.kernel.list())
			if got := s.pinned(); got != before {
				t.Errorf("before the commit: got %q, want %q", got, before)
			}
			if test.failing != "" {
				if err == nil || !strings.Contains(err.Error(), test.failing) {
					t.Errorf("got error %v, want %q", err, test.failing)
				}
			} else if err != nil {
				t.Error(err)
			}
			if err == nil {
				s.commit()
			}
			want := test.want
			if test.failing != "" {
				want = before
			} else {
				s.checkHooks(t, "after the commit")
				for _, d := range s.listed {
					if id := s.pool.table.identity(max(d.index, 0)); d.isUp() && s.kernel.owners[d.program.id] != id {
						t.Errorf("the program of %s counts for %+v, want %+v", d.name, s.kernel.owners[d.program.id], id)
					}
				}
			}
			if got := s.pinned(); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			if err := s.close(); err != nil {
				t.Error(err)
			}
			if got := s.pinned(); got != want || s.kernel.programs != 0 {
				t.Errorf("after the end: got %q, want %q; %d programs are left", got, want, s.kernel.programs)
			}
		})
	}
}

// A start that has prepared a hook and fails later leaves the audits as they were.
func TestAbandonedStartKeepsAFullPool(t *testing.T) {
	s := pinnedSet(t, setConfig([]string{"x", "y"}, nil), "a", "b")
	s.kernel.devices["x"], s.kernel.devices["y"] = 3, 4
	before := s.pinned()
	if err := s.start(t.Context(), s.kernel.list()); err != nil {
		t.Fatal(err)
	}
	if len(s.kernel.hooks) != 4 {
		t.Errorf("%d hooks, want those of x and y as well", len(s.kernel.hooks))
	}
	s.kernel.discardNew()
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if got := s.pinned(); got != before || len(s.kernel.hooks) != 2 || s.kernel.programs != 0 {
		t.Errorf("got %q, want %q; %d hooks and %d programs are left", got, before, len(s.kernel.hooks), s.kernel.programs)
	}
}

// A hook on a network device that was renamed while no exporter ran goes on under the new name,
// also if the new name takes the index of the old one. Until the commit it counts for the old
// name.
func TestRenamedDeviceTakesItsOldIndex(t *testing.T) {
	s := pinnedSet(t, setConfig([]string{"x"}, nil), "a")
	delete(s.kernel.devices, "a")
	s.kernel.devices["x"] = 1
	hook := s.kernel.hooks[1]
	if err := s.start(t.Context(), s.kernel.list()); err != nil {
		t.Fatal(err)
	}
	if got, want := s.pinned(), "hook x, a 10"; got != want || hook.program != 100 {
		t.Errorf("before the commit: got %q, want %q, and program %d", got, want, hook.program)
	}
	s.commit()
	if got, want := s.pinned(), "hook x, x 0"; got != want || s.kernel.hooks[1] != hook {
		t.Errorf("got %q, want %q on the same hook", got, want)
	}
	s.checkHooks(t, "after the commit")
}

// No hook counts in an index while the index is cleared for another device, also if the network
// devices of the hooks were renamed while no exporter ran. Hooks 1 and 2 count in indices 0 and 1.
func TestCommitClearsNoIndexInUse(t *testing.T) {
	for _, test := range []struct {
		description string
		names       []string
		devices     map[string]int
		want        string
	}{
		{"a new device is first", []string{"c", "b"}, map[string]int{"b": 1, "c": 3}, "c 0 drv, b 1 drv"},
		{"a new device is last", []string{"b", "c"}, map[string]int{"b": 1, "c": 3}, "b 0 drv, c 1 drv"},
		{"each takes the index of the other", []string{"c", "b"}, map[string]int{"b": 1, "c": 2}, "c 0 drv, b 1 drv"},
		{"each takes its own index", []string{"b", "c"}, map[string]int{"b": 1, "c": 2}, "b 0 drv, c 1 drv"},
	} {
		t.Run(test.description, func(t *testing.T) {
			s := pinnedSet(t, setConfig(test.names, nil), "a", "x")
			hook := s.kernel.hooks[1]
			for i, name := range []string{"a", "x"} {
				s.kernel.hooks[i+1].program = ebpf.ProgramID(100 + i)
				delete(s.kernel.devices, name)
			}
			maps.Copy(s.kernel.devices, test.devices)
			clearCounters := s.pool.clearCounters
			s.pool.clearCounters = func(index int) error {
				for ifindex, hook := range s.kernel.hooks {
					if hook.program == ebpf.ProgramID(100+index) {
						t.Errorf("the hook on network device %d counts in index %d", ifindex, index)
					}
				}
				return clearCounters(index)
			}
			for _, name := range test.names {
				if _, err := s.appeared(name); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.start(t.Context(), s.kernel.list()); err != nil {
				t.Fatal(err)
			}
			s.commit()
			if got := s.state(); got != test.want || s.kernel.hooks[1] != hook {
				t.Errorf("got %q, want %q, and b on the same hook", got, test.want)
			}
			s.checkHooks(t, "after the commit")
			if err := s.close(); err != nil || s.kernel.programs != 0 {
				t.Errorf("%v; %d programs are left", err, s.kernel.programs)
			}
		})
	}
}

// A device that refuses the program takes no index, and gives none of a gone device away.
func TestRefusedDevicesHoldNoIndex(t *testing.T) {
	config := setConfig(nil, []string{"v*"})
	config.MaxDevices = 1
	s := newTestSet(config, newFakeKernel())
	resync := func(want string) {
		t.Helper()
		s.resync(t.Context(), s.kernel.list(), true)
		if got := s.state(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	s.kernel.devices["v1"], s.kernel.devices["v2"], s.kernel.refused["v1"] = 1, 2, true
	resync("v1 -1 waiting, v2 0 drv")
	if got, want := s.slots(), (DeviceSlots{Total: 1, Used: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	s.kernel.remove("v2")
	countInserts(&s.pool.counters.blocks[0][0], 5)
	s.kernel.devices["v1"], s.kernel.devices["v3"] = 3, 4 // tried at once, as it is another device
	s.kernel.refused["v3"] = true
	resync("v1 -1 waiting, v3 -1 waiting, v2 0 gone")
	if got := s.pool.counters.netInserts(0); got != 5 {
		t.Errorf("the gone device has %d flows, want 5", got)
	}
	s.kernel.devices["v2"] = 5
	resync("v1 -1 waiting, v3 -1 waiting, v2 0 drv")
}

// An index of a gone device is kept for a named device that is absent.
func TestNamedDeviceKeepsItsPlaceInAFullPool(t *testing.T) {
	config := setConfig([]string{"n"}, []string{"x*"})
	config.AllowNone = true
	s := pinnedSet(t, config, "a")
	s.kernel.devices["x1"] = 7
	if _, err := s.appeared("n"); err != nil {
		t.Fatal(err)
	}
	if err := s.start(t.Context(), s.kernel.list()); err != nil {
		t.Fatal(err)
	}
	s.commit()
	if got, want := s.state(), "n -1 absent, x1 no index"; got != want {
		t.Errorf("after the start: got %q, want %q", got, want)
	}
	if got, want := s.slots(), (DeviceSlots{Total: 1, Used: 1, Refused: 1, GoneFlows: 10}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	s.kernel.devices["n"] = 8
	s.resync(t.Context(), s.kernel.list(), true)
	if got, want := s.state(), "n 0 drv, x1 no index"; got != want {
		t.Errorf("after n has appeared: got %q, want %q", got, want)
	}
	s.checkHooks(t, "in the end")
}

// A start ends between two devices when its context ends, and leaves nothing.
func TestStartIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	k := newFakeKernel()
	for i := range 10 {
		k.devices[fmt.Sprint("v", i)] = i + 1
	}
	config := setConfig(nil, []string{"v*"})
	config.MaxDevices = 10
	s := newTestSet(config, k)
	k.onAttach = func() {
		if k.attachments == 3 {
			cancel()
		}
	}
	if err := s.start(ctx, k.list()); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v", err)
	}
	if k.attachments != 3 {
		t.Errorf("%d devices were attached, want 3", k.attachments)
	}
	if err := s.close(); err != nil || len(k.hooks) != 0 || k.programs != 0 {
		t.Errorf("%v; %d hooks and %d programs are left", err, len(k.hooks), k.programs)
	}
}

// While devices are followed, an attempt to attach many ends as soon.
func TestResyncIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	k := newFakeKernel()
	k.devices["v1"] = 1
	s := newTestSet(setConfig(nil, []string{"v*"}), k)
	s.resync(ctx, k.list(), true)
	if k.attachments != 0 || !slices.Equal(s.hooks(), []Hook{}) {
		t.Errorf("%d devices were attached", k.attachments)
	}
}
