// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// withFile calls f while a file has another text, as in a container with lxcfs. Only the calling
// thread sees that text.
func withFile(t *testing.T, path, text string, f func()) {
	t.Helper()
	mask := filepath.Join(t.TempDir(), "mask")
	if err := os.WriteFile(mask, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked, so that the thread ends with the goroutine
		for _, err := range []error{
			unix.Unshare(unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
			unix.Mount(mask, path, "", unix.MS_BIND, ""),
		} {
			if err != nil {
				done <- err
				return
			}
		}
		f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// A container with lxcfs sees a list of online CPUs that is not that of the kernel. The events of
// all CPUs are read.
func TestRingsWithAFalseListOfCPUs(t *testing.T) {
	needBPF(t)
	cpus := twoCPUs(t)
	for _, list := range []string{"1\n", "0\n", "0-1023\n", ""} {
		config := testConfig()
		config.Threshold, config.Calibrate, config.EventRate = 0, 0, MaxEventRate
		var audit *Audit
		var err error
		withFile(t, "/sys/devices/system/cpu/online", list, func() {
			audit, err = load(config, config.Devices, testKeys(), slog.New(slog.DiscardHandler))
		})
		if err != nil {
			t.Fatalf("list %q: %v", list, err)
		}
		if err := audit.devices.load(audit.devices.listed[0], 0); err != nil {
			t.Fatal(err)
		}
		p := &probe{Audit: audit}
		now := p.learn(t, udpFrame())
		const flags = 45
		for _, cpu := range cpus {
			done := make(chan error)
			go func() {
				runtime.LockOSThread()
				err := moveTo(cpu)
				for range flags {
					now += 1_500_000
					run(t, p.program(0), udpFrame(), now, 1)
				}
				done <- err
			}()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		fates := p.Counters()[0].Fates
		if events := p.readAll(t); len(events) != len(cpus)*flags || fates[FateSent] != uint64(len(cpus)*flags) {
			t.Errorf("list %q: %d events were read of %d flags, and the fates are %v", list, len(events), len(cpus)*flags, fates)
		}
		if err := audit.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A list of possible CPUs that lacks one is refused: the packets of that CPU would be counted for
// another device, or not at all.
func TestRingsWithAFalseListOfPossibleCPUs(t *testing.T) {
	needBPF(t)
	twoCPUs(t)
	possible, err := ebpf.PossibleCPU()
	if err != nil {
		t.Fatal(err)
	}
	online, err := onlineCPUs(possible)
	if err != nil || len(online) < 2 || online[len(online)-1] >= possible {
		t.Fatalf("of %d possible CPUs, %v are online: %v", possible, online, err)
	}
	if _, err := onlineCPUs(possible - 1); err == nil || !strings.Contains(err.Error(), "/sys/devices/system/cpu/possible") {
		t.Errorf("got the error %v, want one that names the list", err)
	}
}

// openRingFiles returns the number of perf events that this process has open.
func openRingFiles(t *testing.T) (n int) {
	t.Helper()
	const directory = "/proc/self/fd"
	files, err := os.ReadDir(directory)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if target, err := os.Readlink(filepath.Join(directory, file.Name())); err == nil && strings.Contains(target, "[perf_event]") {
			n++
		}
	}
	return n
}

// Without events there are no rings, which the kernel might refuse. Reading events ends with the
// context, or with the audit.
func TestEventRateOfZeroOpensNoRings(t *testing.T) {
	config := testConfig()
	before := openRingFiles(t)
	config.EventRate = 1
	with := loadTest(t, config)
	if opened := openRingFiles(t) - before; opened == 0 {
		t.Error("an event rate of 1 opened no ring")
	}
	if err := with.Close(); err != nil {
		t.Fatal(err)
	}
	before = openRingFiles(t)
	config.EventRate, config.Threshold, config.Calibrate = 0, 0, 0
	p := newProbe(t, config)
	if opened := openRingFiles(t) - before; opened != 0 {
		t.Errorf("%d rings are open", opened)
	}
	run(t, p.program(0), udpFrame(), p.learn(t, udpFrame())+1e6, 1)
	if fates := p.Counters()[0].Fates; fates[FateRateLimit] != 1 {
		t.Errorf("the fates are %v, want one event over the rate", fates)
	}
	if got := p.EventCounts(); got.Received["test0"] != 0 || got.Lost != 0 {
		t.Errorf("events were counted: %+v", got)
	}
	if events := p.readAll(t); len(events) != 0 {
		t.Errorf("%d events were read", len(events))
	}
	reading := make(chan error)
	go func() {
		reading <- p.ReadEvents(context.Background(), func(*Event) {})
	}()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := <-reading; err != nil {
		t.Error(err)
	}
}
