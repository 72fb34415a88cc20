// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// network is what a check knows of the network devices.
type network struct {
	devices  []netdev.Details
	features map[int]netdev.Features // nil if the kernel does not know them
}

// inspectNetwork asks the kernel. Without features, the answers depend on the kinds of devices.
func inspectNetwork(config Config) (*network, error) {
	devices, err := netdev.Inspect()
	if err != nil {
		return nil, err
	}
	indices := make([]int, len(devices))
	for i := range devices {
		indices[i] = devices[i].Index
	}
	features, _ := netdev.ListFeatures(indices)
	n := &network{devices, features}
	if config.DefaultRoute {
		noted := n.list()
		if err := netdev.NoteDefaultRoutes(noted); err != nil {
			return nil, err
		}
		for i := range noted {
			n.devices[i].Device = noted[i]
		}
	}
	return n, nil
}

// list returns the devices as an audit sees them.
func (n *network) list() []netdev.Device {
	devices := make([]netdev.Device, len(n.devices))
	for i := range n.devices {
		devices[i] = n.devices[i].Device
	}
	return devices
}

// device returns the device with that index; nil if there is none.
func (n *network) device(index int) *netdev.Details {
	i := slices.IndexFunc(n.devices, func(d netdev.Details) bool { return d.Index == index })
	if i < 0 {
		return nil
	}
	return &n.devices[i]
}

// hasPorts reports whether another device is a port of the device.
func (n *network) hasPorts(d *netdev.Details) bool {
	return slices.ContainsFunc(n.devices, func(port netdev.Details) bool { return port.Master == d.Index })
}

// nativeKinds are the kinds of virtual devices with native XDP before Linux 6.3, the first that
// tells. Devices of hardware have no kind, but a driver.
var nativeKinds = []string{"bond", "device", "tuntap", "veth"}

// native finds out whether a driver has native XDP. If it has none, the reason is what the driver
// or the kernel answers to an attempt to attach.
func (n *network) native(d *netdev.Details) (is FindingState, reason string) {
	if d.RefusesXDP != "" {
		return FindingFailure, d.RefusesXDP
	}
	features, isKnown := n.features[d.Index]
	switch {
	case isKnown && features.Has(netdev.FeatureBasic):
		return FindingOK, ""
	case isKnown && d.Kind == "bond" && !n.hasPorts(d):
		return FindingUnknown, "a bond without ports reports no features"
	case isKnown && d.Kind == "veth":
		return FindingFailure, "XDP expects number of rx queues not less than peer tx queues"
	case isKnown, !slices.Contains(nativeKinds, d.Kind), d.Kind == "device" && d.Driver == "", d.Kind == "tuntap" && d.Link != netdev.LinkEthernet:
		return FindingFailure, noNative
	}
	return FindingUnknown, "the kernel does not tell before Linux 6.3"
}

// checkHooks is the hookKernel of a check. It loads programs as an audit does, and attaches none:
// it foretells the answer of the kernel.
type checkHooks struct {
	*kernelHooks
	network *network

	attached map[int]bool // network devices that would have a program of the audit, by index
	released map[int]bool // that would have lost their program of an earlier process
}

// holds reports whether a network device would hold a program.
func (k *checkHooks) holds(d *netdev.Details) bool {
	return k.attached[d.Index] || d.XDP != netdev.XDPNone && !k.released[d.Index]
}

func (k *checkHooks) attach(_ *loadedProgram, ifindex int, mode Mode) (xdpLink, error) {
	d := k.network.device(ifindex)
	if d == nil {
		return nil, unix.ENODEV
	}
	if k.holds(d) {
		return nil, unix.EBUSY
	}
	for i := range k.network.devices {
		if upper := &k.network.devices[i]; upper.IsUpperOf(d) && k.holds(upper) {
			return nil, &saidError{unix.EEXIST, "Cannot attach when an upper device already has a program (" + upper.Name + ")"}
		}
	}
	if mode == ModeDriver {
		if is, reason := k.network.native(d); is == FindingFailure {
			return nil, &saidError{unix.EOPNOTSUPP, reason}
		}
		if err := k.checkPorts(d); err != nil {
			return nil, err
		}
	}
	if k.config.measuresExchanges() {
		if err := inspectEgress(ifindex).refusal; err != nil {
			return nil, newEgressError(err)
		}
	}
	k.attached[ifindex] = true
	return &checkLink{k, ifindex, nil}, nil
}

// checkPorts returns an error if a device is a bond of which a port holds a program: in native mode
// a bond attaches its program to the ports.
func (k *checkHooks) checkPorts(d *netdev.Details) error {
	if d.Kind != "bond" {
		return nil
	}
	for i := range k.network.devices {
		if port := &k.network.devices[i]; port.Master == d.Index && k.holds(port) {
			return &saidError{unix.EOPNOTSUPP, "Slave has XDP program loaded, please unload before enslaving (" + port.Name + ")"}
		}
	}
	return nil
}

func (k *checkHooks) explain(d *device, _ *loadedProgram, mode Mode, err error) error {
	return k.kernelHooks.explain(d, nil, mode, err)
}

func (*checkHooks) pin(xdpLink, int, bool) error { return nil }

func (*checkHooks) unpin(int) error { return nil }

// checkLink is a hook that would be on a network device, or one that an earlier process has pinned.
type checkLink struct {
	kernel  *checkHooks
	ifindex int
	pinned  xdpLink // nil unless it is pinned
}

func (l *checkLink) isOn(int, ebpf.ProgramID) bool { return true }

func (*checkLink) replace(*loadedProgram) error { return nil }

func (*checkLink) program() *loadedProgram { return nil }

func (*checkLink) Pin(string) error { return nil }

func (l *checkLink) Detach() error { return l.Close() }

// Close lets the network device take another program.
func (l *checkLink) Close() error {
	delete(l.kernel.attached, l.ifindex)
	if l.pinned == nil {
		return nil
	}
	l.kernel.released[l.ifindex] = true
	return l.pinned.Close()
}
