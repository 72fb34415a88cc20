// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

func madeUp(name string, index int, kind string) netdev.Details {
	return netdev.Details{Device: netdev.Device{Name: name, Index: index, MTU: 1500, Flags: net.FlagUp, LinkType: "ether"}, Kind: kind, Driver: "made-up"}
}

// What a check says about native XDP, with the features of drivers from Linux 6.3 on, and by their
// kind before.
func TestNativeXDPIsForetold(t *testing.T) {
	lo, tun, merging := madeUp("lo", 1, "device"), madeUp("tun0", 2, "tuntap"), madeUp("eth1", 3, "device")
	lo.Driver = ""
	tun.Link = netdev.LinkIP
	merging.RefusesXDP = "Can't set XDP"
	port := madeUp("port0", 9, "veth")
	port.Master = 8
	for _, test := range []struct {
		device   netdev.Details
		features []netdev.Features // of the device; none before Linux 6.3
		want     FindingState
		reason   string
	}{
		{madeUp("eth0", 4, "device"), []netdev.Features{{XDP: netdev.FeatureBasic}}, FindingOK, ""},
		{madeUp("eth0", 4, "device"), []netdev.Features{{}}, FindingFailure, "does not support XDP"},
		{madeUp("eth0", 4, "device"), nil, FindingUnknown, "6.3"},
		{merging, []netdev.Features{{XDP: netdev.FeatureBasic}}, FindingFailure, "Can't set XDP"},
		{merging, nil, FindingFailure, "Can't set XDP"},
		{madeUp("veth0", 4, "veth"), []netdev.Features{{XDP: netdev.FeatureBasic}}, FindingOK, ""},
		{madeUp("veth0", 4, "veth"), []netdev.Features{{}}, FindingFailure, "rx queues"},
		{madeUp("veth0", 4, "veth"), nil, FindingUnknown, "6.3"},
		{madeUp("bond0", 4, "bond"), []netdev.Features{{}}, FindingUnknown, "without ports"},
		{madeUp("bond0", 8, "bond"), []netdev.Features{{}}, FindingFailure, "does not support XDP"},
		{madeUp("br0", 4, "bridge"), nil, FindingFailure, "does not support XDP"},
		{lo, nil, FindingFailure, "does not support XDP"},
		{tun, nil, FindingFailure, "does not support XDP"},
		{madeUp("tap0", 4, "tuntap"), nil, FindingUnknown, "6.3"},
	} {
		n := &network{devices: []netdev.Details{test.device, port}}
		if len(test.features) > 0 {
			n.features = map[int]netdev.Features{test.device.Index: test.features[0]}
		}
		got, reason := n.native(&test.device)
		if got != test.want || !strings.Contains(reason, test.reason) || (reason == "") != (test.reason == "") {
			t.Errorf("%s with %v: got %s, %q", test.device.Name, test.features, got, reason)
		}
	}
}

// A check knows the rules by which the kernel refuses a program because of another.
func TestCheckedHooksExcludeEachOther(t *testing.T) {
	bond, port, taken, vlan := madeUp("bond0", 1, "bond"), madeUp("port0", 2, "device"), madeUp("eth0", 3, "device"), madeUp("eth0.5", 4, "vlan")
	port.Master, vlan.Parent = bond.Index, taken.Index
	taken.XDP, taken.Program = netdev.XDPDriver, 7
	all := netdev.FeatureBasic | netdev.FeatureRxSG
	n := &network{devices: []netdev.Details{bond, port, taken, vlan}, features: map[int]netdev.Features{}}
	for i := range n.devices {
		n.features[n.devices[i].Index] = netdev.Features{XDP: uint64(all)}
	}
	type attempt struct {
		ifindex int
		mode    Mode
		want    error
	}
	for _, test := range []struct {
		description string
		attempts    []attempt
	}{
		{"a port and its bond in native mode", []attempt{{port.Index, ModeDriver, nil}, {bond.Index, ModeDriver, unix.EOPNOTSUPP}}},
		{"a port and its bond in generic mode", []attempt{{port.Index, ModeGeneric, nil}, {bond.Index, ModeGeneric, nil}}},
		{"a bond and its port", []attempt{{bond.Index, ModeDriver, nil}, {port.Index, ModeDriver, unix.EEXIST}, {port.Index, ModeGeneric, unix.EEXIST}}},
		{"a device with a program", []attempt{{taken.Index, ModeDriver, unix.EBUSY}, {taken.Index, ModeGeneric, unix.EBUSY}}},
		{"a VLAN above a device with a program", []attempt{{vlan.Index, ModeGeneric, nil}}},
		{"a device that vanished", []attempt{{99, ModeGeneric, unix.ENODEV}}},
	} {
		k := &checkHooks{kernelHooks: &kernelHooks{}, network: n, attached: map[int]bool{}, released: map[int]bool{}}
		for _, a := range test.attempts {
			if _, err := k.attach(nil, a.ifindex, a.mode); !errors.Is(err, a.want) || (err == nil) != (a.want == nil) {
				t.Errorf("%s: %d in mode %s: got %v, want %v", test.description, a.ifindex, a.mode, err, a.want)
			}
		}
	}

	// The hook of an earlier process goes before the device gets another, or a port of it does.
	k := &checkHooks{kernelHooks: &kernelHooks{}, network: n, attached: map[int]bool{}, released: map[int]bool{}}
	old := &checkLink{kernel: k, ifindex: taken.Index, pinned: kernelLink{noLink{}}}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := k.attach(nil, taken.Index, ModeGeneric)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.attach(nil, taken.Index, ModeGeneric); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a second program: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := k.attach(nil, taken.Index, ModeDriver); err != nil {
		t.Errorf("after the program has left: %v", err)
	}
}

// Facts that the machine of a test may not have.
func TestDeviceFindings(t *testing.T) {
	down, jumbo, ip, other := madeUp("eth0", 1, "device"), madeUp("eth1", 2, "device"), madeUp("tun0", 3, "tuntap"), madeUp("ib0", 4, "device")
	down.Flags = 0
	jumbo.MTU = 9000
	ip.Link, ip.LinkType = netdev.LinkIP, "none"
	other.Link, other.LinkType = netdev.LinkOther, "infiniband"
	merging := madeUp("eth2", 5, "device")
	merging.RefusesXDP = "Can't set XDP while host is implementing GRO_HW/CSUM, disable GRO_HW/CSUM first"
	n := &network{devices: []netdev.Details{down, jumbo, ip, other}}
	for _, test := range []struct {
		device *netdev.Details
		mode   Mode
		name   string
		want   FindingState
		parts  []string
	}{
		{&down, ModeDriver, "state", FindingWarning, []string{"down", "ip link set dev eth0 up"}},
		{&jumbo, ModeDriver, "state", FindingOK, []string{"up"}},
		{&jumbo, ModeDriver, "mtu", FindingWarning, []string{"9000", "eth1", "skb"}},
		{&jumbo, ModeGeneric, "mtu", FindingOK, []string{"9000"}},
		{&down, ModeDriver, "mtu", FindingOK, []string{"1500"}},
		{&down, ModeDriver, "native", FindingUnknown, []string{"6.3"}},
		{&down, ModeDriver, "driver", FindingUnknown, []string{"6.3"}},
		{&ip, ModeDriver, "native", FindingFailure, []string{"--audit.mode=skb"}},
		{&ip, ModeAuto, "native", FindingOK, []string{"generic mode"}},
		{&merging, ModeAuto, "native", FindingFailure, []string{"GRO_HW", "remove this cause"}},
		{&merging, ModeGeneric, "native", FindingOK, []string{"generic mode"}},
		{&ip, ModeDriver, "link type", FindingFailure, []string{"none", "--audit.mode=skb"}},
		{&ip, ModeAuto, "link type", FindingOK, []string{"none", "IP"}},
		{&other, ModeGeneric, "link type", FindingFailure, []string{"infiniband"}},
		{&down, ModeDriver, "hook", FindingOK, []string{"free"}},
	} {
		config := DefaultConfig()
		config.Mode = test.mode
		c := &checker{config: config, network: n}
		findings := c.deviceFindings(test.device)
		i := slices.IndexFunc(findings, func(f Finding) bool { return f.Name == test.name })
		if i < 0 {
			t.Fatalf("no %s in %v", test.name, findings)
		}
		f := findings[i]
		text := strings.Join([]string{f.Value, f.Meaning, f.Remedy}, " ")
		for _, part := range test.parts {
			if f.State != test.want || !strings.Contains(text, part) {
				t.Errorf("%s in mode %s: %+v, want %s and %q", test.device.Name, test.mode, f, test.want, part)
			}
		}
	}
}

// noLink is a link that closes.
type noLink struct{ link.Link }

func (noLink) Close() error { return nil }
