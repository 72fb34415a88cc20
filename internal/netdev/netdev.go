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

	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
)

// XDPMode says how a device runs its XDP program. The values are XDP_ATTACHED_* of linux/if_link.h.
type XDPMode uint32

// The modes that a program can be replaced in.
const (
	XDPNone    XDPMode = iota // no program
	XDPDriver                 // in the driver
	XDPGeneric                // in the network stack, for any driver
)

// XDPMulti is the mode of a device that runs one program itself and another one in its hardware.
// The kernel then does not report their ids in the usual place.
const XDPMulti XDPMode = 4

// Device is a network device as the kernel lists it. Devices are comparable: two values of one
// device are equal unless something changed that may let it take a program that it refused, or its
// alternative names changed. All names are texts of [printable.Name].
type Device struct {
	Name     string
	AltNames string // alternative names, separated by spaces
	Index    int    // unique in a network namespace, and not used again while the namespace lives
	MTU      int
	Flags    net.Flags
	Master   int // index of the bridge or bond that the device is a port of; 0 for none
	Lower    int // index of the device below a VLAN, macvlan and the like; 0 for none here
	XDP      XDPMode
	Link     LinkLayer

	// LinkType is the link type as ip-link(8) names it; "unknown" and the number of linux/if_arp.h
	// if it has no name.
	LinkType string

	Program uint32 // id of the XDP program; 0 for none, and with XDPMulti

	Received uint64 // packets that the kernel counts as received; of LookUp only

	// HasDefaultRoute reports whether a default route of IPv4 or IPv6 in the main table leads to
	// the device; set by NoteDefaultRoutes only.
	HasDefaultRoute bool
}

// Holds reports whether the device runs the XDP program with that id. With XDPMulti, it reports
// true.
func (d Device) Holds(program uint32) bool {
	return d.XDP == XDPMulti || d.Program == program && program != 0
}

// List lists the devices.
func List() ([]Device, error) {
	links, err := listLinks()
	if err != nil {
		return nil, err
	}
	devices := make([]Device, 0, len(links))
	for _, l := range links {
		devices = append(devices, newDevice(l))
	}
	return devices, nil
}

// listLinks lists the devices. The kernel interrupts a listing when a device changes meanwhile;
// listLinks then starts over.
func listLinks() ([]netlink.Link, error) {
	links, err := netlink.LinkList()
	for i := 0; i < 100 && errors.Is(err, netlink.ErrDumpInterrupted); i++ {
		links, err = netlink.LinkList()
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list the network devices: %w", err)
	}
	return links, nil
}

func newDevice(link netlink.Link) Device {
	attrs := link.Attrs()
	d := Device{
		Name: printable.Name(attrs.Name), Index: attrs.Index, MTU: attrs.MTU, Flags: attrs.Flags, Master: attrs.MasterIndex,
	}
	d.LinkType, d.Link = linkOf(link.Type(), attrs.EncapType)
	for _, name := range attrs.AltNames {
		d.AltNames = strings.TrimLeft(d.AltNames+" "+printable.Name(name), " ")
	}
	if attrs.NetNsID < 0 && slices.Contains(kindsOnTop, link.Type()) {
		d.Lower = attrs.ParentIndex
	}
	if attrs.Xdp != nil {
		d.XDP, d.Program = XDPMode(attrs.Xdp.AttachMode), attrs.Xdp.ProgId
	}
	return d
}

// LookUp returns the devices with these indices, in their order, and a zero Device for an index
// that no device has. Unlike a listing, it takes no longer on a host with many other devices.
func LookUp(indices ...int) ([]Device, error) {
	devices := make([]Device, len(indices))
	if len(indices) == 0 {
		return devices, nil
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("cannot look up network devices: %w", err)
	}
	defer handle.Close()
	for i, index := range indices {
		link, err := handle.LinkByIndex(index)
		var isAbsent netlink.LinkNotFoundError
		switch {
		case err == nil:
			devices[i] = newDevice(link)
			if statistics := link.Attrs().Statistics; statistics != nil {
				devices[i].Received = statistics.RxPackets
			}
		case !errors.As(err, &isAbsent) && !errors.Is(err, unix.ENODEV):
			return nil, fmt.Errorf("cannot look up the network device %d: %w", index, err)
		}
	}
	return devices, nil
}

// Names returns the names of devices, separated by commas, as they can be given in a flag.
func Names(devices []Device) string {
	names := make([]string, len(devices))
	for i := range devices {
		names[i] = printable.FlagValue(devices[i].Name)
	}
	return strings.Join(names, ", ")
}

// Find returns the device that has a name, or has it as an alternative name. In a network namespace
// no name of either kind belongs to two devices.
func Find(name string, devices []Device) (_ Device, ok bool) {
	i := slices.IndexFunc(devices, func(d Device) bool { return d.Name == name })
	if i < 0 {
		i = slices.IndexFunc(devices, func(d Device) bool { return slices.Contains(strings.Fields(d.AltNames), name) })
	}
	if i < 0 {
		return Device{}, false
	}
	return devices[i], true
}

// Match returns the names of the devices that a glob of [printable.Glob] matches, in their order. A
// glob also matches the device that has the glob itself as its name, and matches no alternative
// names. A malformed glob matches none.
func Match(glob string, devices []Device) []string {
	pattern, err := printable.Glob(glob)
	if err != nil {
		return nil
	}
	var names []string
	for i := range devices {
		name := devices[i].Name
		raw, err := printable.RawName(name)
		if err != nil {
			continue
		}
		if isMatched, err := path.Match(pattern, raw); err == nil && isMatched || name == glob {
			names = append(names, name)
		}
	}
	return names
}

// Driver returns the name of a device's driver; empty if the kernel does not name one.
func Driver(name string) string {
	raw, err := printable.RawName(name)
	if err != nil {
		return ""
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	info, err := unix.IoctlGetEthtoolDrvinfo(fd, raw)
	if err != nil {
		return ""
	}
	return printable.Line(unix.ByteSliceToString(info.Driver[:]))
}

// Exists reports whether there is a device with that index. It also does so if the kernel does not
// say.
func Exists(index int) bool {
	_, err := netlink.LinkByIndex(index)
	return !errors.As(err, &netlink.LinkNotFoundError{})
}

// ProgramID returns the id of the XDP program of the device with that index; 0 if there is no such
// device or program. It needs no privilege.
func ProgramID(index int) uint32 {
	devices, err := LookUp(index)
	if err != nil {
		return 0
	}
	return devices[0].Program
}
