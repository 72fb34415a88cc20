// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// start begins a start of the devices of the configuration, as Prepare does.
func (s *testSet) mustStart(t *testing.T) {
	t.Helper()
	for _, name := range s.config.Devices {
		if _, err := s.appeared(name); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.start(t.Context(), s.kernel.list()); err != nil {
		t.Fatal(err)
	}
}

// isPinned reports whether the hook on a network device is pinned.
func (k *fakeKernel) isPinned(ifindex int) bool {
	hook := k.hooks[ifindex]
	return hook != nil && hook.isPinned
}

// abandon does what Audit.Abandon does.
func (s *testSet) abandon(t *testing.T, before []deviceEntry) {
	t.Helper()
	s.kernel.discardNew()
	s.restoreTable(before, s.kernel.isPinned)
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if s.kernel.programs != 0 {
		t.Errorf("%d programs are left", s.kernel.programs)
	}
}

// A start with another mode and another layout counts in the old maps until it is committed, so
// that nothing is lost if it fails.
func TestANewModeCountsInTheOldLayoutUntilTheCommit(t *testing.T) {
	for _, test := range []struct {
		description string
		isSecret    bool // the program of the hook may not be opened
		want        Mode // of the hook
	}{
		{"the program moves to the new mode", false, ModeDriver},
		{"the program may not be opened, and the hook keeps its mode", true, ModeGeneric},
	} {
		for _, isFailing := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, failing %t", test.description, isFailing), func(t *testing.T) {
				k := newFakeKernel()
				k.devices["a"], k.isSecret = 1, test.isSecret
				k.pinnedHook(1, ModeGeneric, 100)
				s := newTestSet(setConfig([]string{"a"}, nil), k)
				s.isReplacingMaps, s.unclaimedLinks = true, k.pinnedLinks()
				s.mustStart(t)
				check := func(when string, isOwn bool) {
					t.Helper()
					hook := k.hooks[1]
					if hook == nil || hook.mode != test.want || !hook.isPinned || k.isNewPin[1] || (hook.program != 100) != isOwn {
						t.Errorf("%s: got %+v, want a pinned hook in mode %s, own program %t", when, hook, test.want, isOwn)
					}
				}
				check("before the commit", false)
				if isWarned := strings.Contains(s.log.String(), "keeps its mode"); isWarned != test.isSecret {
					t.Errorf("the log has a warning: %t\n%s", isWarned, s.log)
				}
				if isFailing {
					s.abandon(t, nil)
					check("after the failure", false)
					return
				}
				s.commit()
				check("after the commit", true)
				s.checkHooks(t, "after the commit")
				if err := s.close(); err != nil || k.programs != 0 {
					t.Errorf("%v; %d programs are left", err, k.programs)
				}
			})
		}
	}
}

// A device that refuses the new mode has its old hook until the commit, also if the start fails
// later for another reason.
func TestARefusedModeKeepsTheHookUntilTheCommit(t *testing.T) {
	for _, isFailing := range []bool{false, true} {
		k := newFakeKernel()
		k.devices["a"], k.devices["b"] = 1, 2
		k.pinnedHook(1, ModeGeneric, 100)
		k.refused["a"] = true
		k.accepted = map[Mode]bool{ModeGeneric: true}
		s := newTestSet(setConfig([]string{"a", "b"}, nil), k)
		s.unclaimedLinks = k.pinnedLinks()
		s.mustStart(t)
		if hook := k.hooks[1]; hook == nil || hook.mode != ModeGeneric || hook.program != 100 || !hook.isPinned {
			t.Errorf("before the commit: got %+v, want the pinned hook", hook)
		}
		if isFailing {
			s.abandon(t, nil)
			if hook := k.hooks[1]; hook == nil || hook.program != 100 || !hook.isPinned || len(k.hooks) != 1 {
				t.Errorf("after the failure: got %+v and %d hooks, want the pinned hook", hook, len(k.hooks))
			}
			continue
		}
		s.commit()
		if got, want := s.state(), "a 0 waiting, b 1 drv"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		s.checkHooks(t, "after the commit")
	}
}

// A signal in the middle of a commit does not stop it: each displaced audit has its successor, and
// no hook keeps a placeholder.
func TestACommitIsNotInterrupted(t *testing.T) {
	for _, test := range []struct {
		description string
		names       []string
		devices     map[string]int // network devices; 1 and 2 have the pinned hooks
		want        string
	}{
		{"new devices", []string{"x", "y"}, map[string]int{"a": 1, "b": 2, "x": 3, "y": 4}, "x 0 drv, y 1 drv"},
		{"a cycle of renames", []string{"y", "x"}, map[string]int{"x": 1, "y": 2}, "y 0 drv, x 1 drv"},
	} {
		t.Run(test.description, func(t *testing.T) {
			s := pinnedSet(t, setConfig(test.names, nil), "a", "b")
			s.kernel.devices = test.devices
			s.mustStart(t)
			ctx, cancel := context.WithCancel(t.Context())
			s.kernel.onReplace = cancel
			a := &Audit{devices: s.deviceSet, maps: &auditMaps{}}
			if err := a.Commit(ctx); err != nil {
				t.Fatal(err)
			}
			if ctx.Err() == nil {
				t.Error("the context did not end during the commit")
			}
			if got := s.state(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			s.checkHooks(t, "after the commit")
		})
	}
}

// A commit whose context has ended before changes nothing.
func TestACommitDoesNotBeginAfterASignal(t *testing.T) {
	s := pinnedSet(t, setConfig([]string{"x"}, nil), "a")
	s.kernel.devices["x"] = 2
	before := s.pinned()
	s.mustStart(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a := &Audit{devices: s.deviceSet, maps: &auditMaps{}}
	if err := a.Commit(ctx); err == nil {
		t.Error("the commit has succeeded")
	}
	if got := s.pinned(); got != before {
		t.Errorf("got %q, want %q", got, before)
	}
}

// A commit attaches nothing, because it needs no capability: a device whose program cannot be
// started is not audited, and takes no index.
func TestACommitAttachesNothing(t *testing.T) {
	for _, test := range []struct {
		description string
		spoil       func(s *testSet) // between the start and the commit
		devices     map[string]int
		replacing   bool // the layout differs
		want        string
	}{
		{
			"a new device does not start its program", func(s *testSet) { s.kernel.replaceError = unix.EINVAL },
			map[string]int{"a": 1, "x": 2}, false, "x -1 waiting",
		},
		{
			"a device with a hook does not start its program", func(s *testSet) { s.kernel.replaceError = unix.EINVAL },
			map[string]int{"x": 1}, true, "x 0 waiting",
		},
		{
			"a renamed device loses its hook, and the old name keeps its counters", func(s *testSet) { s.kernel.detach(1) },
			map[string]int{"x": 1}, false, "x -1 waiting",
		},
		{
			"a new device loses its hook, and the old one keeps its counters", func(s *testSet) { s.kernel.detach(2) },
			map[string]int{"a": 1, "x": 2}, false, "x -1 waiting",
		},
	} {
		t.Run(test.description, func(t *testing.T) {
			s := pinnedSet(t, setConfig([]string{"x"}, nil), "a")
			s.kernel.devices = test.devices
			if s.isReplacingMaps = test.replacing; test.replacing {
				s.pool.table.entries[0] = deviceEntry{} // of new maps
			}
			cleared := false
			s.pool.clearCounters = func(int) error { cleared = true; return nil }
			s.mustStart(t)
			attached := s.kernel.attachments
			test.spoil(s)
			s.commit()
			if got := s.state(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if s.kernel.attachments != attached {
				t.Error("the commit has attached a program")
			}
			if isVanished := s.kernel.replaceError == nil; isVanished && cleared {
				t.Error("the counters of the old device were cleared")
			}
			if !strings.Contains(s.log.String(), "not audited") {
				t.Errorf("the failure is not in the log:\n%s", s.log)
			}
			s.checkHooks(t, "after the commit")
		})
	}
}

// A device of a glob that was refused before leaves the last index to a named device that waits.
func TestARetryLeavesTheIndexOfANamedDevice(t *testing.T) {
	config := setConfig([]string{"n"}, []string{"x*"})
	config.AllowNone = true
	s := pinnedSet(t, config, "a", "b")
	s.kernel.devices["x1"], s.kernel.devices["x2"] = 7, 8
	s.kernel.refused["x1"] = true
	s.mustStart(t)
	s.commit()
	if got, want := s.state(), "n -1 absent, x1 -1 waiting, x2 0 drv"; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
	delete(s.kernel.refused, "x1")
	for range 5 {
		s.resync(t.Context(), s.kernel.list(), true)
	}
	if got, want := s.state(), "n -1 absent, x1 -1 waiting, x2 0 drv"; got != want {
		t.Errorf("after the retries: got %q, want %q", got, want)
	}
	s.kernel.devices["n"] = 9
	s.resync(t.Context(), s.kernel.list(), true)
	if got, want := s.state(), "n 1 drv, x1 -1 waiting, x2 0 drv"; got != want {
		t.Errorf("after n has appeared: got %q, want %q", got, want)
	}
}

// A start that fails takes no index, and devices that were gone before are gone since then.
func TestAnAbandonedStartReturnsItsIndices(t *testing.T) {
	for _, test := range []struct {
		description string
		devices     map[string]int
		want        string
	}{
		{"a new device", map[string]int{"a": 1, "b": 2, "x": 3}, "hook a, hook b, a 10, b 20"},
		{"a renamed device, whose hook counts under the new name", map[string]int{"b": 2, "x": 1}, "hook x, hook b, a 10, b 20, x 0"},
	} {
		t.Run(test.description, func(t *testing.T) {
			s := pinnedSet(t, setConfig([]string{"x", "b"}, nil), "a", "b", "free")
			s.pool.table.release(2)
			s.kernel.detach(3)
			delete(s.unclaimedLinks, 3)
			s.kernel.devices = test.devices
			before := slices.Clone(s.pool.table.entries)
			before[0].goneNs, before[1].goneNs = 5, 0
			s.mustStart(t)
			s.abandon(t, before)
			if got := s.pinned(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if e := s.pool.table.entries; e[0].goneNs != 5 || e[1].goneNs != 0 {
				t.Errorf("gone since %d and %d, want 5 and 0", e[0].goneNs, e[1].goneNs)
			}
		})
	}
}

// A pinned hook counts on if no program can be loaded for its device, also while that is tried
// again.
func TestAHookCountsOnIfItsDeviceGetsNoProgram(t *testing.T) {
	for _, isOtherLayout := range []bool{false, true} {
		t.Run(fmt.Sprintf("other layout %t", isOtherLayout), func(t *testing.T) {
			s := pinnedSet(t, setConfig([]string{"a", "b"}, nil), "a", "b")
			s.isReplacingMaps = isOtherLayout
			s.kernel.loadErrors = map[string]error{"a": unix.ENOMEM}
			s.mustStart(t)
			s.commit()
			want := "hook a, hook b, a 10, b 20"
			if isOtherLayout {
				want = "hook b, a 10, b 20"
			}
			for range 2 {
				if got := s.pinned(); got != want {
					t.Fatalf("got %q, want %q", got, want)
				}
				s.resync(t.Context(), s.kernel.list(), true)
			}
			s.kernel.loadErrors = nil
			s.listed[0].retry = backoff{}
			s.resync(t.Context(), s.kernel.list(), true)
			if got := s.state(); got != "a 0 drv, b 1 drv" {
				t.Errorf("got %q after a retry", got)
			}
			s.checkHooks(t, "after a retry")
		})
	}
}
