// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package netdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Features is what a driver says about its native XDP.
type Features struct {
	XDP        uint64 // bits of enum netdev_xdp_act of linux/netdev.h
	RxMetadata uint64 // bits of enum netdev_xdp_rx_metadata
}

// The bits of Features.XDP that matter for a program that passes packets.
const (
	FeatureBasic     = 1 << 0 // the driver runs programs
	FeatureHWOffload = 1 << 4 // the hardware runs programs
	FeatureRxSG      = 1 << 5 // frames in several buffers
)

// MetadataVLANTag is the bit of Features.RxMetadata of a driver that tells programs which VLAN tag
// it has removed from a frame.
const MetadataVLANTag = 1 << 2

var (
	xdpNames        = []string{"basic", "redirect", "ndo-xmit", "xsk-zerocopy", "hw-offload", "rx-sg", "ndo-xmit-sg"}
	rxMetadataNames = []string{"timestamp", "hash", "vlan-tag"}
)

// Has reports whether the driver has one of the features of XDP.
func (f Features) Has(bit uint64) bool { return f.XDP&bit != 0 }

// Names returns the names of the features, as in Documentation/netlink/specs/netdev.yaml of the
// kernel.
func (f Features) Names() (xdp, rxMetadata []string) {
	return bitNames(f.XDP, xdpNames), bitNames(f.RxMetadata, rxMetadataNames)
}

func bitNames(bits uint64, names []string) (set []string) {
	for i := range 64 {
		switch {
		case bits&(1<<i) == 0:
		case i < len(names):
			set = append(set, names[i])
		default:
			set = append(set, fmt.Sprint("bit ", i))
		}
	}
	return set
}

// The netdev family of generic netlink, of linux/netdev.h.
const (
	netdevFamily         = "netdev"
	netdevVersion        = 1
	netdevCmdDevGet      = 1
	netdevAttrIfindex    = 1
	netdevAttrXDP        = 3
	netdevAttrRxMetadata = 5
)

// ListFeatures returns the features of devices by their index. The error wraps
// errors.ErrUnsupported before Linux 6.3, which was the first to know them. It needs no privilege.
func ListFeatures(indices []int) (map[int]Features, error) {
	family, err := netlink.GenlFamilyGet(netdevFamily)
	if errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("the kernel does not know the XDP features of drivers: %w", errors.ErrUnsupported)
	}
	if err != nil {
		return nil, fmt.Errorf("looking up the netlink family %s: %w", netdevFamily, err)
	}
	features := map[int]Features{}
	for _, index := range indices {
		// The answers to a dump lack NLM_F_MULTI, so the library would read one of them. Its
		// nl.Genlmsg sends two random bytes where the kernel requires zeros.
		request := nl.NewNetlinkRequest(int(family.ID), 0)
		request.AddRawData([]byte{netdevCmdDevGet, netdevVersion, 0, 0})
		request.AddRawData(nl.NewRtAttr(netdevAttrIfindex, nl.Uint32Attr(uint32(index))).Serialize())
		messages, err := request.Execute(unix.NETLINK_GENERIC, 0)
		if errors.Is(err, unix.ENODEV) {
			continue
		}
		if err == nil && len(messages) != 1 {
			err = fmt.Errorf("%d answers", len(messages))
		}
		if err == nil {
			features[index], err = parseFeatures(messages[0])
		}
		if err != nil {
			return nil, fmt.Errorf("asking for the XDP features of device %d: %w", index, err)
		}
	}
	return features, nil
}

func parseFeatures(message []byte) (f Features, err error) {
	if len(message) < nl.SizeofGenlmsg {
		return f, io.ErrUnexpectedEOF
	}
	attributes, err := nl.ParseRouteAttr(message[nl.SizeofGenlmsg:])
	for _, a := range attributes {
		switch {
		case len(a.Value) < 8:
		case a.Attr.Type == netdevAttrXDP:
			f.XDP = binary.NativeEndian.Uint64(a.Value)
		case a.Attr.Type == netdevAttrRxMetadata:
			f.RxMetadata = binary.NativeEndian.Uint64(a.Value)
		}
	}
	return f, err
}
