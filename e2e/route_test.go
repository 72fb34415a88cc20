// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"maps"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// defaultRoute adds or removes a default route through a device of the audited namespace.
func (l *lab) defaultRoute(change func(*netlink.Route) error, device string, to netip.Addr) {
	l.t.Helper()
	l.change(device, func(link netlink.Link) error {
		bits := to.BitLen()
		return change(&netlink.Route{
			LinkIndex: link.Attrs().Index, Dst: &net.IPNet{IP: make(net.IP, bits/8), Mask: net.CIDRMask(0, bits)},
		})
	})
}

// Without a device, those that hold a default route are audited in generic mode, as long as they
// hold it. Their counters continue when they hold it again.
func TestTheDefaultRouteIsFollowed(t *testing.T) {
	l := newLab(t)
	second, _ := l.connect("audited1", "sender1", 1)
	v4, v6 := l.audited.IPv4.Addr(), l.audited.IPv6.Addr()
	l.defaultRoute(netlink.RouteAdd, device, v4)
	e := l.startExporter()
	l.awaitAttached(device)
	e.expectLog("default route", "--audit.device", "--audit.mode", "mode=skb")
	e.expectLog("hook attached on "+device, "mode=skb")
	l.send(l.newFlow(v4), 300)
	e.expectPackets(device, 300)

	l.defaultRoute(netlink.RouteAdd, "audited1", v6)
	l.awaitAttached(device, "audited1")
	for name, mode := range l.attached() {
		if mode != attachedGeneric {
			t.Errorf("the program is on %s in mode %d", name, mode)
		}
	}

	// The route moves.
	l.defaultRoute(netlink.RouteDel, device, v4)
	l.awaitAttached("audited1")
	e.await(hasNoSeries(device))
	e.expectLog("detached", "default route", "device="+device)
	l.send(l.newFlow(second.IPv4.Addr()), 100)
	e.expectPackets("audited1", 100)

	// The last route is removed, and another one added.
	l.defaultRoute(netlink.RouteDel, "audited1", v6)
	l.awaitAttached()
	if body := e.get("/-/ready", 503); !strings.Contains(body, "default route") {
		t.Errorf("not ready: %s", body)
	}
	l.defaultRoute(netlink.RouteAdd, device, v6)
	l.awaitAttached(device)
	e.awaitReady("/-/ready")
	l.send(l.newFlow(v4), 50)
	e.expectPackets(device, 350)

	// The device of the route vanishes.
	l.delete(device)
	l.awaitAttached()
	e.expectStopped()
}

// Without --audit.follow the devices of the start stay audited. Without a route at the start,
// --audit.follow waits for one.
func TestTheDefaultRouteAtTheStart(t *testing.T) {
	l := newLab(t)
	l.connect("audited1", "sender1", 1)
	to := l.audited.IPv4.Addr()

	e := l.startExporter("--audit.follow", "--audit.mode=drv")
	l.awaitAttached()
	e.expectLog("waiting", "default route", device)
	l.defaultRoute(netlink.RouteAdd, device, to)
	l.awaitAttached(device)
	if modes := l.attached(); !maps.Equal(modes, map[string]uint32{device: attachedDriver}) {
		t.Errorf("the modes are %v", modes)
	}
	e.expectStopped()

	e = l.startExporter("--no-audit.follow")
	l.awaitAttached(device)
	l.defaultRoute(netlink.RouteDel, device, to)
	l.defaultRoute(netlink.RouteAdd, "audited1", to)
	// The devices are looked at after the route has changed, at the latest when the MTU has.
	l.change(device, func(link netlink.Link) error { return netlink.LinkSetMTU(link, 1400) })
	e.await(hookIs(device, 1))
	l.awaitAttached(device)
	e.expectStopped()
}

// A check says which devices would be audited without a device in the flags, and why others would
// not be.
func TestCheckSeesTheDefaultRoute(t *testing.T) {
	l := newCheckLab(t)
	l.connect("audited1", "sender1", 1)
	_, p := l.check(nil)
	if out := p.stdout.String(); strings.Count(out, "holds no default route") != 3 || !strings.Contains(out, "would not start: no device holds a default route") {
		t.Errorf("without a route:\n%s", out)
	}
	l.defaultRoute(netlink.RouteAdd, "audited1", l.audited.IPv6.Addr())
	l.compare("a default route", true, nil)
	l.compare("a default route that is not followed", true, []string{"--no-audit.follow"})
	l.compare("a default route in hardware", false, []string{"--audit.mode=hw"})
	l.compare("a device without the default route", true, []string{"--audit.device=" + device})
	_, p = l.check(nil)
	for _, want := range []string{"default route, mode skb", "the device would be audited", "\n  the exporter would start\n"} {
		if strings.Count(p.stdout.String(), want) != 1 {
			t.Errorf("the report does not have %q once:\n%s", want, &p.stdout)
		}
	}
	if got := strings.Count(p.stdout.String(), "holds no default route"); got != 2 {
		t.Errorf("%d devices are not audited, want lo and %s:\n%s", got, device, &p.stdout)
	}
}
