// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"context"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Devices change all the time, and the kernel reports that all the time. Looks at the devices,
// attempts to attach a program, and lines of the log stay few.
func TestFlappingCostsLittle(t *testing.T) {
	const (
		minutes = 10
		resyncs = minutes * 6
	)
	remove := func(k *fakeKernel, name string) {
		if _, isHere := k.devices[name]; isHere {
			k.remove(name)
		}
	}
	// The devices differ at each look.
	comeAndGo := func(k *fakeKernel) {
		if k.lists%2 == 0 {
			remove(k, "a")
		} else {
			k.devices["a"] = 10 + k.lists
		}
	}
	for _, test := range []struct {
		description  string
		names, globs []string
		isRefused    bool
		onList       func(k *fakeKernel)
		attempts     int
	}{
		{"a device that is refused goes up and down", []string{"a"}, nil, true, func(k *fakeKernel) {
			k.devices["a"] = 1
			k.flags ^= net.FlagUp
		}, maxAtOnce + minutes + 7},
		{"the peer of a device that is refused goes up and down", []string{"a"}, nil, true, func(k *fakeKernel) {
			k.devices["a"] = 1
			k.flags ^= net.FlagRunning
		}, 7},
		{"a named device that is refused comes and goes", []string{"a"}, nil, true, comeAndGo, maxAtOnce + minutes + 7},
		{"a device that matches a glob and is refused comes and goes", nil, []string{"a*"}, true, comeAndGo, maxAtOnce + minutes + 7},
		{"a named device that is attached comes and goes", []string{"a"}, nil, false, comeAndGo, (maxAtOnce+minutes)*reattachments + resyncs},
		{"a device that matches a glob and is attached comes and goes", nil, []string{"a*"}, false, comeAndGo, (maxAtOnce+minutes)*reattachments + resyncs},
		{"a device comes and goes for which there is no room", []string{"b", "c", "d", "e"}, []string{"a*"}, false, comeAndGo, 0},
		{"many devices change their names", nil, []string{"a*"}, true, func(k *fakeKernel) {
			remove(k, strings.Repeat("a", 1+(k.lists-1)%8))
			k.devices[strings.Repeat("a", 1+k.lists%8)] = 1
		}, 8 * (maxAtOnce + minutes + 7)},
	} {
		t.Run(test.description, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				config := setConfig(test.names, test.globs)
				config.MaxDevices = 4
				k := newFakeKernel()
				s := newTestSet(config, k)
				s.named = test.names
				k.refusedModes[ModeDriver] = test.isRefused
				k.changes = make(fakeSubscription)
				k.onList = func() { test.onList(k) }
				ctx, cancel := context.WithTimeout(t.Context(), minutes*time.Minute)
				defer cancel()
				go s.follow(ctx)
				for ctx.Err() == nil {
					select {
					case k.changes <- struct{}{}:
					case <-ctx.Done():
					}
				}
				synctest.Wait()

				lines := strings.Count(s.log.String(), "\n")
				t.Logf("%d looks, %d attempts and %d lines of the log in %d minutes", k.lists, k.attempts, lines, minutes)
				if most := int(minutes * time.Minute / lookInterval); k.lists > most+1 || k.lists < most*9/10 {
					t.Errorf("%d looks, want at most %d, and almost as many", k.lists, most+1)
				}
				if k.attempts > test.attempts || test.attempts > 0 && k.attempts < min(maxAtOnce, test.attempts)-1 {
					t.Errorf("%d attempts, want at most %d, and the first ones", k.attempts, test.attempts)
				}
				if most := 3*test.attempts + 2*resyncs + 8; lines > most {
					t.Errorf("%d lines of the log, want at most %d", lines, most)
				}
			})
		})
	}
}

// The first change after a quiet time is looked at immediately, and changes in quick succession are
// looked at together.
func TestFirstChangeIsLookedAtImmediately(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel()
		k.changes = make(fakeSubscription)
		s := newTestSet(setConfig(nil, []string{"a*"}), k)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go s.follow(ctx)
		time.Sleep(time.Second)
		synctest.Wait()
		begin := time.Now()
		k.devices["a"] = 1
		k.changes <- struct{}{}
		synctest.Wait()
		if waited := time.Since(begin); k.attachments != 1 || waited != 0 {
			t.Errorf("%d attached after %v, want 1 immediately", k.attachments, waited)
		}
		k.devices["a1"] = 2
		k.changes <- struct{}{}
		synctest.Wait()
		if waited := time.Since(begin); k.attachments != 2 || waited != lookInterval {
			t.Errorf("%d attached after %v, want 2 after %v", k.attachments, waited, lookInterval)
		}
	})
}

// A device that has come and gone for a while, and then stays, is attached at the next resync at
// the latest. After some minutes it is tried at once again.
func TestFlappingDeviceIsAuditedWhenItStays(t *testing.T) {
	s := newTestSet(setConfig(nil, []string{"a*"}), newFakeKernel())
	k := s.kernel
	flap := func() {
		for range 2 * maxAtOnce * reattachments {
			k.lists++
			k.devices["a"] = k.lists
			s.resync(t.Context(), k.list(), false)
			k.remove("a")
			s.resync(t.Context(), k.list(), false)
		}
	}
	flap()
	if want := 1 + (maxAtOnce-1)*reattachments; k.attachments != want {
		t.Errorf("attached %d times, want %d", k.attachments, want)
	}
	k.devices["a"] = 7
	s.resync(t.Context(), k.list(), false)
	if s.hooks()[0].Up {
		t.Error("attached at once")
	}
	s.resync(t.Context(), k.list(), true)
	if !s.hooks()[0].Up {
		t.Error("not attached at the resync")
	}
	for range maxAtOnce * regainInterval {
		s.resync(t.Context(), k.list(), true)
	}
	before := k.attachments
	k.remove("a")
	flap()
	if want := before + maxAtOnce*reattachments; k.attachments != want {
		t.Errorf("attached %d times, want %d", k.attachments, want)
	}
}

// What the set remembers of devices that come and go is forgotten.
func TestRetriesAreForgotten(t *testing.T) {
	s := newTestSet(setConfig(nil, []string{"a*"}), newFakeKernel())
	k := s.kernel
	k.refusedModes[ModeDriver] = true
	for i := range 26 {
		name := "a" + string(rune('a'+i))
		k.devices[name] = i + 1
		s.resync(t.Context(), k.list(), false)
		k.remove(name)
		s.resync(t.Context(), k.list(), false)
	}
	if len(s.retries) == 0 {
		t.Error("nothing is remembered")
	}
	for range maxAtOnce * regainInterval {
		s.resync(t.Context(), k.list(), true)
	}
	if len(s.retries) != 0 || s.log.Len() == 0 {
		t.Errorf("%d devices are remembered", len(s.retries))
	}
}
