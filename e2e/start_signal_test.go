// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// createMany makes devices with a prefix and the numbers from 0 on, which are up.
func (l *lab) createMany(prefix string, devices int) {
	l.t.Helper()
	err := l.audited.Namespace.Do(func() error {
		for i := 0; i < devices; i += 2 {
			pair := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: fmt.Sprint(prefix, i+1)}
			pair.Name = fmt.Sprint(prefix, i)
			if err := netlink.LinkAdd(pair); err != nil {
				return err
			}
			for _, name := range []string{pair.Name, pair.PeerName} {
				end, err := netlink.LinkByName(name)
				if err != nil {
					return err
				}
				if err := netlink.LinkSetUp(end); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

// A signal in the middle of a commit does not stop it: the devices that have taken the indices of
// others are all audited, and go on without the exporter.
func TestSIGTERMDuringACommit(t *testing.T) {
	devices := 40
	if testing.Short() {
		devices = 4
	}
	l := newLab(t)
	folder := l.mountBPF(0)
	l.createMany("before", devices)
	l.createMany("after", devices)
	args := []string{fmt.Sprintf("--audit.max-devices=%d", devices), "--bpf.pin-path=" + folder}
	l.startExporter(append(args, "--audit.device=before*")...).endWith(syscall.SIGTERM)

	p := l.start(binaries.exporter, serving(append(args, "--audit.device=after*")))
	l.poll(func() error {
		if p.logged("hook attached") == 0 {
			return errors.New("the commit has not begun")
		}
		return nil
	})
	attached := p.logged("hook attached")
	took := p.expectEnd(0)
	t.Logf("it ended after %v; %d of %d devices were attached at the signal", took, attached, devices)
	if got := p.logged("hook attached"); got != devices {
		t.Errorf("%d devices were attached, want %d", got, devices)
	}
	modes := l.attached()
	for i := range devices {
		if name := fmt.Sprint("after", i); modes[name] != attachedDriver {
			t.Errorf("%s has mode %d, want %d", name, modes[name], attachedDriver)
		}
	}
	if len(modes) != devices {
		t.Errorf("%d devices have hooks, want %d", len(modes), devices)
	}
	l.unpin(folder)
}

// SIGTERM ends a start that attaches many devices when few are left, and leaves nothing: neither
// hooks nor pins.
func TestSIGTERMEndsAStart(t *testing.T) {
	const left = 20 // at the signal
	devices := 302
	if testing.Short() {
		devices = 100
	}
	for _, test := range []struct {
		description string
		follow      bool // the devices appear after the start
	}{{"at the start", false}, {"when they appear later", true}} {
		t.Run(test.description, func(t *testing.T) {
			l := newLab(t)
			folder := l.mountBPF(0)
			args := []string{"--audit.device=many*", fmt.Sprintf("--audit.max-devices=%d", devices), "--bpf.pin-path=" + folder}
			if test.follow {
				args = append(args, "--audit.follow")
			} else {
				l.createMany("many", devices)
			}
			p := l.start(binaries.exporter, serving(args))
			if test.follow {
				l.poll(func() error {
					if p.logged("listening on") == 0 {
						return errors.New("the exporter does not serve yet")
					}
					return nil
				})
				l.createMany("many", devices)
			}
			// An attempt takes a tenth of a second, and far more on a busy machine.
			for attached := 0; attached < devices-left; {
				before := attached
				l.poll(func() error {
					if attached = p.logged("hook attached"); attached == before {
						return fmt.Errorf("%d of %d devices are attached", attached, devices)
					}
					return nil
				})
			}
			attached := p.logged("hook attached")
			took := p.expectEnd(0)
			t.Logf("it ended after %v with %d of %d devices attached, and %d at the signal",
				took, p.logged("hook attached"), devices, attached)
			if p.logged("hook attached") == devices {
				t.Error("all devices were attached: the signal did not end the start")
			}
			if !test.follow {
				l.expectNothingAttached()
				l.expectNothingPinned(folder)
				return
			}
			l.unpin(folder) // the start had succeeded, so what is attached is pinned
		})
	}
}

// SIGHUP does not end the process from the time at which the packages of the exporter are
// initialized. GODEBUG=inittrace=1 writes a line for each package; the signal is sent at the
// line of a package of the standard library, ten milliseconds before main.
func TestSIGHUPBeforeMain(t *testing.T) {
	l := newLab(t)
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	p := l.start(binaries.exporter, []string{"--version"}, func(cmd *exec.Cmd) {
		cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
		cmd.Stderr = writer
	})
	writer.Close()
	lines := bufio.NewScanner(reader)
	var before []string
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		if fields[1] == "reflect" {
			_ = p.cmd.Process.Signal(syscall.SIGHUP) // it may have ended already
			break
		}
		before = append(before, fields[1])
	}
	_, _ = io.Copy(io.Discard, reader)
	if code := p.wait(); code != 0 {
		t.Errorf("exit code %d after SIGHUP, want 0; initialized before were %v", code, before)
	}
}

// A SIGHUP during the start reopens the trail once the exporter serves.
func TestSIGHUPDuringTheStart(t *testing.T) {
	l := newLab(t)
	path := t.TempDir() + "/trail"
	p := l.start(binaries.exporter, serving([]string{"--audit.device=" + device, "--trail.file=" + path}))
	l.poll(func() error { // the trail is opened before the devices are attached
		_, err := os.Stat(path)
		return err
	})
	p.signal(syscall.SIGHUP)
	p.expectLog("trail reopened")
	p.expectStopped()
}
