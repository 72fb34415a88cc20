// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package netdev

import (
	"net"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The devices of default routes in the main table are found, whatever the family and the form of
// the route.
func TestDefaultRoutes(t *testing.T) {
	namespace := newNamespace(t)
	err := namespace.Do(func() error { return addVeth("a", "b") })
	if err != nil {
		t.Fatal(err)
	}
	index := map[string]int{}
	for i, name := range []string{"a", "b"} {
		err := namespace.Do(func() error {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			index[name] = link.Attrs().Index
			for _, address := range []string{net.IPv4(192, 0, 2, byte(16*i+1)).String() + "/28", []string{"2001:db8::1/64", "2001:db8:1::1/64"}[i]} {
				parsed, err := netlink.ParseAddr(address)
				if err != nil {
					return err
				}
				parsed.Flags = unix.IFA_F_NODAD
				if err := netlink.AddrAdd(link, parsed); err != nil {
					return err
				}
			}
			return netlink.LinkSetUp(link)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	via := net.ParseIP
	prefix := func(text string) *net.IPNet {
		_, n, err := net.ParseCIDR(text)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, test := range []struct {
		description string
		route       *netlink.Route // nil for none
		want        []string
	}{
		{"no route", nil, nil},
		{"IPv4", &netlink.Route{Gw: via("192.0.2.2")}, []string{"a"}},
		{"IPv4 without a gateway", &netlink.Route{Dst: prefix("0.0.0.0/0"), LinkIndex: index["b"]}, []string{"b"}},
		{"IPv6", &netlink.Route{Gw: via("2001:db8:1::2")}, []string{"b"}},
		{
			"two hops", &netlink.Route{Dst: prefix("0.0.0.0/0"), MultiPath: []*netlink.NexthopInfo{
				{LinkIndex: index["a"], Gw: via("192.0.2.2")}, {LinkIndex: index["b"], Gw: via("192.0.2.18")},
			}}, []string{"a", "b"},
		},
		{"another destination", &netlink.Route{Dst: prefix("0.0.0.0/1"), Gw: via("192.0.2.2")}, nil},
		{"another table", &netlink.Route{Gw: via("192.0.2.2"), Table: 100}, nil},
		{"a route that refuses", &netlink.Route{Dst: prefix("0.0.0.0/0"), Type: unix.RTN_UNREACHABLE}, nil},
		{"a route of IPv6 that refuses", &netlink.Route{Dst: prefix("::/0"), Type: unix.RTN_UNREACHABLE}, nil},
	} {
		t.Run(test.description, func(t *testing.T) {
			var got []string
			err := namespace.Do(func() error {
				if test.route != nil {
					if err := netlink.RouteAdd(test.route); err != nil {
						return err
					}
					defer func() { _ = netlink.RouteDel(test.route) }()
				}
				devices, err := List()
				if err != nil {
					return err
				}
				if err := NoteDefaultRoutes(devices); err != nil {
					return err
				}
				for _, d := range devices {
					if d.HasDefaultRoute {
						got = append(got, d.Name)
					}
				}
				return nil
			})
			slices.Sort(got)
			if err != nil || !slices.Equal(got, test.want) {
				t.Errorf("got %q, %v, want %q", got, err, test.want)
			}
		})
	}
}
