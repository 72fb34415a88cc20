// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package netdev

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// A driver tells that it has native XDP, and a bridge and a VLAN are above their ports.
func TestInspect(t *testing.T) {
	namespace := newNamespace(t)
	named := func(name string) netlink.LinkAttrs {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		return attrs
	}
	var devices []Details
	var features map[int]Features
	var unknown error
	err := namespace.Do(func() (err error) {
		bridge, pair := &netlink.Bridge{LinkAttrs: named("bridge-a")}, &netlink.Veth{LinkAttrs: named("port-a"), PeerName: "peer-a"}
		err = errors.Join(netlink.LinkAdd(bridge), netlink.LinkAdd(pair), netlink.LinkSetMaster(pair, bridge))
		if err != nil {
			return err
		}
		peer, err := netlink.LinkByName("peer-a")
		if err != nil {
			return err
		}
		above := named("above-a")
		above.ParentIndex = peer.Attrs().Index
		if err := netlink.LinkAdd(&netlink.Macvlan{LinkAttrs: above, Mode: netlink.MACVLAN_MODE_PRIVATE}); err != nil {
			return err
		}
		if devices, err = Inspect(); err != nil {
			return err
		}
		indices := []int{1 << 20} // no device
		for i := range devices {
			indices = append(indices, devices[i].Index)
		}
		features, unknown = ListFeatures(indices)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	find := func(name string) *Details {
		i := slices.IndexFunc(devices, func(d Details) bool { return d.Name == name })
		if i < 0 {
			t.Fatalf("no device %s in %+v", name, devices)
		}
		return &devices[i]
	}
	lo, bridge, port, peer, above := find("lo"), find("bridge-a"), find("port-a"), find("peer-a"), find("above-a")
	for _, test := range []struct {
		upper, lower *Details
		want         bool
	}{{bridge, port, true}, {above, peer, true}, {port, bridge, false}, {peer, port, false}, {port, peer, false}, {lo, port, false}} {
		if got := test.upper.IsUpperOf(test.lower); got != test.want {
			t.Errorf("%s is above %s: %t, want %t", test.upper.Name, test.lower.Name, got, test.want)
		}
	}
	if port.Kind != "veth" || port.Driver != "veth" || bridge.Kind != "bridge" || lo.Kind != "device" {
		t.Errorf("got %+v", devices)
	}
	if errors.Is(unknown, errors.ErrUnsupported) {
		t.Log("a kernel before Linux 6.3 does not know the features of drivers")
		return
	}
	if unknown != nil || len(features) != len(devices) {
		t.Fatalf("got %v: %v", features, unknown)
	}
	if !features[port.Index].Has(FeatureBasic) || !features[port.Index].Has(FeatureRxSG) || features[lo.Index].Has(FeatureBasic) {
		t.Errorf("got %+v", features)
	}
}

func TestFeatureNames(t *testing.T) {
	xdp, rxMetadata := Features{XDP: FeatureBasic | FeatureRxSG | 1<<40, RxMetadata: 1<<0 | 1<<2}.Names()
	if got := strings.Join(slices.Concat(xdp, rxMetadata), " "); got != "basic rx-sg bit 40 timestamp vlan-tag" {
		t.Errorf("got %s", got)
	}
	for _, damaged := range [][]byte{nil, {1, 1}, {1, 1, 0, 0, 100, 0, 3, 0, 0}} {
		if f, err := parseFeatures(damaged); err == nil {
			t.Errorf("%v: got %+v and no error", damaged, f)
		}
	}
}

func TestVirtioMergesFrames(t *testing.T) {
	for bits, want := range map[string]bool{
		"":                       false,
		"0000010000000000000000": false, // no offloads
		"1110010110000000000000": false, // the driver turns them off
		"1100010110110110000000": true,
		"0100010000000000000000": true, // checksums alone
	} {
		if got := mergesFrames(bits); got != want {
			t.Errorf("%s: %t, want %t", bits, got, want)
		}
	}
}
