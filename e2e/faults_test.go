// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/testnumber"
)

// faults returns the number of kills in a test: FAULTS, or a number for which there is time in
// CI.
func faults(t *testing.T) int {
	t.Helper()
	return testnumber.Of(t, "FAULTS", 30)
}

// moment is a phase in the life of an exporter at which it is killed.
type moment struct {
	name string
	kill func(e *exporter, random *rand.Rand)
}

// The results must not depend on any of these delays.
var moments = []moment{
	{"start", func(e *exporter, random *rand.Rand) {
		e.killAfter(random, 300*time.Millisecond)
	}},
	{"audit", func(e *exporter, random *rand.Rand) {
		e.awaitReady("/-/ready")
		e.killAfter(random, 50*time.Millisecond)
	}},
	{"scrape", func(e *exporter, random *rand.Rand) {
		e.awaitReady("/-/ready")
		var scrapes sync.WaitGroup
		for range 4 {
			scrapes.Go(func() { _, _, _ = e.ask("/metrics") }) // may be cut off
		}
		e.killAfter(random, 5*time.Millisecond)
		scrapes.Wait()
	}},
	{"stop", func(e *exporter, random *rand.Rand) {
		e.awaitReady("/-/ready")
		e.signal(syscall.SIGTERM)
		e.killAfter(random, 50*time.Millisecond)
	}},
}

func serving(args []string) []string {
	return append([]string{"--web.listen-address=" + address}, args...)
}

// killAfter kills the exporter after a random time, unless it ends before that.
func (e *exporter) killAfter(random *rand.Rand, limit time.Duration) {
	e.lab.t.Helper()
	select {
	case <-e.ended:
	case <-time.After(time.Duration(random.Int64N(int64(limit)))):
	}
	_ = e.cmd.Process.Kill()
	e.wait()
}

// keepReceiving keeps NAPI enabled on a device without an XDP program. Otherwise a veth pair
// discards the frames in its queue when native XDP is detached: one or two frames in some
// hundred detachments under load.
func (l *lab) keepReceiving(device string) {
	l.t.Helper()
	value := struct{ command, data uint32 }{unix.ETHTOOL_SGRO, 1}
	err := l.audited.Namespace.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		with := struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}{data: unsafe.Pointer(&value)}
		copy(with.name[:], device)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&with))); errno != 0 {
			return fmt.Errorf("turning on generic receive offload of %s: %w", device, errno)
		}
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

// An exporter without pins that is killed at any moment leaves nothing attached, and every
// packet passes.
func TestFaults(t *testing.T) {
	l := newLab(t)
	l.keepReceiving(device)
	random := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	traffic := l.startStream(l.newFlow(l.audited.IPv4.Addr()))
	args := append([]string{"--audit.device=" + device}, flagMuch...)
	counts := map[string]int{}
	for range faults(t) {
		m := moments[random.IntN(len(moments))]
		counts[m.name]++
		m.kill(l.launch(binaries.exporter, serving(args)), random)
		if modes := l.attached(); len(modes) != 0 {
			t.Fatalf("attached are %v after a kill at %s", modes, m.name)
		}
	}
	sent, err := traffic.end()
	if err != nil {
		t.Error(err)
	}
	t.Logf("%d packets arrived during kills at %v", sent.received, counts)
	l.startExporter(args...).expectStopped()
}

// An exporter with pins that is killed at any moment leaves an audit that continues, and that
// the next exporter takes over.
func TestFaultsWithPins(t *testing.T) {
	l := newLab(t)
	folder := l.mountBPF(0)
	random := rand.New(rand.NewPCG(2, uint64(time.Now().UnixNano())))
	args := append([]string{"--audit.device=" + device, "--bpf.pin-path=" + folder}, flagMuch...)
	counts := map[string]int{}

	// Interrupt the first start repeatedly, before there is an audit that could continue.
	for range faults(t)/3 + 1 {
		counts["first start"]++
		moments[0].kill(l.launch(binaries.exporter, serving(args)), random)
	}
	l.unpin(folder)
	l.startExporter(args...).endWith(syscall.SIGKILL)

	traffic := l.startStream(l.newFlow(l.audited.IPv4.Addr()))
	for range faults(t) {
		m := moments[random.IntN(len(moments))]
		counts[m.name]++
		m.kill(l.launch(binaries.exporter, serving(args)), random)
		if modes := l.attached(); modes[device] != attachedDriver {
			t.Fatalf("attached are %v after a kill at %s", modes, m.name)
		}
	}
	sent, err := traffic.end()
	if err != nil {
		t.Error(err)
	}
	e := l.startExporter(args...)
	s := e.atRest()
	l.pair().expectPackets(s, sent)
	if got := s.sum("outcomes_total", "outcome=new_flow"); got != 1 {
		t.Errorf("%v flows were new, want 1", got)
	}
	t.Logf("%d packets were counted during kills at %v; %v events had no reader", sent.received, counts,
		s.sum("event_fates_total", "fate=reader_gap"))
	e.endWith(syscall.SIGTERM)
	l.unpin(folder)
}

// An exporter that is killed while it changes the layout leaves a hook, and pins that the next
// exporter takes over or replaces.
func TestFaultsInChangesOfTheLayout(t *testing.T) {
	l := newLab(t)
	folder := l.mountBPF(0)
	random := rand.New(rand.NewPCG(3, uint64(time.Now().UnixNano())))
	args := append([]string{"--audit.device=" + device, "--bpf.pin-path=" + folder}, flagMuch...)
	l.startExporter(args...).endWith(syscall.SIGKILL)

	f := l.newFlow(l.audited.IPv4.Addr())
	traffic := l.startStream(f)
	replaced, taken := 0, 0
	for i := range faults(t) {
		m := moments[random.IntN(len(moments))]
		e := l.launch(binaries.exporter, serving(append(args, fmt.Sprint("--audit.flows=", 1024<<(i%2)))))
		m.kill(e, random)
		if modes := l.attached(); modes[device] != attachedDriver {
			t.Fatalf("attached are %v after a kill at %s", modes, m.name)
		}
		replaced += e.logged(mapsReplaced)
		taken += e.logged(takenOver)
	}
	sent, err := traffic.end()
	if err != nil {
		t.Error(err)
	}
	l.startExporter(append(args, "--audit.flows=4096")...).endWith(syscall.SIGKILL)
	l.send(f, 300)
	e := l.startExporter(append(args, "--audit.flows=4096")...)
	e.expectLog(takenOver)
	if got := e.atRest().sum("packets_total"); got != 300 {
		t.Errorf("%v packets were counted, want 300", got)
	}
	t.Logf("%d packets arrived; maps were replaced %d times and taken over %d times", sent.received, replaced, taken)
	e.endWith(syscall.SIGTERM)
	l.unpin(folder)
}
