// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// mountBPF gives the audited namespace a mount namespace with a bpf file system, and returns a
// directory in it for pins. Both end with the test.
func (l *lab) mountBPF(flags uintptr) string {
	l.t.Helper()
	root := l.t.TempDir()
	err := l.audited.Namespace.Do(func() error {
		return errors.Join(
			unix.Unshare(unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("bpf", root, "bpf", flags, ""),
		)
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return filepath.Join(root, "pins")
}

// pinned returns the names of the pins in a directory, and whether it exists.
func (l *lab) pinned(folder string) (names []string, exists bool) {
	l.t.Helper()
	err := l.audited.Namespace.Do(func() error {
		entries, err := os.ReadDir(folder)
		for _, entry := range entries {
			names = append(names, entry.Name())
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		l.t.Fatal(err)
	}
	return names, err == nil
}

// unpin removes the pins of a directory, and expects that nothing is left.
func (l *lab) unpin(folder string) *process {
	l.t.Helper()
	p := l.start(binaries.exporter, []string{"--bpf.pin-path=" + folder, "--bpf.unpin"})
	if code := p.wait(); code != 0 {
		l.t.Errorf("exit code %d of --bpf.unpin: %s", code, &p.stderr)
	}
	l.expectNothingAttached()
	if names, exists := l.pinned(folder); exists {
		l.t.Errorf("the folder is left, with %v", names)
	}
	return p
}

// endWith sends a signal to the exporter and waits. After SIGTERM it expects exit code 0.
func (e *exporter) endWith(signal syscall.Signal) {
	e.lab.t.Helper()
	e.signal(signal)
	want := 0
	if signal == syscall.SIGKILL {
		want = -1
	}
	if code := e.wait(); code != want {
		e.lab.t.Errorf("exit code %d after %v, want %d: %s", code, signal, want, &e.stderr)
	}
}

// flagMuch makes the exporter flag some percent of all packets, with an event for each.
var flagMuch = []string{"--audit.min-samples=10", "--audit.threshold=2", "--audit.event-rate=1000000", "--audit.calibrate=0"}

// Packets received are packets counted, over 100 processes of which every other is killed; 5
// with -short.
func TestRestartsLoseNothing(t *testing.T) {
	restarts := 100
	if testing.Short() {
		restarts = 5
	}
	l := newLab(t)
	folder := l.mountBPF(0)
	args := append([]string{"--audit.device=" + device, "--bpf.pin-path=" + folder}, flagMuch...)
	random := rand.New(rand.NewPCG(1, 1))

	e := l.startExporter(args...)
	traffic := l.startStream(l.newFlow(l.audited.IPv4.Addr()))
	last, killed := e.scrape(), 0
	for range restarts {
		signal := syscall.SIGTERM
		if random.IntN(2) == 0 {
			signal = syscall.SIGKILL
			killed++
		}
		e.endWith(signal)
		if modes := l.attached(); modes[device] != attachedDriver {
			t.Fatalf("attached are %v after %v", modes, signal)
		}
		e = l.startExporter(args...)
		e.expectLog(takenOver)
		now := e.scrape()
		if err := now.checkIdentities(); err != nil {
			t.Error(err)
		}
		last.expectNoFall(t, now)
		last = now
	}
	sent, err := traffic.end()
	if err != nil {
		t.Fatal(err)
	}
	s := e.atRest()
	last.expectNoFall(t, s)
	l.pair().expectPackets(s, sent)
	// The baseline was kept throughout.
	if got := s.sum("outcomes_total", "outcome=new_flow"); got != 1 {
		t.Errorf("%v flows were new, want 1", got)
	}
	gap := s.sum("event_fates_total", "fate=reader_gap")
	if gap == 0 {
		t.Error("no event was left in the rings of those that were killed")
	}
	t.Logf("%d packets in %d restarts, %d of them kill -9; of %v flags %v were read, %v left in the rings and %v found no reader",
		sent.received, restarts, killed, s.sum("leak_flags_total"), s.sum("events_total"), gap, s.sum("event_fates_total", "fate=no_reader"))
	e.endWith(syscall.SIGTERM)
	l.unpin(folder)
}

// expectNoFall expects that no counter of the audit is lower in a later scrape. Counters of the
// process start from zero.
func (s scrape) expectNoFall(t *testing.T, later scrape) {
	t.Helper()
	for _, name := range []string{
		"packets_total", "bytes_total", "outcomes_total", "leak_flags_total", "events_total", "event_fates_total", "deltas_total",
		"delta_time_seconds_total", "flow_inserts_total", "flow_evictions_total",
	} {
		for _, before := range s.series(name) {
			var labels []string
			for _, pair := range before.GetLabel() {
				labels = append(labels, pair.GetName()+"="+pair.GetValue())
			}
			if was, now := before.GetCounter().GetValue(), later.sum(name, labels...); now < was {
				t.Errorf("%s %v fell from %v to %v", name, labels, was, now)
			}
		}
	}
}

// Another build with the same layout replaces the program. The hook stays, and the counters
// continue.
func TestUpgrade(t *testing.T) {
	l := newLab(t)
	folder := l.mountBPF(0)
	args := []string{"--audit.device=" + device, "--bpf.pin-path=" + folder}
	f := l.newFlow(l.audited.IPv4.Addr())
	e := l.startExporter(args...)
	l.send(f, 300)
	before := e.atRest()
	e.endWith(syscall.SIGTERM)
	l.send(f, 200)

	// Another threshold, and another device that does not exist.
	args = append(args, "--audit.threshold=7", "--audit.device=absent0", "--web.listen-address="+address)
	e = l.launch(upgraded.path(t), args)
	e.awaitReady("/-/ready")
	s := e.atRest()
	if got := s.sum("packets_total", "device="+device); got != 500 {
		t.Errorf("%v packets were counted, want 500", got)
	}
	if got := s.label(t, "exporter_build_info", "version"); got != upgradedVersion {
		t.Errorf("version %s runs", got)
	}
	if was, is := before.label(t, "hook_info", "program_id"), s.label(t, "hook_info", "program_id"); was == is {
		t.Errorf("the program is still %s", is)
	}
	e.endWith(syscall.SIGTERM)
	l.unpin(folder)
}

// Pins with another layout are replaced with a warning. The hook stays on the device meanwhile.
func TestOtherLayoutsAreReplaced(t *testing.T) {
	for _, test := range []struct {
		description string
		change      func(l *lab, folder string) // of the pins
		args        []string                    // of the second start
		announced   []string
	}{
		{"another size of the flow table", nil, []string{"--audit.flows=1024"}, []string{"slots", "1024", "65536"}},
		{"another clock", nil, []string{"--audit.clock=metadata"}, []string{"clock", "metadata", "ktime"}},
		{"another domain", nil, []string{"--audit.domain=log2"}, []string{"domain", "log2", "linear"}},
		{"another baseline", nil, []string{"--audit.baseline=device"}, []string{"baseline", "device", "flow"}},
		{"another window", nil, []string{"--audit.window=100"}, []string{"window", "100", "8192"}},
		{"more devices than there is room for", nil, []string{"--audit.max-devices=17"}, []string{"devices", "17", "16"}},
		{"a build whose maps mean something else", rewriteLayout("version=1", "version=0"), nil, []string{"version"}},
		{"a build whose maps have other types", rewriteLayout("types=", "types=f"), nil, []string{"types"}},
		{"a start that was cut short", remove("map_audit_layout"), nil, []string{"no layout"}},
		{"a map that was removed", remove("map_flow_keys"), nil, []string{"flow_keys", "missing"}},
	} {
		t.Run(test.description, func(t *testing.T) {
			l := newLab(t)
			folder := l.mountBPF(0)
			args := []string{"--audit.device=" + device, "--bpf.pin-path=" + folder}
			f := l.newFlow(l.audited.IPv4.Addr())
			e := l.startExporter(args...)
			l.send(f, 300)
			e.endWith(syscall.SIGTERM)
			if test.change != nil {
				test.change(l, folder)
			}
			e = l.startExporter(append(args, test.args...)...)
			e.expectLog(append([]string{"level=WARN", mapsReplaced}, test.announced...)...)
			warnings := 1
			if slices.Contains(test.args, "--audit.clock=metadata") {
				warnings++ // no program puts the time in front of packets
				e.expectLog("level=WARN", "no device here runs another XDP program")
			}
			if got := strings.Count(e.stderr.String(), "level=WARN"); got != warnings {
				t.Errorf("%d warnings, want %d:\n%s", got, warnings, &e.stderr)
			}
			l.send(f, 100)
			if got := e.atRest().sum("packets_total"); got != 100 {
				t.Errorf("%v packets were counted, want the 100 since then", got)
			}
			e.endWith(syscall.SIGTERM)
			e = l.startExporter(append(args, test.args...)...)
			e.expectLog(takenOver)
			if got := e.atRest().sum("packets_total"); got != 100 {
				t.Errorf("%v packets were counted after another start, want 100", got)
			}
			e.endWith(syscall.SIGTERM)
			l.unpin(folder)
		})
	}
}

func rewriteLayout(before, now string) func(l *lab, folder string) {
	return func(l *lab, folder string) {
		err := l.audited.Namespace.Do(func() error {
			m, err := ebpf.LoadPinnedMap(filepath.Join(folder, "map_audit_layout"), nil)
			if err != nil {
				return err
			}
			defer m.Close()
			value, err := m.LookupBytes(uint32(0))
			if err != nil {
				return err
			}
			changed := bytes.Replace(value, []byte(before), []byte(now), 1)
			if bytes.Equal(changed, value) {
				return fmt.Errorf("the layout has no %s: %s", before, value)
			}
			return m.Put(uint32(0), changed[:len(value)])
		})
		if err != nil {
			l.t.Fatal(err)
		}
	}
}

func remove(name string) func(l *lab, folder string) {
	return func(l *lab, folder string) {
		if err := l.audited.Namespace.Do(func() error { return os.Remove(filepath.Join(folder, name)) }); err != nil {
			l.t.Fatal(err)
		}
	}
}

// A device that is no longer audited is detached, and the others continue.
func TestDevicesOfARestart(t *testing.T) {
	l := newLab(t)
	folder := l.mountBPF(0)
	second, _ := l.connect("audited1", "sender1", 1)
	pin := "--bpf.pin-path=" + folder
	e := l.startExporter(pin, "--audit.device="+device+","+second.Device)
	l.send(l.newFlow(l.audited.IPv4.Addr()), 100)
	l.send(l.newFlow(second.IPv4.Addr()), 200)
	e.endWith(syscall.SIGKILL)
	for _, step := range []struct {
		description, devices string
		want                 map[string]float64
		mode                 string
		attached             uint32
	}{
		{"one less", second.Device, map[string]float64{second.Device: 200}, "drv", attachedDriver},
		{"in another order", second.Device + "," + device, map[string]float64{second.Device: 200, device: 100}, "drv", attachedDriver},
		{"in another mode", device + "," + second.Device, map[string]float64{second.Device: 200, device: 100}, "skb", attachedGeneric},
	} {
		e := l.startExporter(pin, "--audit.device="+step.devices, "--audit.mode="+step.mode)
		s := e.atRest()
		l.awaitAttached(slices.Collect(maps.Keys(step.want))...)
		for name, want := range step.want {
			if got := s.sum("packets_total", "device="+name); got != want {
				t.Errorf("%s: %v packets on %s, want %v", step.description, got, name, want)
			}
			if got := l.attached()[name]; got != step.attached {
				t.Errorf("%s: %s is attached in mode %d, want %d", step.description, name, got, step.attached)
			}
		}
		e.endWith(syscall.SIGTERM)
	}
	l.unpin(folder)
}

func TestUnpin(t *testing.T) {
	l := newLab(t)
	folder := l.mountBPF(0)
	l.unpin(folder).expectLog("nothing", "pinned")
	e := l.startExporter("--audit.device="+device, "--bpf.pin-path="+folder)
	refused := l.start(binaries.exporter, []string{"--bpf.pin-path=" + folder, "--bpf.unpin"})
	refused.expectRefusal(folder, "in use", fmt.Sprintf("process %d", e.cmd.Process.Pid))
	e.endWith(syscall.SIGKILL)
	names, _ := l.pinned(folder)
	if len(names) != 9 {
		t.Errorf("pinned are %v, want eight maps and a hook", names)
	}
	p := l.unpin(folder)
	p.expectLog("detached", "device="+device)
	p.expectLog("removed", "map=flow_sets")
	p.expectLog("removed", folder)
	if got := strings.Count(p.stderr.String(), "\n"); got != len(names)+1 {
		t.Errorf("%d lines, want one for each of %v and one for the folder:\n%s", got, names, &p.stderr)
	}
}

func TestASecondExporterIsRefused(t *testing.T) {
	l := newLab(t)
	folder := l.mountBPF(0)
	e := l.startExporter("--audit.device="+device, "--bpf.pin-path="+folder)
	args := []string{"--audit.device=" + device, "--bpf.pin-path=" + folder, "--web.listen-address=127.0.0.1:9401"}
	l.start(binaries.exporter, args).expectRefusal(folder, "in use", fmt.Sprintf("process %d", e.cmd.Process.Pid))
	f := l.newFlow(l.audited.IPv4.Addr())
	l.send(f, 100)
	if got := e.atRest().sum("packets_total"); got != 100 {
		t.Errorf("%v packets were counted, want 100", got)
	}
	e.endWith(syscall.SIGTERM)
	l.unpin(folder)
}

// Where pinning cannot work, nothing is attached and nothing is pinned.
func TestPinRefusals(t *testing.T) {
	for _, test := range []struct {
		description, path string
		flags             uintptr
		args              []string
		want              []string
	}{
		{"no bpf file system", "/tmp/pins", 0, nil, []string{"/tmp/pins", "mount -t bpf"}},
		{"no such folder above", "/nonexistent/pins", 0, nil, []string{"/nonexistent", "no such file", "mount -t bpf"}},
		{"the root of the file system", "{root}", 0, nil, []string{"mount -t bpf", "/sys/fs/bpf/xdp_audit"}},
		{"a path that is not absolute", "pins", 0, nil, []string{"pins", "absolute"}},
		{"a name with a dot", "{root}/my.pins", 0, nil, []string{"my.pins", "dots"}},
		{"a file system that is read-only", "{root}/pins", unix.MS_RDONLY, nil, []string{"read-only", "mount -o remount,rw"}},
		{"a device that does not exist", "{root}/pins", 0, []string{"--audit.device=absent0"}, []string{"absent0"}},
		{"a device that refuses", "{root}/pins", 0, []string{"--audit.device=lo"}, []string{"lo", "native XDP"}},
		{"nothing named to unpin", "", 0, []string{"--bpf.unpin"}, []string{"--bpf.unpin", "--bpf.pin-path"}},
	} {
		t.Run(test.description, func(t *testing.T) {
			l := newLab(t)
			root := filepath.Dir(l.mountBPF(test.flags))
			args := test.args
			if args == nil {
				args = []string{"--audit.device=" + device}
			}
			if test.path != "" {
				args = append(args, "--bpf.pin-path="+strings.ReplaceAll(test.path, "{root}", root))
			}
			l.start(binaries.exporter, append(args, "--web.listen-address="+address)).expectRefusal(test.want...)
			names, _ := l.pinned(root)
			for _, name := range names {
				if !strings.HasSuffix(name, ".debug") { // created by the kernel
					t.Errorf("%s is left", name)
				}
			}
			l.expectNothingAttached()
		})
	}
}
