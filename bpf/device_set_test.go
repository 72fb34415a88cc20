// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// setConfig audits devices by these names and globs, which are followed.
func setConfig(names, globs []string) Config {
	config := testConfig()
	config.Devices, config.Globs, config.Follow = names, globs, true
	return config
}

// isUp reports whether the link of the device holds its program.
func (d *device) isUp() bool { return d.link != nil && d.link.isOn(d.ifindex, d.id) }

// testSet is a set on a kernel in memory.
type testSet struct {
	*deviceSet
	kernel *fakeKernel
	log    *bytes.Buffer
}

func newTestSet(config Config, kernel *fakeKernel) *testSet {
	log := &bytes.Buffer{}
	s := newDeviceSet(config, slog.New(slog.NewTextHandler(log, nil)))
	indices := config.deviceCapacity()
	blocks := make([]programDeviceCounters, indices)
	events := &eventReader{}
	none := make(owners, indices)
	events.owners.Store(&none)
	s.kernel = kernel
	s.pool = indexPool{
		table: newTestTable(indices), counters: newCounterReader(blocks, 1, indices, config), events: events,
		clearCounters: func(index int) error { blocks[index] = programDeviceCounters{}; return nil },
	}
	return &testSet{s, kernel, log}
}

// state describes the devices: those that are listed with their index and what is on them, the gone
// ones with their index, and those without an index.
func (s *testSet) state() string {
	var parts []string
	for _, d := range s.listed {
		state := "waiting"
		switch {
		case d.link != nil && d.isUp():
			state = string(d.mode)
		case d.link != nil:
			state = "down"
		case d.isGone:
			state = "absent"
		}
		parts = append(parts, fmt.Sprintf("%s %d %s", d.name, d.index, state))
	}
	for _, d := range s.gone {
		parts = append(parts, fmt.Sprintf("%s %d gone", d.name, d.index))
	}
	for name := range s.noIndex {
		parts = append(parts, name+" no index")
	}
	return strings.Join(parts, ", ")
}

// Each step changes the network devices or their hooks; then the set is brought in line with them.
func TestDeviceStates(t *testing.T) {
	type step struct {
		description string
		change      func(k *fakeKernel)
		want        string
	}
	add := func(name string, ifindex int) func(*fakeKernel) {
		return func(k *fakeKernel) { k.devices[name] = ifindex }
	}
	remove := func(name string) func(*fakeKernel) { return func(k *fakeKernel) { k.remove(name) } }
	rename := func(from, to string) func(*fakeKernel) {
		return func(k *fakeKernel) {
			k.devices[to] = k.devices[from]
			delete(k.devices, from)
		}
	}
	refuse := func(name string) func(*fakeKernel) { return func(k *fakeKernel) { k.refused[name] = true } }
	accept := func(name string) func(*fakeKernel) { return func(k *fakeKernel) { delete(k.refused, name) } }
	alias := func(name, device string) func(*fakeKernel) {
		return func(k *fakeKernel) { k.aliases[name] = device }
	}
	nothing := func(*fakeKernel) {}
	for _, test := range []struct {
		description  string
		names, globs []string
		max          uint32
		steps        []step
	}{
		{"a named device", []string{"a"}, nil, 4, []step{
			{"does not exist", nothing, "a 0 absent"},
			{"appears", add("a", 7), "a 0 drv"},
			{"is replaced by another of the name", func(k *fakeKernel) { k.remove("a"); k.devices["a"] = 8 }, "a 0 drv"},
			{"vanishes", remove("a"), "a 0 absent"},
			{"is back", add("a", 9), "a 0 drv"},
			{"loses its hook by force", func(k *fakeKernel) { k.detach(9) }, "a 0 drv"},
		}},
		{"devices that match a glob", nil, []string{"v*"}, 4, []step{
			{"do not exist", nothing, ""},
			{"appear", func(k *fakeKernel) { k.devices["v1"], k.devices["x"], k.devices["v2"] = 1, 2, 3 }, "v1 0 drv, v2 1 drv"},
			{"one vanishes and keeps its index", remove("v1"), "v2 1 drv, v1 0 gone"},
			{"another appears", add("v3", 4), "v2 1 drv, v3 2 drv, v1 0 gone"},
			{"the first is back", add("v1", 5), "v2 1 drv, v3 2 drv, v1 0 drv"},
		}},
		{"a device is renamed", []string{"a"}, []string{"v*"}, 4, []step{
			{"it is up", add("a", 7), "a 0 drv"},
			{"to a name that a glob matches", rename("a", "v1"), "a 0 absent, v1 1 drv"},
			{"and back", rename("v1", "a"), "a 0 drv, v1 1 gone"},
			{"to a name that is not audited", rename("a", "x"), "a 0 absent, v1 1 gone"},
		}},
		{"a device refuses the program", []string{"a"}, []string{"v*"}, 4, []step{
			{"another takes it", func(k *fakeKernel) { k.devices["a"], k.devices["v1"] = 1, 2; k.refused["a"] = true }, "a 0 waiting, v1 1 drv"},
			{"the device accepts it later", accept("a"), "a 0 drv, v1 1 drv"},
			{"it was up, is detached and refuses", func(k *fakeKernel) { k.detach(1); refuse("a")(k) }, "a 0 waiting, v1 1 drv"},
			{"it vanishes", remove("a"), "a 0 absent, v1 1 drv"},
			{"it is back and accepts", func(k *fakeKernel) { accept("a")(k); add("a", 3)(k) }, "a 0 drv, v1 1 drv"},
		}},
		{"every index is taken", nil, []string{"v*"}, 2, []step{
			{"by two devices", func(k *fakeKernel) { k.devices["v1"], k.devices["v2"] = 1, 2 }, "v1 0 drv, v2 1 drv"},
			{"and a third appears", add("v3", 3), "v1 0 drv, v2 1 drv, v3 no index"},
			{"the third vanishes", remove("v3"), "v1 0 drv, v2 1 drv"},
			{"a fourth appears", add("v4", 4), "v1 0 drv, v2 1 drv, v4 no index"},
			{"the first vanishes: its index is handed on", remove("v1"), "v2 1 drv, v4 0 drv"},
			{"the first is back", add("v1", 5), "v2 1 drv, v4 0 drv, v1 no index"},
		}},
		{"an alternative name", []string{"up"}, nil, 4, []step{
			{"does not exist", add("a", 1), "up 0 absent"},
			{"is given to a device", alias("up", "a"), "a 1 drv, up 0 gone"},
			{"moves to another device", func(k *fakeKernel) { k.devices["b"] = 2; k.aliases["up"] = "b" }, "b 2 drv, up 0 gone, a 1 gone"},
			{"moves back", alias("up", "a"), "a 1 drv, up 0 gone, b 2 gone"},
			{"is removed", func(k *fakeKernel) { delete(k.aliases, "up") }, "up 0 absent, b 2 gone, a 1 gone"},
			{"is the name of a device", add("up", 3), "up 0 drv, b 2 gone, a 1 gone"},
			{"stays as the alternative name of the renamed device", func(k *fakeKernel) { rename("up", "c")(k); k.aliases["up"] = "c" }, "c 3 drv, b 2 gone, a 1 gone, up 0 gone"},
		}},
		{"an alternative name without room for two", []string{"up"}, nil, 1, []step{
			{"does not exist", add("a", 1), "up 0 absent"},
			{"is given to a device", alias("up", "a"), "a 0 drv"},
			{"moves to another device", func(k *fakeKernel) { k.devices["b"] = 2; k.aliases["up"] = "b" }, "b 0 drv"},
			{"its device vanishes", func(k *fakeKernel) { k.remove("b"); delete(k.aliases, "up") }, "up -1 absent, b 0 gone"},
			{"and is back", func(k *fakeKernel) { k.devices["b"] = 3; k.aliases["up"] = "b" }, "b 0 drv"},
		}},
		{"an alternative name that no device could have", []string{"an-alternative-name"}, nil, 4, []step{
			{"does not exist", add("a", 1), "an-alternative-name -1 absent"},
			{"is given to a device", alias("an-alternative-name", "a"), "a 0 drv"},
		}},
		{"two names of a device", []string{"up", "a"}, []string{"a*", "up*"}, 4, []step{
			{"are those of two", nothing, "up 0 absent, a 1 absent"},
			{"are those of one", func(k *fakeKernel) { k.devices["a"] = 1; k.aliases["up"] = "a" }, "a 1 drv, up 0 gone"},
			{"which a glob matches, too", func(k *fakeKernel) { k.aliases["up2"] = "a" }, "a 1 drv, up 0 gone"},
		}},
		{"names of bytes and the text of such a name", nil, []string{"*"}, 4, []step{
			{"appear", func(k *fakeKernel) { k.devices["ba%ffd0"], k.devices["ba%25ffd0"] = 1, 2 }, "ba%ffd0 0 drv, ba%25ffd0 1 drv"},
			{"one vanishes", remove("ba%ffd0"), "ba%25ffd0 1 drv, ba%ffd0 0 gone"},
			{"and is back", add("ba%ffd0", 3), "ba%25ffd0 1 drv, ba%ffd0 0 drv"},
		}},
	} {
		t.Run(test.description, func(t *testing.T) {
			config := setConfig(test.names, test.globs)
			config.MaxDevices = test.max
			s := newTestSet(config, newFakeKernel())
			for _, step := range test.steps {
				step.change(s.kernel)
				s.resync(t.Context(), s.kernel.list(), true)
				if got := s.state(); got != step.want {
					t.Fatalf("%s: got %q, want %q", step.description, got, step.want)
				}
				s.checkHooks(t, step.description)
			}
			if err := s.close(); err != nil {
				t.Error(err)
			}
			if len(s.kernel.hooks) != 0 || s.kernel.programs != 0 {
				t.Errorf("%d hooks and %d programs are left", len(s.kernel.hooks), s.kernel.programs)
			}
		})
	}
}

// Each device that an alternative name stands for is logged once.
func TestAlternativeNamesAreLogged(t *testing.T) {
	s := newTestSet(setConfig([]string{"up", "a", "b"}, nil), newFakeKernel())
	s.kernel.devices["a"], s.kernel.devices["b"] = 1, 2
	for _, device := range []string{"a", "a", "b", "b", "a"} {
		s.kernel.aliases["up"] = device
		s.resync(t.Context(), s.kernel.list(), true)
	}
	const a, b = "name=up device=a\n", "name=up device=b\n"
	if log := s.log.String(); strings.Count(log, a) != 2 || strings.Count(log, b) != 1 || strings.Count(log, "detached") > 0 {
		t.Errorf("the log is\n%s", log)
	}
	if got, want := s.state(), "a 0 drv, b 1 drv"; got != want || s.kernel.attachments != 2 {
		t.Errorf("got %q and %d attachments, want %q and 2", got, s.kernel.attachments, want)
	}
}

// checkHooks fails the test unless the hooks are those of the devices that are up, each with the
// device's own program.
func (s *testSet) checkHooks(t *testing.T, description string) {
	t.Helper()
	up := 0
	for _, d := range s.listed {
		if !d.isUp() {
			continue
		}
		up++
		if d.isGone || !d.isCounted() {
			t.Errorf("%s: %s is up, but gone or not counted", description, d.name)
		}
		if got := s.kernel.hooks[d.ifindex].program; got != d.program.id {
			t.Errorf("%s: %s has program %d attached, want its own, %d", description, d.name, got, d.program.id)
		}
	}
	if len(s.kernel.hooks) != up || len(s.unclaimedLinks) != 0 {
		t.Errorf("%s: %d hooks and %d unclaimed links for %d devices", description, len(s.kernel.hooks), len(s.unclaimedLinks), up)
	}
}

// A hook goes on while its device gets another name: it is never detached, and its program is
// replaced.
func TestRenamedDeviceKeepsItsHook(t *testing.T) {
	s := newTestSet(setConfig(nil, []string{"v*"}), newFakeKernel())
	s.kernel.devices["v1"] = 7
	s.resync(t.Context(), s.kernel.list(), false)
	hook := s.kernel.hooks[7]
	before := hook.program
	delete(s.kernel.devices, "v1")
	s.kernel.devices["v2"] = 7
	s.resync(t.Context(), s.kernel.list(), false)
	if got, want := s.state(), "v2 1 drv, v1 0 gone"; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
	if s.kernel.hooks[7] != hook || hook.program == before || s.kernel.attachments != 1 {
		t.Errorf("the hook was attached %d times, and its program is %d after %d", s.kernel.attachments, hook.program, before)
	}
}

// An exporter that ends between the old name and the new one leaves a pinned hook to the next
// exporter, and detaches one that is not pinned.
func TestCloseAmidARenameLeavesAPinnedHook(t *testing.T) {
	for _, isPinning := range []bool{false, true} {
		s := newTestSet(setConfig(nil, []string{"v*"}), newFakeKernel())
		s.kernel.isPinning = isPinning
		s.kernel.devices["v1"] = 7
		s.resync(t.Context(), s.kernel.list(), true)
		delete(s.kernel.devices, "v1")
		s.kernel.devices["v2"] = 7
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s.resync(ctx, s.kernel.list(), false)
		if err := (&Audit{devices: s.deviceSet}).Close(); err != nil {
			t.Error(err)
		}
		if isLeft := s.kernel.hooks[7] != nil; isLeft != isPinning || s.kernel.programs != 0 {
			t.Errorf("pinning %t: the hook is left: %t; %d programs are left", isPinning, isLeft, s.kernel.programs)
		}
	}
}

// A network device is renamed twice. The index of its first name goes to another device, which has
// no effect on the hook.
func TestIndexOfAnOldNameIsGivenAwayWithoutTheHook(t *testing.T) {
	config := setConfig(nil, []string{"*"})
	config.MaxDevices = 2
	s := newTestSet(config, newFakeKernel())
	rename := func(from, to string) {
		s.kernel.devices[to] = s.kernel.devices[from]
		delete(s.kernel.devices, from)
	}
	s.kernel.devices["m"] = 7
	s.resync(t.Context(), s.kernel.list(), true)
	rename("m", "n")
	s.resync(t.Context(), s.kernel.list(), false)
	if got := nameOfHook(s.pool.table.entries, 7); got != "n" || s.pool.table.entries[0].ifindex != 0 {
		t.Errorf("the hook is that of %q, and m is on network device %d", got, s.pool.table.entries[0].ifindex)
	}
	hook := s.kernel.hooks[7]
	rename("n", "z")
	s.kernel.devices["c"] = 3 // before z
	s.resync(t.Context(), s.kernel.list(), false)
	if got, want := s.state(), "c 0 drv, z 1 drv"; got != want || s.kernel.hooks[7] != hook {
		t.Errorf("got %q, want %q, and z on the same hook", got, want)
	}
	s.checkHooks(t, "in the end")
}

// The first device without an index is reported, and no other until there was room for all.
func TestFullPoolIsReportedOnce(t *testing.T) {
	config := setConfig(nil, []string{"v*"})
	config.MaxDevices = 1
	s := newTestSet(config, newFakeKernel())
	for i, name := range []string{"v1", "v2", "v3"} {
		s.kernel.devices[name] = i + 1
		s.resync(t.Context(), s.kernel.list(), true)
	}
	if n := strings.Count(s.log.String(), errNoIndex.Error()); n != 1 {
		t.Errorf("reported %d times, want 1:\n%s", n, s.log)
	}
	if got, want := s.slots(), (DeviceSlots{Total: 1, Used: 1, Refused: 2}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	owner := s.pool.table.owner(0)
	s.kernel.remove("v1")
	s.resync(t.Context(), s.kernel.list(), true)
	if got, want := s.state(), "v2 0 drv, v3 no index"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if found := s.pool.events.owners.Load().find(owner); found == nil || found.name != "v1" || found.received != nil {
		t.Errorf("events of the device before are those of %+v", found)
	}
	if found := s.pool.events.owners.Load().find(s.pool.table.owner(0)); found == nil || found.name != "v2" {
		t.Errorf("events of the next device are those of %+v", found)
	}
}

// What is told of a device that had the index is not told of the next: its flows are those of a
// device that is gone.
func TestRetiredIndexIsCleared(t *testing.T) {
	config := setConfig(nil, []string{"v*"})
	config.MaxDevices = 1
	s := newTestSet(config, newFakeKernel())
	s.kernel.devices["v1"] = 1
	s.resync(t.Context(), s.kernel.list(), true)
	counters := s.pool.counters
	countInserts(&counters.blocks[0][0], 5)
	counters.states[0][0] = blockState{blockSums{above: Uint128{Lo: 1}, below: Uint128{Lo: 2}, squared: Uint128{Lo: 3}}, lineSet{1, 2}}
	counters.totals[0] = Uint128{Lo: 4}
	s.kernel.remove("v1")
	s.kernel.devices["v2"] = 2
	s.resync(t.Context(), s.kernel.list(), true)
	if got, want := s.slots(), (DeviceSlots{Total: 1, Used: 1, GoneFlows: 5}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := counters.blocks[0][0].FlowInserts; got != 0 {
		t.Errorf("the next device begins with %d flows", got)
	}
	if state, total := counters.states[0][0], counters.totals[0]; state != (blockState{}) || total != (Uint128{}) {
		t.Errorf("the next device begins after the state %v and the total %v", state, total)
	}
}

// The hook of a renamed network device counts in the index of its old name. It is detached before
// the index is cleared for another device.
func TestOldHookEndsBeforeItsIndexIsCleared(t *testing.T) {
	config := setConfig(nil, []string{"v*"})
	config.MaxDevices = 1
	s := newTestSet(config, newFakeKernel())
	s.kernel.devices["v1"] = 1
	s.resync(t.Context(), s.kernel.list(), true)
	cleared, clearCounters := 0, s.pool.clearCounters
	s.pool.clearCounters = func(index int) error {
		cleared++
		if s.kernel.hooks[1] != nil {
			t.Error("the old hook still counts in the index")
		}
		return clearCounters(index)
	}
	delete(s.kernel.devices, "v1")
	s.kernel.devices["x"], s.kernel.devices["v2"] = 1, 2
	s.resync(t.Context(), s.kernel.list(), true)
	if got, want := s.state(), "v2 0 drv"; got != want || cleared != 1 {
		t.Errorf("got %q and %d times cleared, want %q and once", got, cleared, want)
	}
	s.checkHooks(t, "in the end")
}

// After a takeover, the devices of the process before keep their indices until they are needed, and
// the device that vanished first loses its index first.
func TestTakenOverIndicesAreHandedOn(t *testing.T) {
	config := setConfig(nil, []string{"v*"})
	config.MaxDevices = 2
	s := newTestSet(config, newFakeKernel())
	table := s.pool.table
	table.mustTake(t, "v1", 0)
	table.mustTake(t, "v2", 1)
	table.entries[1].goneNs = 1 // before the takeover
	a := &Audit{
		logger: s.logger, pins: &pins{path: t.TempDir()}, maps: &auditMaps{devices: table}, devices: s.deviceSet,
	}
	if err := a.takeOver(); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		name string
		want string
	}{
		{"v3", "v3 1 drv"},
		{"v4", "v3 1 drv, v4 0 drv"},
		{"v5", "v3 1 drv, v4 0 drv, v5 no index"},
	} {
		s.kernel.devices[step.name] = len(s.kernel.devices) + 1
		s.resync(t.Context(), s.kernel.list(), true)
		if got := s.state(); got != step.want {
			t.Fatalf("%s appears: got %q, want %q", step.name, got, step.want)
		}
		s.checkHooks(t, step.name)
	}
}

// Hooks that a process before has pinned are on the devices when a start begins. One that fails
// leaves them as they were.
func TestFailedStartLeavesPinnedHooks(t *testing.T) {
	for _, test := range []struct {
		description string
		mode        Mode // of the configuration; the hooks are in mode skb
		prepare     func(k *fakeKernel)
		failing     string // part of the error; empty if a step after the start fails
		isOwn       bool   // the hook has the program of this process in the end
	}{
		{"no device takes the mode", ModeDriver, func(k *fakeKernel) { k.refusedModes[ModeDriver] = true }, "refuses mode drv", false},
		{"the program may not be opened", ModeDriver, func(k *fakeKernel) {
			k.refusedModes[ModeDriver], k.isSecret = true, true
		}, "refuses mode drv", true},
		{"the program is not loaded", ModeGeneric, func(k *fakeKernel) { k.loadError = unix.ENOMEM }, "loading", false},
		{"a later step fails", ModeGeneric, func(*fakeKernel) {}, "", true},
	} {
		t.Run(test.description, func(t *testing.T) {
			k := newFakeKernel()
			k.devices["a"], k.devices["b"] = 1, 2
			k.pinnedHook(1, ModeGeneric, 100)
			k.pinnedHook(2, ModeGeneric, 101)
			test.prepare(k)
			config := setConfig([]string{"a"}, []string{"c*"})
			config.Mode = test.mode
			if test.failing == "" {
				k.devices["c"] = 3
			}
			s := newTestSet(config, k)
			s.unclaimedLinks = k.pinnedLinks()
			err := s.start(t.Context(), k.list())
			if test.failing == "" && err != nil || test.failing != "" && (err == nil || !strings.Contains(err.Error(), test.failing)) {
				t.Fatalf("got %v, want an error with %q", err, test.failing)
			}
			// What Abandon does.
			k.discardNew()
			if err := s.close(); err != nil {
				t.Error(err)
			}
			for ifindex, before := range map[int]uint32{1: 100, 2: 101} {
				hook := k.hooks[ifindex]
				if hook == nil || hook.mode != ModeGeneric || !hook.isPinned || hook.handles != 0 {
					t.Errorf("on device %d: got %+v, want the pinned hook in mode skb", ifindex, hook)
					continue
				}
				if isOwn := uint32(hook.program) != before; isOwn != (test.isOwn && ifindex == 1) {
					t.Errorf("on device %d: program %d, was %d", ifindex, hook.program, before)
				}
			}
			if len(k.hooks) != 2 || k.programs != 0 {
				t.Errorf("%d hooks and %d programs, want 2 and none that is open", len(k.hooks), k.programs)
			}
		})
	}
}

// The hooks that were pinned go on with the programs of this process, and end if their device is
// not in the configuration.
func TestStartTakesPinnedHooksOver(t *testing.T) {
	k := newFakeKernel()
	k.devices["a"], k.devices["b"], k.devices["c"] = 1, 2, 3
	k.pinnedHook(1, ModeDriver, 100)
	k.pinnedHook(2, ModeDriver, 101)
	k.pinnedHook(3, ModeGeneric, 102)
	hooks := []*fakeHook{k.hooks[1], k.hooks[3]}
	s := newTestSet(setConfig([]string{"a", "c"}, nil), k)
	s.unclaimedLinks = k.pinnedLinks()
	if err := s.start(t.Context(), k.list()); err != nil {
		t.Fatal(err)
	}
	if k.hooks[1] != hooks[0] || !k.hooks[1].isPinned || k.isNewPin[1] {
		t.Error("a hook in the right mode is not the one that was pinned")
	}
	if k.hooks[3] == hooks[1] || k.hooks[3].mode != ModeDriver || !k.hooks[3].isPinned || k.isNewPin[3] {
		t.Errorf("a hook in another mode became %+v", k.hooks[3])
	}
	if k.hooks[2] == nil {
		t.Error("the start has detached the hook of a device that is not in the configuration")
	}
	s.resync(t.Context(), k.list(), false)
	if k.hooks[2] == nil {
		t.Error("a resync before the commit has detached the hook of a device that is not in the configuration")
	}
	s.commit()
	s.checkHooks(t, "after the commit")
	if want := `in the configuration" device=b`; !strings.Contains(s.log.String(), want) {
		t.Errorf("the log lacks %q:\n%s", want, s.log)
	}
}

// An attempt takes as long as the kernel verifies a program. Readers do not wait for it; closing
// does, and is the last change.
func TestReadersDoNotWaitForAnAttach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		k.devices["a"] = 1
		k.isLoading, k.mayLoad = make(chan struct{}), make(chan struct{})
		s := newTestSet(setConfig([]string{"a"}, nil), k)
		resync := func() error { s.resync(t.Context(), k.list(), true); return nil }
		changed := make(chan error, 1)
		go func() { changed <- s.change(resync) }()
		<-k.isLoading

		if got := s.hooks(); len(got) != 1 || got[0].Up {
			t.Errorf("hooks: got %+v", got)
		}
		if got := s.slots(); got.Used != 1 {
			t.Errorf("slots: got %+v", got)
		}
		s.each(func(d *device) {
			if d.isCounted() {
				t.Error("a device is counted before it was loaded")
			}
		})
		closed := make(chan error, 1)
		go func() { closed <- s.change(s.close) }()
		synctest.Wait()
		select {
		case err := <-closed:
			t.Errorf("the set is closed while a device is attached: %v", err)
		default:
		}

		close(k.mayLoad)
		if err := errors.Join(<-changed, <-closed); err != nil {
			t.Error(err)
		}
		if err := s.change(func() error { return errors.New("a change after close") }); err != nil {
			t.Error(err)
		}
		s.each(func(*device) { t.Error("a device is read after close") })
		if len(k.hooks) != 0 || k.programs != 0 || s.hooks()[0].Up {
			t.Errorf("%d hooks and %d programs are left", len(k.hooks), k.programs)
		}
	})
}

// A device that is refused for the same reason again is not reported again.
func TestRefusalIsReportedOnce(t *testing.T) {
	s := newTestSet(setConfig([]string{"a"}, nil), newFakeKernel())
	s.kernel.devices["a"], s.kernel.refused["a"] = 1, true
	for range 5 {
		s.resync(t.Context(), s.kernel.list(), true)
	}
	if n := strings.Count(s.log.String(), "refuses mode drv"); n != 1 {
		t.Errorf("reported %d times, want 1:\n%s", n, s.log)
	}
	if s.kernel.loads != 3 || s.kernel.programs != 0 { // at resyncs 0, 1 and 3
		t.Errorf("%d attempts, want 3; %d programs are left", s.kernel.loads, s.kernel.programs)
	}
}

// A device that was refused, and is back after it had vanished, is tried at once.
func TestReturnedDeviceIsTriedAtOnce(t *testing.T) {
	for _, config := range []Config{setConfig([]string{"a"}, nil), setConfig(nil, []string{"a*"})} {
		s := newTestSet(config, newFakeKernel())
		s.kernel.devices["a"], s.kernel.refused["a"] = 1, true
		for range 3 {
			s.resync(t.Context(), s.kernel.list(), true)
		}
		s.kernel.remove("a")
		s.resync(t.Context(), s.kernel.list(), false)
		delete(s.kernel.refused, "a")
		s.kernel.devices["a"] = 1
		s.resync(t.Context(), s.kernel.list(), false)
		if got, want := s.state(), "a 0 drv"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		s.checkHooks(t, "is back")
	}
}

// A device that was up keeps its program and its counters while it refuses the program, and is
// tried at each resync.
func TestRefusalKeepsCounters(t *testing.T) {
	s := newTestSet(setConfig([]string{"a"}, nil), newFakeKernel())
	s.kernel.devices["a"] = 1
	s.resync(t.Context(), s.kernel.list(), true)
	s.kernel.detach(1)
	s.kernel.refused["a"] = true
	for range 5 {
		s.resync(t.Context(), s.kernel.list(), true)
		if d := s.listed[0]; d.link != nil || !d.isCounted() || s.kernel.programs != 1 {
			t.Errorf("attached %v, counted %v with %d programs; want a waiting device that is counted",
				d.link != nil, d.isCounted(), s.kernel.programs)
		}
	}
	delete(s.kernel.refused, "a")
	s.resync(t.Context(), s.kernel.list(), true)
	if got, want := s.state(), "a 0 drv"; got != want || s.kernel.loads != 1 {
		t.Errorf("accepts the program: got %q and %d programs loaded, want %q and 1", got, s.kernel.loads, want)
	}
}

func TestBackoff(t *testing.T) {
	here := netdev.Device{Name: "a", Index: 1, XDP: netdev.XDPGeneric}
	mtu, mode := here, here
	mtu.MTU, mode.XDP = 9000, netdev.XDPNone
	for _, test := range []struct {
		description string
		wasUp       bool
		later       netdev.Device // from resync 10 on
		want        []int         // resyncs with an attempt
	}{
		{"nothing changes", false, here, []int{0, 1, 3, 7, 15, 31, 61, 91}},
		{"the device changes", false, mtu, []int{0, 1, 3, 7, 10, 11, 13, 17, 25, 41, 71}},
		{"another's program leaves it", false, mode, []int{0, 1, 3, 7, 10, 11, 13, 17, 25, 41, 71}},
		{"it was up once", true, here, []int{0, 1, 2, 3, 4, 5}},
	} {
		t.Run(test.description, func(t *testing.T) {
			var b backoff
			var attempts []int
			for i := range 100 {
				now := here
				if i >= 10 {
					now = test.later
				}
				if !b.isDue(now, true, test.wasUp) {
					continue
				}
				if attempts = append(attempts, i); b.failed(now, unix.EBUSY) != (i == 0) {
					t.Errorf("resync %d: the same reason is news, or the first is not", i)
				}
				attached := now
				attached.XDP = netdev.XDPDriver
				if b.isDue(now, false, test.wasUp) || b.isDue(attached, false, test.wasUp) {
					t.Errorf("resync %d: it is due at once, although at most its XDP mode differs", i)
				}
			}
			if attempts = attempts[:min(len(test.want), len(attempts))]; !slices.Equal(attempts, test.want) {
				t.Errorf("got attempts at %v, want %v", attempts, test.want)
			}
			b.succeeded(here)
			if !b.isDue(here, false, true) {
				t.Error("a device that has lost its hook is not due at once")
			}
		})
	}
}
