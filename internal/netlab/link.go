// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package netlab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End is one end of a veth pair.
type End struct {
	Namespace *Namespace
	Device    string
	IPv4      netip.Prefix // zero for none
	IPv6      netip.Prefix // zero disables IPv6 on the device
}

// NewPair creates two namespaces and joins them by a veth pair with the addresses 192.0.2.1/24 and
// 192.0.2.2/24. The caller closes the namespaces.
func NewPair(first, second string) (a, b End, err error) {
	a = End{Device: first, IPv4: netip.MustParsePrefix("192.0.2.1/24")}
	b = End{Device: second, IPv4: netip.MustParsePrefix("192.0.2.2/24")}
	if a.Namespace, err = NewNamespace(); err != nil {
		return End{}, End{}, err
	}
	if b.Namespace, err = NewNamespace(); err == nil {
		if err = Connect(a, b, 0); err == nil {
			return a, b, nil
		}
		b.Namespace.Close()
	}
	a.Namespace.Close()
	return End{}, End{}, err
}

// Connect joins two namespaces by a veth pair. The names of the devices must differ; an MTU of
// 0 keeps the kernel's default. Each end knows the hardware address of the other and sends no
// address resolution, so the pair carries only packets that a test sends.
func Connect(a, b End, mtu int) error {
	pair := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: b.Device, PeerNamespace: netlink.NsFd(b.Namespace.handle)}
	pair.Name = a.Device
	if mtu > 0 {
		pair.MTU, pair.PeerMTU = mtu, uint32(mtu)
	}
	err := a.Namespace.Do(func() error { return netlink.LinkAdd(pair) })
	if err != nil {
		return fmt.Errorf("creating the veth pair %s and %s: %w", a.Device, b.Device, err)
	}
	macs := make([]net.HardwareAddr, 2)
	for i, end := range []End{a, b} {
		if macs[i], err = end.hardwareAddr(); err != nil {
			return err
		}
	}
	for i, end := range []End{a, b} {
		peer := []End{b, a}[i]
		if err := end.Namespace.Do(func() error { return end.configure(peer, macs[1-i]) }); err != nil {
			return fmt.Errorf("setting up %s: %w", end.Device, err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	for _, end := range []End{a, b} {
		if err := Poll(ctx, end.checkReady); err != nil {
			return err
		}
	}
	return nil
}

// readyTimeout limits the time until a new device carries packets. The kernel may delay that by
// a second.
const readyTimeout = 10 * time.Second

// checkReady returns an error while the device would drop packets: until the kernel has noticed
// that the peer is up, and then until the IPv6 address is in use, which happens later.
func (e End) checkReady() error {
	link, err := e.Namespace.Link(e.Device)
	if err != nil {
		return err
	}
	if state := link.Attrs().OperState; state != netlink.OperUp {
		return fmt.Errorf("device %s is %s, not up", e.Device, state)
	}
	if !e.IPv6.IsValid() {
		return nil
	}
	return e.Namespace.Do(func() error {
		routes, err := netlink.RouteGet(e.IPv6.Addr().AsSlice())
		if err != nil {
			return fmt.Errorf("looking up the route to %s: %w", e.IPv6.Addr(), err)
		}
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Type == unix.RTN_LOCAL }) {
			return fmt.Errorf("address %s is not in use yet", e.IPv6.Addr())
		}
		return nil
	})
}

func (e End) hardwareAddr() (mac net.HardwareAddr, err error) {
	err = e.Namespace.Do(func() error {
		device, err := netlink.LinkByName(e.Device)
		if err != nil {
			return fmt.Errorf("looking up %s: %w", e.Device, err)
		}
		mac = device.Attrs().HardwareAddr
		return nil
	})
	return mac, err
}

// configure sets up one end. It runs on the thread of the namespace of e.
func (e End) configure(peer End, peerMAC net.HardwareAddr) error {
	device, err := netlink.LinkByName(e.Device)
	if err != nil {
		return err
	}
	if err := silence(device, e.IPv6.IsValid()); err != nil {
		return err
	}
	if err := setUp(e.Device); err != nil {
		return err
	}
	for _, pair := range [][2]netip.Prefix{{e.IPv4, peer.IPv4}, {e.IPv6, peer.IPv6}} {
		own, other := pair[0], pair[1]
		if !own.IsValid() {
			continue
		}
		address := &netlink.Addr{IPNet: &net.IPNet{
			IP: own.Addr().AsSlice(), Mask: net.CIDRMask(own.Bits(), own.Addr().BitLen()),
		}}
		if own.Addr().Is6() {
			address.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(device, address); err != nil {
			return fmt.Errorf("adding the address %s: %w", own, err)
		}
		if !other.IsValid() {
			continue
		}
		neighbour := &netlink.Neigh{
			LinkIndex: device.Attrs().Index, State: netlink.NUD_PERMANENT, IP: other.Addr().AsSlice(), HardwareAddr: peerMAC,
		}
		if err := netlink.NeighAdd(neighbour); err != nil {
			return fmt.Errorf("adding the neighbour %s: %w", other.Addr(), err)
		}
	}
	return nil
}

// silence keeps a device that is down from sending packets of its own once it is up. The device
// does no address resolution and therefore joins no multicast group for it, gets no link-local
// address and solicits no router.
func silence(device netlink.Link, hasIPv6 bool) error {
	if err := netlink.LinkSetARPOff(device); err != nil {
		return fmt.Errorf("turning off address resolution: %w", err)
	}
	settings := [][2]string{{"addr_gen_mode", "1"}, {"accept_ra", "0"}, {"router_solicitations", "0"}}
	if !hasIPv6 {
		settings = [][2]string{{"disable_ipv6", "1"}}
	}
	for _, setting := range settings {
		path := "/proc/sys/net/ipv6/conf/" + device.Attrs().Name + "/" + setting[0]
		err := os.WriteFile(path, []byte(setting[1]), 0)
		if os.IsNotExist(err) && !hasIPv6 {
			return nil // a kernel without IPv6 sends no such packets
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func setUp(device string) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("looking up %s: %w", device, err)
	}
	return netlink.LinkSetUp(link)
}

// Links returns the devices of the namespace.
func (n *Namespace) Links() (links []netlink.Link, err error) {
	err = n.Do(func() error {
		links, err = netlink.LinkList()
		return err
	})
	return links, err
}

// Link returns one device of the namespace.
func (n *Namespace) Link(name string) (link netlink.Link, err error) {
	err = n.Do(func() error {
		link, err = netlink.LinkByName(name)
		return err
	})
	return link, err
}
