// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// moveTo moves a device from one namespace to another.
func moveTo(t *testing.T, from, to *netlab.Namespace, name string) {
	t.Helper()
	var thread int
	err := to.Do(func() error { thread = unix.Gettid(); return nil })
	if err == nil {
		err = from.Do(func() error {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return netlink.LinkSetNsPid(link, thread)
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// programOf returns the id of the XDP program of a device; 0 for none.
func programOf(t *testing.T, namespace *netlab.Namespace, name string) uint32 {
	t.Helper()
	link, err := namespace.Link(name)
	if err != nil {
		t.Fatal(err)
	}
	if link.Attrs().Xdp == nil {
		return 0
	}
	return link.Attrs().Xdp.ProgId
}

// A device leaves its name or its namespace. At once hook_up is not 1 any more, and soon the
// program is off the device, so that its packets do not count. If devices are followed, a device
// that has the name again is attached.
func TestHookIsUpOnItsDeviceOnly(t *testing.T) {
	rename := func(from, to string) func(*lab) {
		return func(l *lab) {
			l.change(from, func(link netlink.Link) error {
				// Before Linux 6.2, a device that is up cannot be renamed.
				return errors.Join(netlink.LinkSetDown(link), netlink.LinkSetName(link, to), netlink.LinkSetUp(link))
			})
		}
	}
	var elsewhere *netlab.Namespace // in which the index of the device is free, so that it stays
	moveAway := func(l *lab) {
		elsewhere = l.newNamespace()
		moveTo(l.t, l.audited.Namespace, elsewhere, device)
	}
	for _, test := range []struct {
		description string
		leave       func(l *lab)
		where       func(l *lab) (*netlab.Namespace, string) // of the device then
		comeBack    func(l *lab)
	}{
		{
			"it is moved to another namespace", moveAway,
			func(*lab) (*netlab.Namespace, string) { return elsewhere, device },
			func(l *lab) { moveTo(l.t, elsewhere, l.audited.Namespace, device) },
		},
		{
			"it is renamed", rename(device, "other0"),
			func(l *lab) (*netlab.Namespace, string) { return l.audited.Namespace, "other0" },
			rename("other0", device),
		},
		{
			"it is moved, and another device has its name and its index", func(l *lab) {
				index := 0
				l.change(device, func(link netlink.Link) error { index = link.Attrs().Index; return nil })
				moveAway(l)
				if err := l.audited.Namespace.Do(func() error {
					return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: device, Index: index}})
				}); err != nil {
					l.t.Fatal(err)
				}
			},
			func(*lab) (*netlab.Namespace, string) { return elsewhere, device },
			nil,
		},
	} {
		for _, flags := range [][]string{nil, {"--audit.follow"}, {"pinned"}, {"pinned", "--audit.follow"}} {
			t.Run(strings.Join(append([]string{test.description}, flags...), " "), func(t *testing.T) {
				l := newLab(t)
				args := []string{"--audit.device=" + device, "--audit.mode=auto"}
				isFollowing, isPinned := false, false
				for _, flag := range flags {
					if flag == "pinned" {
						isPinned = true
						args = append(args, "--bpf.pin-path="+l.mountBPF(0))
						continue
					}
					isFollowing = true
					args = append(args, flag)
				}
				e := l.startExporter(args...)
				before := programOf(t, l.audited.Namespace, device)
				l.send(l.newFlow(l.audited.IPv4.Addr()), 100)
				e.expectPackets(device, 100)
				e.await(func(s scrape) error {
					if got := s.sum("device_received_packets_total", "device="+device); got < 100 {
						return fmt.Errorf("the kernel has counted %v packets, want at least 100", got)
					}
					return nil
				})

				test.leave(l)
				if s := e.scrape(); !isFollowing || test.comeBack != nil {
					if err := hookIs(device, 0)(s); err != nil {
						t.Error(err)
					}
				}
				namespace, name := test.where(l)
				l.poll(func() error {
					if id := programOf(t, namespace, name); id != 0 {
						return fmt.Errorf("program %d is still on the device, was %d", id, before)
					}
					return nil
				})
				if !isFollowing {
					e.expectLog("level=WARN", device, "no longer audited", "--audit.follow")
				}
				if test.comeBack != nil {
					test.comeBack(l)
				}
				if isFollowing {
					e.await(hookIs(device, 1))
				} else if err := hookIs(device, 0)(e.scrape()); err != nil {
					t.Errorf("the device is back: %v", err)
				}
				if !isPinned {
					e.expectStopped()
					return
				}
				e.signal(unix.SIGTERM)
				if code := e.wait(); code != 0 {
					t.Errorf("exit code %d, want 0", code)
				}
				l.unpin(strings.TrimPrefix(args[2], "--bpf.pin-path="))
			})
		}
	}
}

// The exporter is ready while at least one device is audited, and healthy meanwhile. The answer
// says why none is.
func TestReadiness(t *testing.T) {
	l := newLab(t)
	e := l.startExporter("--audit.device=audited1,audited2", "--audit.follow")
	awaitUnready := func(parts ...string) {
		t.Helper()
		l.poll(func() error {
			status, body, err := e.ask("/-/ready")
			if err != nil {
				return err
			}
			if status != http.StatusServiceUnavailable || strings.Count(body, "\n") != 1 {
				return fmt.Errorf("got %d: %q", status, body)
			}
			for _, part := range parts {
				if !strings.Contains(body, part) {
					return fmt.Errorf("the answer does not contain %q: %s", part, body)
				}
			}
			return nil
		})
		e.get("/-/healthy", http.StatusOK)
	}
	awaitUnready("no device is audited", "audited1 does not exist", "audited2 does not exist")
	l.connect("audited2", "sender2", 2)
	e.awaitReady("/-/ready")
	l.delete("audited2")
	if status, _, err := e.ask("/-/ready"); err != nil || status != http.StatusServiceUnavailable {
		t.Errorf("the only device is deleted: got %d, %v", status, err)
	}
	awaitUnready("audited2")
	e.expectStopped()

	e = l.startExporter("--audit.device=nothing*", "--audit.follow")
	awaitUnready("no device matches nothing*")
	e.expectStopped()
}

// A device that is down is attached, and warned of at the start, once.
func TestADeviceThatIsDownIsWarnedOf(t *testing.T) {
	l := newLab(t)
	l.change(device, netlink.LinkSetDown)
	e := l.startExporter("--audit.device="+device, "--audit.follow")
	e.await(hookIs(device, 1))
	e.scrape()
	e.expectLog("level=WARN", device, "is down", "ip link set")
	e.expectStopped()
}
