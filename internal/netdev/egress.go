// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package netdev

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Handle and priority of our filter, the first of its hook.
const (
	egressHandle   = 0x9400
	egressPriority = 1
)

func egressFilter(ifindex int) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex, Parent: netlink.HANDLE_MIN_EGRESS, Handle: egressHandle, Priority: egressPriority, Protocol: unix.ETH_P_ALL,
		},
		DirectAction: true,
	}
}

// ReplaceEgressFilter attaches a program to what leaves a device, as a filter of clsact, in place
// of the one that was attached before. It is for kernels without TCX.
func ReplaceEgressFilter(ifindex, program int, name string) error {
	qdisc := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("adding the queueing discipline clsact to device %d: %w", ifindex, err)
	}
	filter := egressFilter(ifindex)
	filter.Fd, filter.Name = program, name
	if err := netlink.FilterReplace(filter); err != nil {
		return fmt.Errorf("adding a filter to device %d: %w", ifindex, err)
	}
	return nil
}

// RemoveEgressFilter removes the filter, if the device and the filter exist. Other filters may need
// clsact, which stays.
func RemoveEgressFilter(ifindex int) error {
	err := netlink.FilterDel(egressFilter(ifindex))
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	return fmt.Errorf("removing a filter from device %d: %w", ifindex, err)
}
