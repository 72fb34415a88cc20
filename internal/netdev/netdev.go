// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package netdev lists the network devices of this process's network namespace, reports their
// changes, and asks the kernel for a device's driver and XDP program. It is the only package of the
// exporter that speaks netlink.
package netdev

import (
	"errors"
	"fmt"
	"net"
	"path"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// XDPMode says how a device runs its XDP program. The values are XDP_ATTACHED_* of linux/if_link.h.
type XDPMode uint32

// The modes that a program can be replaced in.
const (
	XDPNone    XDPMode = iota // no program
	XDPDriver                 // in the driver
	XDPGeneric                // in the network stack, for any driver
)

// Device is a network device as the kernel lists it. Devices are comparable: two values of one
// device are equal unless something changed that may let it take a program that it refused.
type Device struct {
	Name   string
	Index  int // unique in a network namespace, and not used again while the namespace lives
	MTU    int
	Flags  net.Flags
	Master int // index of the bridge or bond that the device is a port of; 0 for none
	XDP    XDPMode
	Link   LinkLayer

	LinkType string // as ip-link(8) names it; "unknown" and the number of linux/if_arp.h if it has no name
}

// List lists the devices. The kernel interrupts a listing when a device changes meanwhile; List
// then starts over.
func List() ([]Device, error) {
	links, err := netlink.LinkList()
	for i := 0; i < 100 && errors.Is(err, netlink.ErrDumpInterrupted); i++ {
		links, err = netlink.LinkList()
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list the network devices: %w", err)
	}
	devices := make([]Device, 0, len(links))
	for _, l := range links {
		attrs := l.Attrs()
		d := Device{Name: attrs.Name, Index: attrs.Index, MTU: attrs.MTU, Flags: attrs.Flags, Master: attrs.MasterIndex}
		d.LinkType, d.Link = linkOf(attrs.EncapType)
		if attrs.Xdp != nil {
			d.XDP = XDPMode(attrs.Xdp.AttachMode)
		}
		devices = append(devices, d)
	}
	return devices, nil
}

// Names returns the names of devices, separated by commas.
func Names(devices []Device) string {
	names := make([]string, len(devices))
	for i := range devices {
		names[i] = devices[i].Name
	}
	return strings.Join(names, ", ")
}

// Has reports whether one of the devices has the name.
func Has(name string, devices []Device) bool {
	return slices.ContainsFunc(devices, func(d Device) bool { return d.Name == name })
}

// Match returns the names of the devices that a glob of [path.Match] matches, in their order. A
// malformed glob matches none.
func Match(glob string, devices []Device) []string {
	var names []string
	for i := range devices {
		if isMatched, err := path.Match(glob, devices[i].Name); err == nil && isMatched {
			names = append(names, devices[i].Name)
		}
	}
	return names
}

// Driver returns the name of a device's driver; empty if the kernel does not name one.
func Driver(name string) string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	info, err := unix.IoctlGetEthtoolDrvinfo(fd, name)
	if err != nil {
		return ""
	}
	return unix.ByteSliceToString(info.Driver[:])
}

// ProgramID returns the id of the XDP program of the device with that index; 0 if there is no such
// device or program. It needs no privilege.
func ProgramID(index int) uint32 {
	device, err := netlink.LinkByIndex(index)
	if err != nil || device.Attrs().Xdp == nil {
		return 0
	}
	return device.Attrs().Xdp.ProgId
}
