// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Each change takes the program away from its device. Before the set is brought in line with that,
// the hook is down with a reason; afterwards the program runs nowhere.
func TestHookIsDownWhenItsDeviceIsElsewhere(t *testing.T) {
	for _, test := range []struct {
		description string
		change      func(k *fakeKernel)
		reason      string
	}{
		{"removed", func(k *fakeKernel) { k.remove("a") }, "was removed"},
		// The hook of a device in another namespace goes on under the index.
		{"moved to another namespace", func(k *fakeKernel) { delete(k.devices, "a") }, "moved to another network namespace"},
		{"renamed", func(k *fakeKernel) { delete(k.devices, "a"); k.devices["x"] = 7 }, "renamed to x"},
		{"renamed, and another has its name", func(k *fakeKernel) { k.devices["x"], k.devices["a"] = 7, 8 }, "renamed to x"},
		{"detached by force", func(k *fakeKernel) { k.detach(7) }, "detached"},
		{"replaced by another's program", func(k *fakeKernel) { k.hooks[7].program = 1000 }, "another process"},
	} {
		for _, isFollowing := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, following %t", test.description, isFollowing), func(t *testing.T) {
				config := setConfig([]string{"a"}, nil)
				config.Follow = isFollowing
				s := newTestSet(config, newFakeKernel())
				s.kernel.devices["a"] = 7
				if err := s.start(t.Context(), s.kernel.list()); err != nil {
					t.Fatal(err)
				}
				s.commit()
				if got := s.hooks()[0]; !got.Up || got.Reason != "" || got.Mode != "drv" {
					t.Fatalf("attached: got %+v", got)
				}
				before := s.kernel.hooks[7]
				test.change(s.kernel)
				if got := s.hooks()[0]; got.Up || got.Mode != "" || !strings.Contains(got.Reason, test.reason) {
					t.Errorf("got %+v, want a hook that is down, and %q", got, test.reason)
				}
				if err := s.ready(); err == nil || !strings.Contains(err.Error(), test.reason) {
					t.Errorf("readiness: got %v, want %q", err, test.reason)
				}

				devices := s.kernel.list()
				if isFollowing {
					s.resync(t.Context(), devices, true)
				} else {
					s.detachStale(devices)
				}
				if s.kernel.hooks[7] == before {
					t.Error("the hook is still there")
				}
				_, isHere := s.kernel.devices["a"]
				if got := s.hooks()[0]; got.Up != (isFollowing && isHere) || got.Up == (got.Reason != "") {
					t.Errorf("after the hook was detached: got %+v", got)
				}
				if err := s.close(); err != nil || len(s.kernel.hooks) != 0 || s.kernel.programs != 0 {
					t.Errorf("%d hooks and %d programs are left: %v", len(s.kernel.hooks), s.kernel.programs, err)
				}
			})
		}
	}
}

// A hook whose device cannot be asked for is not known to be up.
func TestHookIsDownWhenTheKernelDoesNotAnswer(t *testing.T) {
	s := newTestSet(setConfig([]string{"a"}, nil), newFakeKernel())
	s.kernel.devices["a"] = 7
	s.resync(t.Context(), s.kernel.list(), true)
	s.kernel.lookUpError = errors.New("no sockets")
	if got := s.hooks()[0]; got.Up || got.Reason != "no sockets" {
		t.Errorf("got %+v", got)
	}
	if err := s.ready(); err == nil || !strings.Contains(err.Error(), "a: no sockets") {
		t.Errorf("readiness: got %v", err)
	}
}

// Readiness costs one question to the kernel if the first device is audited, and gives few reasons
// if many are not.
func TestReadinessIsBounded(t *testing.T) {
	var names []string
	for i := range 16 {
		names = append(names, fmt.Sprint("v", i))
	}
	s := newTestSet(setConfig(names, nil), newFakeKernel())
	for i, name := range names {
		s.kernel.devices[name] = i + 1
	}
	s.resync(t.Context(), s.kernel.list(), true)
	if err := s.ready(); err != nil || s.kernel.lookUps != 1 {
		t.Errorf("got %v after %d devices were looked up, want none after 1", err, s.kernel.lookUps)
	}
	for _, name := range names {
		s.kernel.remove(name)
	}
	err := s.ready()
	if err == nil || strings.Count(err.Error(), "removed") != 3 || !strings.HasSuffix(err.Error(), "and 13 more") {
		t.Errorf("got %v, want three reasons", err)
	}
	s = newTestSet(setConfig(nil, []string{"x*", "y*"}), newFakeKernel())
	if err := s.ready(); err == nil || !strings.Contains(err.Error(), "no device matches x*, y*") {
		t.Errorf("without a device: got %v", err)
	}
}

// The hook on a pinned link may be on a device with the index in another namespace. It is not taken
// for the device here, and ends.
func TestPinnedHookOfAnotherNamespaceIsNotTaken(t *testing.T) {
	k := newFakeKernel()
	k.devices["a"] = 7
	k.pinnedHook(7, ModeDriver, 100)
	s := newTestSet(setConfig([]string{"a"}, nil), k)
	s.unclaimedLinks = k.pinnedLinks()
	devices := k.list()
	devices[0].XDP, devices[0].Program = 0, 0 // the device here has no program
	if err := s.start(t.Context(), devices); err != nil {
		t.Fatal(err)
	}
	if hook := k.hooks[7]; hook == nil || hook.program == 100 || !hook.isPinned || k.attachments != 1 {
		t.Errorf("got %+v after %d attachments, want a new hook", hook, k.attachments)
	}
	if !slices.ContainsFunc(s.hooks(), func(h Hook) bool { return h.Up }) {
		t.Error("the device is not audited")
	}
}
