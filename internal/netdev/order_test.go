// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package netdev

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestLowersFirst(t *testing.T) {
	devices := []Device{
		{Name: "bond0", Index: 1}, {Name: "bond0.5", Index: 2, Lower: 1}, {Name: "br0", Index: 3},
		{Name: "eth0", Index: 4, Master: 1}, {Name: "eth1", Index: 5, Master: 1}, {Name: "veth0", Index: 6, Master: 3}, {Name: "lo", Index: 7},
		{Name: "a", Index: 8, Master: 9}, {Name: "b", Index: 9, Lower: 8, Master: 8}, {Name: "lost", Index: 10, Master: 99, Lower: 98},
	}
	for _, test := range []struct{ description, names, want string }{
		{"unrelated devices keep their order", "lo br0 eth0", "lo br0 eth0"},
		{"ports come before their bond, in the order of their indices", "bond0 lo eth1 eth0", "eth0 eth1 bond0 lo"},
		{"the device of a VLAN comes before it", "bond0.5 bond0", "bond0 bond0.5"},
		{"a port comes before a VLAN of its bond, also if the bond is not audited", "bond0.5 eth1", "eth1 bond0.5"},
		{"what is in order stays", "veth0 eth0 br0 bond0", "veth0 eth0 br0 bond0"},
		{"a device that does not exist keeps its place", "br0 none0 veth0", "veth0 br0 none0"},
		{"a circle ends", "a b", "b a"},
		{"a master that is elsewhere", "lost lo", "lost lo"},
		{"none", "", ""},
	} {
		t.Run(test.description, func(t *testing.T) {
			if got := strings.Join(LowersFirst(strings.Fields(test.names), devices), " "); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// The kernel tells what is below a device, if that is in the same namespace. The peer of a veth
// device is not.
func TestLowerDevices(t *testing.T) {
	namespace := newNamespace(t)
	if err := namespace.Do(func() error {
		if err := addVeth("veth-a", "veth-b"); err != nil {
			return err
		}
		lower, err := netlink.LinkByName("veth-a")
		if err != nil {
			return err
		}
		upper := &netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "upper", ParentIndex: lower.Attrs().Index}, Mode: netlink.MACVLAN_MODE_BRIDGE}
		if err := netlink.LinkAdd(upper); err != nil {
			return err
		}
		devices, err := List()
		for _, d := range devices {
			want := 0
			if d.Name == "upper" {
				want = lower.Attrs().Index
			}
			if d.Lower != want {
				t.Errorf("below %s is %d, want %d", d.Name, d.Lower, want)
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}
