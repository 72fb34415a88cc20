// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package netdev

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NoteDefaultRoutes sets HasDefaultRoute of devices. The kernel gives all routes to answer that: a
// router with a million of them needs about a second.
func NoteDefaultRoutes(devices []Device) error {
	holders := map[int]bool{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if err := addHolders(holders, family); err != nil {
			return fmt.Errorf("cannot list the routes: %w", err)
		}
	}
	for i := range devices {
		devices[i].HasDefaultRoute = holders[devices[i].Index]
	}
	return nil
}

// addHolders adds the indices of the devices to which the default routes of a family lead. A route
// that refuses packets leads to the loopback device, and does not count. The kernel interrupts a
// listing when a route changes meanwhile; addHolders then starts over.
func addHolders(holders map[int]bool, family int) error {
	filter := &netlink.Route{Type: unix.RTN_UNICAST} // without a destination: the default
	add := func(route netlink.Route) bool {
		holders[route.LinkIndex] = true
		for _, hop := range route.MultiPath {
			holders[hop.LinkIndex] = true
		}
		return true
	}
	list := func() error {
		return netlink.RouteListFilteredIter(family, filter, netlink.RT_FILTER_TYPE|netlink.RT_FILTER_DST, add)
	}
	err := list()
	for i := 0; i < 100 && errors.Is(err, netlink.ErrDumpInterrupted); i++ {
		err = list()
	}
	return err
}
