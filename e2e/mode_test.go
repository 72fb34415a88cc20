// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestModes(t *testing.T) {
	for _, test := range []struct {
		description, flag, device string
		mode                      string // in which it is attached
		attached                  uint32
		warnings                  int
	}{
		{"native on a device that has it", "drv", device, "drv", attachedDriver, 0},
		{"generic on a device that has native too", "skb", device, "skb", attachedGeneric, 0},
		{"auto takes native where it can", "auto", device, "drv", attachedDriver, 0},
		{"auto falls back to generic, and says so", "auto", "lo", "skb", attachedGeneric, 1},
		{"generic on a device without native", "skb", "lo", "skb", attachedGeneric, 0},
	} {
		t.Run(test.description, func(t *testing.T) {
			l := newLab(t)
			e := l.startExporter("--audit.device="+test.device, "--audit.mode="+test.flag)
			if got := l.attached(); len(got) != 1 || got[test.device] != test.attached {
				t.Errorf("attached are %v, want %s with %d", got, test.device, test.attached)
			}
			e.expectLog("level=INFO", fmt.Sprintf("msg=%q", "XDP audit hook attached on "+test.device+" with mode="+test.mode))
			if got := strings.Count(e.stderr.String(), "level=WARN"); got != test.warnings {
				t.Errorf("%d warnings, want %d:\n%s", got, test.warnings, &e.stderr)
			}
			s := e.scrape()
			if got := s.label(t, "hook_info", "mode", "device="+test.device); got != test.mode {
				t.Errorf("hook_info has mode %s, want %s", got, test.mode)
			}
			if test.device == device {
				l.send(l.newFlow(l.audited.IPv4.Addr()), 1000)
				if got := e.atRest().sum("packets_total", "family=ipv4", "protocol=udp"); got != 1000 {
					t.Errorf("%v packets were counted, want 1000", got)
				}
			}
			e.expectStopped()
		})
	}
}

func TestADeviceThatDoesNotExistIsDown(t *testing.T) {
	l := newLab(t)
	e := l.startExporter("--audit.device=absent0", "--audit.device="+device)
	e.expectLog("level=ERROR", "absent0")
	s := e.scrape()
	for name, want := range map[string]float64{device: 1, "absent0": 0} {
		if got := s.series("hook_up", "device="+name); len(got) != 1 || got[0].GetGauge().GetValue() != want {
			t.Errorf("hook_up of %s is %v, want %v", name, got, want)
		}
	}
	e.expectStopped()
}

// The exporter continues without a device that is deleted, reports that, and ends in order.
func TestADeviceThatVanishesIsDown(t *testing.T) {
	l := newLab(t)
	second, _ := l.connect("audited1", "sender1", 1)
	e := l.startExporter("--audit.device="+device, "--audit.device="+second.Device)
	l.send(l.newFlow(second.IPv4.Addr()), 100)
	err := second.Namespace.Do(func() error {
		link, err := netlink.LinkByName(second.Device)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	if err != nil {
		t.Fatal(err)
	}
	l.send(l.newFlow(l.audited.IPv4.Addr()), 100)
	s := e.atRest()
	for name, want := range map[string]float64{device: 1, second.Device: 0} {
		if got := s.sum("hook_up", "device="+name); got != want {
			t.Errorf("hook_up of %s is %v, want %v", name, got, want)
		}
		if got := s.sum("packets_total", "device="+name, "protocol=udp"); got != 100 {
			t.Errorf("%v packets were counted on %s, want 100", got, name)
		}
	}
	e.expectStopped()
}

func TestEnvironment(t *testing.T) {
	l := newLab(t)
	second, _ := l.connect("audited1", "sender1", 1)
	e := l.launch(binaries.exporter, []string{"--web.listen-address=" + address}, func(cmd *exec.Cmd) {
		cmd.Env = append(os.Environ(), "XDP_INTERFACE="+device+","+second.Device, "XDP_MODE=skb")
	})
	e.awaitReady("/-/ready")
	if got := l.attached(); len(got) != 2 || got[device] != attachedGeneric || got[second.Device] != attachedGeneric {
		t.Errorf("attached are %v, want both devices in generic mode", got)
	}
	e.expectStopped()
}

func TestGlob(t *testing.T) {
	l := newLab(t)
	l.connect("audited1", "sender1", 1)
	l.connect("other0", "sender2", 2)
	e := l.startExporter("--audit.device=audited*")
	if got := l.attached(); len(got) != 2 || got[device] != attachedDriver || got["audited1"] != attachedDriver {
		t.Errorf("attached are %v, want audited0 and audited1", got)
	}
	e.expectStopped()
}
