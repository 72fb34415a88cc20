// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/testnumber"
)

// change calls f with a device of the audited namespace.
func (l *lab) change(name string, f func(netlink.Link) error) {
	l.t.Helper()
	err := l.audited.Namespace.Do(func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return f(link)
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) delete(name string) {
	l.t.Helper()
	l.change(name, netlink.LinkDel)
}

// awaitAttached waits until exactly these devices hold a program.
func (l *lab) awaitAttached(names ...string) {
	l.t.Helper()
	l.poll(func() error {
		modes := l.attached()
		for _, name := range names {
			if modes[name] == 0 {
				return fmt.Errorf("%s is not attached, but %v are", name, modes)
			}
		}
		if len(modes) != len(names) {
			return fmt.Errorf("attached are %v, want %v", modes, names)
		}
		return nil
	})
}

// await scrapes until ready returns nil.
func (e *exporter) await(ready func(scrape) error) (s scrape) {
	e.lab.t.Helper()
	e.lab.poll(func() error {
		s = e.scrape()
		return ready(s)
	})
	return s
}

func hookIs(device string, want float64) func(scrape) error {
	return func(s scrape) error {
		if got := s.series("hook_up", "device="+device); len(got) != 1 || got[0].GetGauge().GetValue() != want {
			return fmt.Errorf("hook_up of %s is %v, want %v", device, got, want)
		}
		return nil
	}
}

func hasNoSeries(device string) func(scrape) error {
	return func(s scrape) error {
		for name := range s {
			if got := s.series(name, "device="+device); len(got) != 0 {
				return fmt.Errorf("%s has a series of %s", name, device)
			}
		}
		return nil
	}
}

// expectPackets expects the number of packets counted on a device.
func (e *exporter) expectPackets(device string, want float64) {
	e.lab.t.Helper()
	if got := e.atRest().sum("packets_total", "device="+device); got != want {
		e.lab.t.Errorf("%v packets were counted on %s, want %v", got, device, want)
	}
}

// A device that matches a glob is attached when it appears. Its series end when it disappears,
// and continue when it comes back.
func TestAGlobIsFollowed(t *testing.T) {
	l := newLab(t)
	e := l.startExporter("--audit.device=audited*")
	second, _ := l.connect("audited1", "sender1", 1)
	l.connect("other0", "sender2", 2)
	l.awaitAttached(device, "audited1")
	l.send(l.newFlow(second.IPv4.Addr()), 300)
	e.expectPackets("audited1", 300)

	l.delete("audited1")
	e.await(hasNoSeries("audited1"))
	s := e.scrape()
	if err := hookIs(device, 1)(s); err != nil {
		t.Error(err)
	}
	if got := s.sum("flow_table_slots_used"); got != 1 {
		t.Errorf("%v slots are in use, want that of the flow on the device that is gone", got)
	}

	second, _ = l.connect("audited1", "sender1", 1)
	l.awaitAttached(device, "audited1")
	l.send(l.newFlow(second.IPv4.Addr()), 100)
	e.expectPackets("audited1", 400)
	e.expectStopped()
}

// A device that is named keeps its hook_up series while it does not exist.
func TestANameIsFollowed(t *testing.T) {
	l := newLab(t)
	e := l.startExporter("--audit.device=audited1", "--audit.follow")
	if err := hookIs("audited1", 0)(e.scrape()); err != nil {
		t.Error(err)
	}
	for round := range 2 {
		second, _ := l.connect("audited1", "sender1", 1)
		l.awaitAttached("audited1")
		e.await(hookIs("audited1", 1))
		l.send(l.newFlow(second.IPv4.Addr()), 100)
		e.expectPackets("audited1", float64(100*(round+1)))
		l.delete("audited1")
		// hook_up is 0 as soon as the device is deleted. The series end when the exporter next
		// lists the devices.
		e.await(func(s scrape) error {
			for name := range s {
				if got := s.series(name, "device=audited1"); len(got) != 0 && name != "hook_up" {
					return fmt.Errorf("%s has a series of a device that is not there", name)
				}
			}
			return hookIs("audited1", 0)(s)
		})
	}
	e.expectStopped()
}

// A renamed device counts as another device. The hook stays attached, so that no packet is
// missed.
func TestARenamedDevice(t *testing.T) {
	l := newLab(t)
	e := l.startExporter("--audit.device=audited*")
	traffic := l.startStream(l.newFlow(l.audited.IPv4.Addr()))
	rename := func(from, to string) {
		t.Helper()
		l.poll(func() error {
			if traffic.flow.written.Load() == 0 {
				return errors.New("nothing was sent")
			}
			return nil
		})
		l.change(from, func(link netlink.Link) error { return netlink.LinkSetName(link, to) })
	}
	rename(device, "audited9")
	e.await(hasNoSeries(device))
	s := e.await(hookIs("audited9", 1))
	e.await(func(s scrape) error {
		if s.sum("packets_total", "device=audited9") == 0 {
			return errors.New("no packet is counted under the new name")
		}
		return nil
	})
	if got := s.label(t, "hook_info", "mode", "device=audited9"); got != "drv" {
		t.Errorf("mode %s after the device was renamed", got)
	}
	rename("audited9", device)
	e.await(hookIs(device, 1))
	sent, err := traffic.end()
	if err != nil {
		t.Fatal(err)
	}
	under := e.atRest().sum("packets_total", "device="+device)
	rename(device, "audited9")
	e.await(hookIs("audited9", 1))
	if other := e.atRest().sum("packets_total", "device=audited9"); under+other != float64(sent.received) {
		t.Errorf("%v packets were counted under one name and %v under the other, and the driver received %d", under, other, sent.received)
	}

	l.change("audited9", func(link netlink.Link) error { return netlink.LinkSetName(link, "other9") })
	l.awaitAttached()
	e.await(hasNoSeries("audited9"))
	e.expectStopped()
}

// The number of devices is limited. A device that disappears makes room, and the next one starts
// its counters at zero.
func TestRoomForDevices(t *testing.T) {
	l := newLab(t)
	e := l.startExporter("--audit.device=audited*", "--audit.max-devices=2", "--audit.min-samples=10", "--audit.threshold=2")
	second, _ := l.connect("audited1", "sender1", 1)
	l.awaitAttached(device, "audited1")
	l.send(l.newFlow(second.IPv4.Addr()), 1000)
	e.expectPackets("audited1", 1000)
	third, _ := l.connect("audited2", "sender2", 2)
	fourth, _ := l.connect("audited3", "sender3", 3)
	e.await(func(s scrape) error {
		if got := s.sum("devices_refused"); got != 2 {
			return fmt.Errorf("%v devices are refused, want 2", got)
		}
		return nil
	})
	e.expectLog("level=ERROR", "audited2", "--audit.max-devices")
	l.send(l.newFlow(third.IPv4.Addr()), 100)
	l.send(l.newFlow(fourth.IPv4.Addr()), 100)

	l.delete("audited1")
	l.awaitAttached(device, "audited2")
	e.await(hookIs("audited2", 1)) // it counts from then on
	l.send(l.newFlow(third.IPv4.Addr()), 200)
	s := e.atRest()
	for name, want := range map[string]float64{device: 0, "audited2": 200} {
		if got := s.sum("packets_total", "device="+name); got != want {
			t.Errorf("%v packets on %s, want %v", got, name, want)
		}
	}
	if got := s.sum("outcomes_total", "outcome=new_flow", "device=audited2"); got != 1 {
		t.Errorf("%v new flows on audited2, want 1", got)
	}
	if got := s.sum("flow_table_slots_used"); got != 2 {
		t.Errorf("%v slots are in use, want 2", got)
	}
	for name, want := range map[string]float64{"device_slots": 2, "device_slots_used": 2, "devices_refused": 1} {
		if got := s.sum(name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	e.expectStopped()
}

// With --audit.follow the exporter waits for its first device.
func TestAbsentDevicesMayCome(t *testing.T) {
	l := newLab(t)
	e := l.startExporter("--audit.device=nothing*", "--audit.follow")
	e.expectLog("level=INFO", "waiting for a device", "nothing*")
	l.change(device, func(link netlink.Link) error {
		// Before Linux 6.2, a device that is up cannot be renamed.
		return errors.Join(netlink.LinkSetDown(link), netlink.LinkSetName(link, "nothing0"), netlink.LinkSetUp(link))
	})
	l.awaitAttached("nothing0")
	e.expectStopped()
}

// Neither descriptors nor memory grow while a hundred devices come and go, or twenty in each of
// FOLLOW_ROUNDS. Their counters are kept.
func TestDevicesComeAndGo(t *testing.T) {
	const devices, warm, group = 20, 3, 1
	rounds := testnumber.Of(t, "FOLLOW_ROUNDS", 5)
	l := newLab(t)
	// The readings for the pages leave garbage, of which little is to be in the figures.
	e := l.launch(binaries.exporter, []string{
		"--web.listen-address=" + address, "--audit.device=again*", "--audit.follow", fmt.Sprintf("--audit.max-devices=%d", devices),
	}, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Environ(), "GOGC=20") })
	e.awaitReady("/-/healthy")
	names := make([]string, devices)
	for i := range names {
		names[i] = fmt.Sprintf("again%d", i)
	}
	before := resources{}
	for round := range rounds + warm {
		if round == warm {
			before = e.resources()
		}
		err := l.audited.Namespace.Do(func() error {
			for i, name := range names {
				pair := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: fmt.Sprintf("peer%d", i)}
				pair.Name, pair.Group = name, group
				if err := netlink.LinkAdd(pair); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		l.awaitAttached(names...)
		if err := l.audited.Namespace.Do(func() error { return deleteGroup(group) }); err != nil {
			t.Fatal(err)
		}
	}
	l.awaitAttached()
	e.await(func(s scrape) error {
		if got := s.sum("device_slots_used"); got != 0 {
			return fmt.Errorf("%v devices are left", got)
		}
		return nil
	})
	after := e.resources()
	t.Logf("over %d devices: from %+v to %+v", rounds*devices, before, after)
	if after.descriptors > before.descriptors {
		t.Errorf("%d descriptors, and %d before", after.descriptors, before.descriptors)
	}
	if after.residentKiB > before.residentKiB+2<<10+2*rounds*devices {
		t.Errorf("%d KiB of memory, and %d before", after.residentKiB, before.residentKiB)
	}
	if after.goroutines > before.goroutines+2 {
		t.Errorf("%v goroutines, and %v before", after.goroutines, before.goroutines)
	}
	e.expectStopped()
}

// deleteGroup deletes all devices of a group in one request, so that the kernel waits only once.
func deleteGroup(group uint32) error {
	request := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	request.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// resources is the usage of a process.
type resources struct {
	descriptors, residentKiB int
	goroutines               float64
}

func (e *exporter) resources() (r resources) {
	e.lab.t.Helper()
	s := e.scrape()
	r.goroutines = s.sum("go_goroutines")
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", e.cmd.Process.Pid))
	if err != nil {
		e.lab.t.Fatal(err)
	}
	r.descriptors = len(entries)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", e.cmd.Process.Pid))
	if err != nil {
		e.lab.t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(status), "VmRSS:")
	if _, err := fmt.Sscan(line, &r.residentKiB); err != nil {
		e.lab.t.Fatal(err)
	}
	return r
}

// The reason for which the driver refuses a program is in the message.
func TestARefusalGivesTheReason(t *testing.T) {
	l := newLab(t)
	args := []string{"--audit.device=lo", "--web.listen-address=" + address}
	l.start(binaries.exporter, args).expectRefusal("lo", kernelRefusesNative, "skb")
	if links, err := l.audited.Namespace.Links(); err != nil || len(links) != 2 {
		t.Errorf("devices %v, %v", links, err)
	}
}

// A device that was refused at the start is attached soon after the obstacle is removed: another
// program on the device, or one on the bridge above it.
func TestRefusedDevicesAreAttachedWhenTheyCanBe(t *testing.T) {
	l := newBridgeLab(t)
	l.connect("audited1", "sender1", 1)
	l.occupy(bridge, link.XDPGenericMode)
	_, other := l.occupy("audited1", link.XDPDriverMode)
	e := l.startExporter("--audit.device="+device+",audited1", "--audit.follow")
	l.awaitAttached(bridge, "audited1")
	e.expectLog("level=ERROR", device, kernelRefusesLower)
	e.expectLog("level=ERROR", "audited1", "XDP program")
	l.change(device, netlink.LinkSetNoMaster)
	e.await(hookIs(device, 1))
	if err := hookIs("audited1", 0)(e.scrape()); err != nil {
		t.Error(err)
	}
	other.Close()
	e.await(hookIs("audited1", 1))
	e.endWith(syscall.SIGTERM)
}

// Devices are followed across a restart with pins: the next exporter releases those that have
// disappeared, and attaches those that have appeared.
func TestFollowingAcrossARestart(t *testing.T) {
	l := newLab(t)
	folder := l.mountBPF(0)
	args := []string{"--audit.device=audited*", "--bpf.pin-path=" + folder}
	second, _ := l.connect("audited1", "sender1", 1)
	e := l.startExporter(args...)
	l.send(l.newFlow(second.IPv4.Addr()), 100)
	e.endWith(syscall.SIGKILL)
	l.delete("audited1")
	third, _ := l.connect("audited2", "sender2", 2)
	e = l.startExporter(args...)
	l.awaitAttached(device, "audited2")
	if err := hasNoSeries("audited1")(e.scrape()); err != nil {
		t.Error(err)
	}
	l.send(l.newFlow(third.IPv4.Addr()), 200)
	e.expectPackets("audited2", 200)
	second, _ = l.connect("audited1", "sender1", 1)
	l.awaitAttached(device, "audited1", "audited2")
	e.await(hookIs("audited1", 1)) // the kernel knows of the hook before the exporter exports it
	l.send(l.newFlow(second.IPv4.Addr()), 100)
	e.expectPackets("audited1", 200)
	e.endWith(syscall.SIGTERM)
	l.unpin(folder)
}
