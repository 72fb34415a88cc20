// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package netdev

import (
	"os"
	"path/filepath"
	"slices"

	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
)

// Details is what the kernel says about a device that List does not tell.
type Details struct {
	Device
	Kind      string // such as veth or bond, or device if it has no kind
	Parent    int    // index of the device that this one belongs to, of its peer, or 0
	OperState string // such as up
	Driver    string // empty if the kernel does not name one

	// RefusesXDP is why the driver refuses each program, in its own words; empty for none known.
	RefusesXDP string
}

// Inspect lists the devices with their details.
func Inspect() ([]Details, error) {
	links, err := listLinks()
	if err != nil {
		return nil, err
	}
	list := make([]Details, 0, len(links))
	for _, l := range links {
		attrs := l.Attrs()
		d := Details{
			Device: newDevice(l), Kind: l.Type(), Parent: attrs.ParentIndex, OperState: attrs.OperState.String(),
			Driver: Driver(printable.Name(attrs.Name)),
		}
		if d.Driver == "virtio_net" {
			d.RefusesXDP = virtioRefusal(attrs.Name)
		}
		list = append(list, d)
	}
	return list, nil
}

// kindsOnTop are the kinds of devices that are upper devices of their parent.
var kindsOnTop = []string{"vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec", "vxlan"}

// IsUpperOf reports whether a device is on top of another: its bridge or bond, or a VLAN of it. The
// kernel refuses a program below a device that has one.
func (d *Details) IsUpperOf(lower *Details) bool {
	return lower.Master == d.Index || d.Parent == lower.Index && slices.Contains(kindsOnTop, d.Kind)
}

// The bits of virtio_net's features, of linux/virtio_net.h.
const (
	virtioGuestCsum         = 1
	virtioCtrlGuestOffloads = 2
)

// virtioGuestOffloads are GUEST_TSO4, GUEST_TSO6, GUEST_ECN, GUEST_UFO, GUEST_CSUM, GUEST_USO4 and
// GUEST_USO6.
var virtioGuestOffloads = []int{7, 8, 9, 10, virtioGuestCsum, 54, 55}

// virtioRefusal returns why virtio_net refuses programs on a device: its hypervisor hands over
// merged frames, and does not let the driver turn that off. It is empty where sysfs does not tell.
func virtioRefusal(name string) string {
	bits, err := os.ReadFile(filepath.Join("/sys/class/net", name, "device/features"))
	if err != nil || !mergesFrames(string(bits)) {
		return ""
	}
	return "Can't set XDP while host is implementing GRO_HW/CSUM, disable GRO_HW/CSUM first"
}

// mergesFrames reports whether a virtual device with these feature bits, bit 0 first, merges frames
// for good.
func mergesFrames(bits string) bool {
	has := func(bit int) bool { return bit < len(bits) && bits[bit] == '1' }
	return !has(virtioCtrlGuestOffloads) && slices.ContainsFunc(virtioGuestOffloads, has)
}
