// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package netdev

import (
	"errors"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

func TestGlobsMatchNames(t *testing.T) {
	devices := []Device{{Name: "lo"}, {Name: "eth0"}, {Name: "eth1"}, {Name: "eth10"}, {Name: "wlan0"},
		{Name: "ba%ffd0"}, {Name: "x[1]", AltNames: "uplink0 a%20b"}, {Name: "x1"}, {Name: "a,b"}}
	for _, test := range []struct {
		glob string
		want []string
	}{
		{"eth*", []string{"eth0", "eth1", "eth10"}},
		{"eth?", []string{"eth0", "eth1"}},
		{"[lw]*", []string{"lo", "wlan0"}},
		{"eth0", []string{"eth0"}},
		{"ppp*", nil},
		{"eth[", nil}, // malformed
		{"ba?d0", []string{"ba%ffd0"}},
		{"ba%ff*", []string{"ba%ffd0"}},
		{"x[1]", []string{"x[1]", "x1"}},
		{"x%5b1%5d*", []string{"x[1]"}},
		{"x%5b*", []string{"x[1]"}},
		{"%", nil}, // malformed
		{"uplink*", nil},
		{"", nil},
	} {
		t.Run(test.glob, func(t *testing.T) {
			if got := Match(test.glob, devices); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
	for name, want := range map[string]string{
		"eth1": "eth1", "eth": "", "ba%ffd0": "ba%ffd0", "uplink0": "x[1]", "a%20b": "x[1]", "uplink": "", "": "",
	} {
		if d, ok := Find(name, devices); d.Name != want || ok != (want != "") {
			t.Errorf("%s: got %+v, want %q", name, d, want)
		}
	}
	if got, want := Names(devices[5:]), "ba%ffd0, x%5b1%5d, x1, a%2cb"; got != want {
		t.Errorf("names: got %q, want %q", got, want)
	}
	if got, want := Names(devices[:3]), "lo, eth0, eth1"; got != want {
		t.Errorf("names: got %q, want %q", got, want)
	}
}

// newNamespace makes a network namespace, which takes root. REQUIRE_BPF=1 turns the skip into a
// failure.
func newNamespace(t *testing.T) *netlab.Namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_BPF") == "1" {
			t.Fatal("REQUIRE_BPF=1, but only root may make network namespaces")
		}
		t.Skip("only root may make network namespaces")
	}
	namespace, err := netlab.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(namespace.Close)
	return namespace
}

func addVeth(name, peer string) error {
	return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1400}, PeerName: peer})
}

func TestDevicesOfANamespace(t *testing.T) {
	namespace := newNamespace(t)
	var devices []Device
	var driver, noDriver string
	err := namespace.Do(func() (err error) {
		if err := addVeth("veth-a", "veth-b"); err != nil {
			return err
		}
		devices, err = List()
		driver, noDriver = Driver("veth-a"), Driver("none0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(devices, func(d Device) bool { return d.Name == "veth-a" })
	if len(devices) < 3 || devices[0].Name != "lo" || devices[0].Flags&net.FlagUp == 0 || at < 0 {
		t.Fatalf("got %+v", devices)
	}
	if want := (Device{Name: "veth-a", Index: devices[at].Index, MTU: 1400, Flags: net.FlagBroadcast | net.FlagMulticast, LinkType: "ether"}); devices[at] != want {
		t.Errorf("got %+v, want %+v", devices[at], want)
	}
	if err := namespace.Do(func() error {
		found, err := LookUp(devices[at].Index, 1<<30, 1)
		for i := range found {
			found[i].Received = 0
		}
		if len(found) != 3 || found[0] != devices[at] || found[1] != (Device{}) || found[2] != devices[0] {
			t.Errorf("looked up: got %+v", found)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if driver != "veth" || noDriver != "" {
		t.Errorf("drivers: got %q and %q, want veth and none", driver, noDriver)
	}
	if err := namespace.Do(func() error {
		if id := ProgramID(devices[at].Index) + ProgramID(1<<30); id != 0 {
			t.Errorf("program %d is on a device without one", id)
		}
		if !Exists(devices[at].Index) || Exists(1<<30) {
			t.Errorf("a device exists: %t; a device without a name: %t", Exists(devices[at].Index), Exists(1<<30))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestLinkTypes(t *testing.T) {
	for _, test := range []struct {
		kind, encapsulation string
		name                string
		layer               LinkLayer
	}{
		{"", "ether", "ether", LinkEthernet},
		{"", "loopback", "loopback", LinkEthernet},
		{"wireguard", "none", "none", LinkIP},
		{"", "ppp", "ppp", LinkIP},
		{"", "unknown519", "rawip", LinkIP},
		{"ipip", "ipip", "ipip", LinkIP},
		{"", "tunnel6", "tunnel6", LinkIP},
		{"", "sit", "sit", LinkIP},
		{"", "gre", "gre", LinkIP},
		{"", "unknown823", "gre6", LinkIP},
		{"", "void", "void", LinkOther},
		{"", "infiniband", "infiniband", LinkOther},
		{"", "ieee802.11/radiotap", "ieee802.11/radiotap", LinkOther},
		{"", "unknown280", "can", LinkOther},
		{"", "unknown824", "netlink", LinkOther},
		{"", "unknown4711", "unknown4711", LinkOther},
		{"xfrm", "none", "none", LinkEthernet},
		{"vti", "ipip", "ipip", LinkEthernet},
		{"vti6", "tunnel6", "tunnel6", LinkEthernet},
	} {
		if name, layer := linkOf(test.kind, test.encapsulation); name != test.name || layer != test.layer {
			t.Errorf("%s %s: got %s and layer %d, want %s and %d", test.kind, test.encapsulation, name, layer, test.name, test.layer)
		}
	}
}

// The kernel's numbers of link types arrive as the names above.
func TestLinkTypesOfDevices(t *testing.T) {
	namespace := newNamespace(t)
	var devices []Device
	err := namespace.Do(func() (err error) {
		for name, mode := range map[string]netlink.TuntapMode{"tun-a": netlink.TUNTAP_MODE_TUN, "tap-a": netlink.TUNTAP_MODE_TAP} {
			if err := netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: mode}); err != nil {
				return err
			}
		}
		devices, err = List()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]LinkLayer{"lo": LinkEthernet, "tun-a": LinkIP, "tap-a": LinkEthernet}
	for _, d := range devices {
		if layer, ok := want[d.Name]; !ok || d.Link != layer {
			t.Errorf("%s: got link type %s and layer %d, want %d", d.Name, d.LinkType, d.Link, layer)
		}
	}
}

// Names are listed as text, and the text finds the device and its driver. A change of an
// alternative name is reported.
func TestNamesOfBytes(t *testing.T) {
	namespace := newNamespace(t)
	err := namespace.Do(func() error {
		if err := errors.Join(addVeth("ba\xffd0", "\x1b[31m"), addVeth("a,b", "x[1]")); err != nil {
			return err
		}
		link, err := netlink.LinkByName("a,b")
		// The kernel reports alternative names only of devices that are up.
		if err := errors.Join(err, netlink.LinkSetUp(link)); err != nil {
			return err
		}
		s, err := Subscribe(false)
		if err != nil {
			return err
		}
		defer s.Close()
		for _, name := range []string{"uplink0", "an-alternative-name \xff"} {
			err = errors.Join(err, netlink.LinkAddAltName(link, name))
		}
		if err != nil {
			return err
		}
		select {
		case <-s.Changes():
		case <-time.After(10 * time.Second):
			t.Error("the alternative names are not reported")
		}
		devices, err := List()
		if err != nil {
			return err
		}
		for name, want := range map[string]string{
			"ba%ffd0": "ba%ffd0", "%1b[31m": "%1b[31m", "a,b": "a,b", "x[1]": "x[1]", "uplink0": "a,b",
			"an-alternative-name%20%ff": "a,b", "an-alternative-name": "",
		} {
			d, _ := Find(name, devices)
			if d.Name != want || want != "" && Driver(d.Name) != "veth" {
				t.Errorf("%s is the name of %+v with the driver %q, want %s", name, d, Driver(d.Name), want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestASubscriptionReportsChanges(t *testing.T) {
	namespace := newNamespace(t)
	var s *Subscription
	if err := namespace.Do(func() (err error) { s, err = Subscribe(true); return err }); err != nil {
		t.Fatal(err)
	}
	route := func(change func(*netlink.Route) error) error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return change(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}})
	}
	for _, change := range []struct {
		name string
		make func() error
	}{
		{"devices are added", func() error { return addVeth("veth-a", "veth-b") }},
		{"a device is renamed", func() error {
			link, err := netlink.LinkByName("veth-a")
			return errors.Join(err, netlink.LinkSetName(link, "veth-c"))
		}},
		{"devices are removed", func() error {
			link, err := netlink.LinkByName("veth-c")
			return errors.Join(err, netlink.LinkDel(link))
		}},
		{"a route is added", func() error { return route(netlink.RouteAdd) }},
		{"a route is removed", func() error { return route(netlink.RouteDel) }},
	} {
		drain(s) // a change may have several messages
		if err := namespace.Do(change.make); err != nil {
			t.Fatalf("%s: %v", change.name, err)
		}
		select {
		case _, isOpen := <-s.Changes():
			if !isOpen {
				t.Fatalf("%s: the subscription has ended", change.name)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: that is not reported", change.name)
		}
	}
	s.Close()
	if _, isOpen := <-s.Changes(); isOpen {
		t.Error("the subscription goes on after its end")
	}
	var none *Subscription
	if none.Changes() != nil {
		t.Error("no subscription has changes")
	}
	none.Close()
}

func drain(s *Subscription) {
	select {
	case <-s.Changes():
	default:
	}
}
