// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package netdev

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
)

// Handle and priority of our filter, the first of its hook.
const (
	egressHandle   = 0x9400
	egressPriority = 1
)

// clsactHandle is the handle of clsact, and of ingress, which takes its place.
var clsactHandle = netlink.MakeHandle(0xffff, 0)

func egressFilter(ifindex int) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex, Parent: netlink.HANDLE_MIN_EGRESS, Handle: egressHandle, Priority: egressPriority, Protocol: unix.ETH_P_ALL,
		},
		DirectAction: true,
	}
}

// EgressFilters describes the filters of what leaves a device.
type EgressFilters struct {
	Names     []string // such as "bpf to_netdev (priority 2)", without ours
	HasClsact bool     // the device has their queueing discipline
	Refusal   string   // why ours cannot be added, with the remedy; empty for no reason
}

// InspectEgressFilters returns the filters of what leaves a device, and whether
// ReplaceEgressFilter can add ours. It takes no privilege.
func InspectEgressFilters(ifindex int) (EgressFilters, error) {
	var f EgressFilters
	device := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}
	qdiscs, err := netlink.QdiscList(device)
	if err != nil {
		return f, fmt.Errorf("listing the queueing disciplines of device %d: %w", ifindex, err)
	}
	for _, q := range qdiscs {
		switch {
		case q.Type() == "clsact":
			f.HasClsact = true
		case q.Attrs().Handle == clsactHandle: // its filters see incoming packets only
			f.Refusal = "the queueing discipline " + q.Type() + " takes the place of clsact: replace it by clsact, which takes the same filters"
		}
	}
	if !f.HasClsact {
		return f, nil
	}
	filters, err := netlink.FilterList(device, netlink.HANDLE_MIN_EGRESS)
	if err != nil {
		return f, fmt.Errorf("listing the filters of device %d: %w", ifindex, err)
	}
	for _, filter := range filters {
		attrs, name := filter.Attrs(), filter.Type()
		if of, ok := filter.(*netlink.BpfFilter); ok {
			if attrs.Handle == egressHandle && attrs.Priority == egressPriority {
				continue
			}
			name += " " + printable.Line(of.Name)
		}
		name = fmt.Sprintf("%s (priority %d)", name, attrs.Priority)
		if !slices.Contains(f.Names, name) { // a filter may be listed in parts
			f.Names = append(f.Names, name)
		}
		if attrs.Priority == egressPriority && (filter.Type() != "bpf" || attrs.Protocol != unix.ETH_P_ALL) {
			f.Refusal = "the filter " + name + " takes the place of the first one: give it another priority"
		}
	}
	return f, nil
}

// ReplaceEgressFilter attaches a program to what leaves a device, as a filter of clsact, in place
// of the one that was attached before. It is for kernels without TCX.
func ReplaceEgressFilter(ifindex, program int, name string) error {
	qdisc := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: clsactHandle, Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("adding the queueing discipline clsact to device %d: %w", ifindex, err)
	}
	// With ingress instead of clsact the kernel would add the filter to what the device receives.
	now, err := InspectEgressFilters(ifindex)
	if err != nil {
		return err
	}
	if now.Refusal != "" {
		return fmt.Errorf("adding a filter to device %d: %s", ifindex, now.Refusal)
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
