// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"bytes"
	"crypto/ecdh"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// generic sends a request of generic netlink, from the namespace of the calling thread.
func generic(family string, command, version uint8, attributes ...*nl.RtAttr) error {
	f, err := netlink.GenlFamilyGet(family)
	if err != nil {
		return fmt.Errorf("looking up the family %s: %w", family, err)
	}
	request := nl.NewNetlinkRequest(int(f.ID), unix.NLM_F_ACK)
	request.AddData(&nl.Genlmsg{Command: command, Version: version})
	for _, a := range attributes {
		request.AddData(a)
	}
	_, err = request.Execute(unix.NETLINK_GENERIC, 0)
	return err
}

func nested(kind int, children ...*nl.RtAttr) *nl.RtAttr {
	a := nl.NewRtAttr(kind|unix.NLA_F_NESTED, nil)
	for _, child := range children {
		a.AddChild(child)
	}
	return a
}

// addTeamPort gives a team the mode round robin, without which it sends nothing, and its port.
// The numbers are those of linux/if_team.h.
func addTeamPort(k *kindLab, d *kindDevice) error {
	return k.lab.audited.Namespace.Do(func() error {
		team, err := netlink.LinkByName(d.name)
		if err != nil {
			return err
		}
		const optionsSet, teamIndex, optionList, option, name, kindOf, data, aString = 1, 1, 2, 1, 1, 3, 4, 5
		err = generic("team", optionsSet, 1, nl.NewRtAttr(teamIndex, nl.Uint32Attr(uint32(team.Attrs().Index))),
			nested(optionList, nested(option,
				nl.NewRtAttr(name, nl.ZeroTerminated("mode")), nl.NewRtAttr(kindOf, nl.Uint8Attr(aString)),
				nl.NewRtAttr(data, nl.ZeroTerminated("roundrobin")))))
		// The kernel has set the mode, and found nobody to tell.
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("setting the mode: %w", err)
		}
		port, err := netlink.LinkByName(k.expand(d, "{u}", true))
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(port, team)
	})
}

// configureWireguard makes the ends peers of each other. The numbers are those of
// linux/wireguard.h.
func configureWireguard(k *kindLab, d *kindDevice) error {
	ends := []struct {
		end     netlab.End
		private *ecdh.PrivateKey
	}{{end: k.lab.audited}, {end: k.sender}}
	for i := range ends {
		var err error
		if ends[i].private, err = ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{byte(i + 1)}, 32)); err != nil {
			return err
		}
	}
	const (
		setDevice                                    = 1
		deviceName, devicePrivateKey, listenPort     = 2, 3, 6
		peers, peerPublicKey, endpoint, allowed      = 8, 1, 4, 9
		allowedFamily, allowedAddress, allowedLength = 1, 2, 3
		port                                         = 51820
	)
	for i, own := range ends {
		far := ends[1-i]
		address := make([]byte, unix.SizeofSockaddrInet4)
		binary.NativeEndian.PutUint16(address, unix.AF_INET)
		binary.BigEndian.PutUint16(address[2:], port)
		copy(address[4:], far.end.IPv4.Addr().AsSlice())
		anything := func(family uint16, zero netip.Addr) *nl.RtAttr {
			return nested(0, nl.NewRtAttr(allowedFamily, nl.Uint16Attr(family)), nl.NewRtAttr(allowedAddress, zero.AsSlice()),
				nl.NewRtAttr(allowedLength, nl.Uint8Attr(0)))
		}
		err := own.end.Namespace.Do(func() error {
			return generic("wireguard", setDevice, 1, nl.NewRtAttr(deviceName, nl.ZeroTerminated(d.name)),
				nl.NewRtAttr(devicePrivateKey, own.private.Bytes()), nl.NewRtAttr(listenPort, nl.Uint16Attr(port)),
				nested(peers, nested(0, nl.NewRtAttr(peerPublicKey, far.private.PublicKey().Bytes()), nl.NewRtAttr(endpoint, address),
					nested(allowed, anything(unix.AF_INET, netip.IPv4Unspecified()), anything(unix.AF_INET6, netip.IPv6Unspecified())))))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// redirectToIFB sends what a port receives through an ifb, as for traffic shaping.
func redirectToIFB(k *kindLab, d *kindDevice) error {
	return k.lab.audited.Namespace.Do(func() error {
		port, err := netlink.LinkByName(k.expand(d, "{u}", true))
		if err != nil {
			return err
		}
		ifb, err := netlink.LinkByName(d.name)
		if err != nil {
			return err
		}
		index := port.Attrs().Index
		qdisc := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Parent: netlink.HANDLE_INGRESS, Handle: netlink.MakeHandle(0xffff, 0)}}
		if err := netlink.QdiscAdd(qdisc); err != nil {
			return fmt.Errorf("adding the ingress: %w", err)
		}
		action := netlink.NewMirredAction(ifb.Attrs().Index)
		action.MirredAction = netlink.TCA_EGRESS_REDIR
		return netlink.FilterAdd(&netlink.MatchAll{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.MakeHandle(0xffff, 0), Priority: 1, Protocol: unix.ETH_P_ALL},
			Actions:     []netlink.Action{action},
		})
	})
}

// addNetkit makes a pair of devices that forward in the mode of layer 2.
func addNetkit(k *kindLab, d *kindDevice) error {
	peer := netlink.NewLinkAttrs()
	peer.Name = d.name + "p"
	pair := &netlink.Netkit{LinkAttrs: netlink.NewLinkAttrs(), Mode: netlink.NETKIT_MODE_L2}
	pair.Name = d.name
	pair.SetPeerAttrs(&peer)
	if err := k.lab.audited.Namespace.Do(func() error { return netlink.LinkAdd(pair) }); err != nil {
		return err
	}
	return k.batch(d, true, []string{"link set {d}p netns {far-ns} name {d}"})
}

// addTun opens a tun or tap device, whose sender is the program that has it open.
func addTun(k *kindLab, d *kindDevice) error {
	d.user = k.newTun(d.name, map[string]uint16{"tun": unix.IFF_TUN, "tap": unix.IFF_TAP}[d.kind.name], 0)
	return nil
}

// writeToTun sends a packet as the program of a tun or tap device does.
func writeToTun(k *kindLab, d *kindDevice, class packetClass, payload []byte) error {
	packet := makePacket(d.sources[class.version], d.targets[class.version], class, k.port, payload)
	if d.kind.name == "tap" {
		link, err := k.lab.audited.Namespace.Link(d.name)
		if err != nil {
			return err
		}
		header := append(append(net.HardwareAddr{}, link.Attrs().HardwareAddr...), 2, 0, 0, 0, 3, byte(d.number))
		header = binary.BigEndian.AppendUint16(header, map[int]uint16{4: unix.ETH_P_IP, 6: unix.ETH_P_IPV6}[class.version])
		packet = append(header, packet...)
	}
	_, err := d.user.Write(packet)
	return err
}

// makePacket returns an IP packet. The checksum of TCP is wrong.
func makePacket(source, destination netip.Addr, class packetClass, port uint16, payload []byte) []byte {
	transport := resetHeader(port)
	if class.protocol == unix.IPPROTO_UDP {
		transport = binary.BigEndian.AppendUint16(nil, 40000)
		transport = binary.BigEndian.AppendUint16(transport, port)
		transport = binary.BigEndian.AppendUint32(transport, uint32(8+len(payload))<<16)
	}
	transport = append(transport, payload...)
	addresses := append(source.AsSlice(), destination.AsSlice()...)
	if class.protocol == unix.IPPROTO_UDP {
		pseudo := append(bytes.Clone(addresses), 0, 0, byte(len(transport)>>8), byte(len(transport)), 0, class.protocol)
		binary.BigEndian.PutUint16(transport[6:], internetChecksum(append(pseudo, transport...)))
	}
	if class.version == 6 {
		header := []byte{0x60, 0, 0, 0, byte(len(transport) >> 8), byte(len(transport)), class.protocol, 64}
		return append(append(header, addresses...), transport...)
	}
	header := append([]byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, class.protocol, 0, 0}, addresses...)
	binary.BigEndian.PutUint16(header[2:], uint16(len(header)+len(transport)))
	binary.BigEndian.PutUint16(header[10:], internetChecksum(header))
	return append(header, transport...)
}

// sendFromDummy sends a packet out of a dummy, to a neighbour that is not there.
func sendFromDummy(k *kindLab, d *kindDevice, class packetClass, payload []byte) error {
	from := *d
	from.sender, from.targets = k.lab.audited.Namespace, d.sources
	return sendByStack(k, &from, class, payload)
}
