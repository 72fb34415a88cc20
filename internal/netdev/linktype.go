// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package netdev

// LinkLayer says what the frames of a device begin with. XDP programs see frames from there on.
type LinkLayer uint32

// The link layers.
const (
	LinkEthernet LinkLayer = iota // an Ethernet header
	LinkIP                        // the header of IP
	LinkOther                     // anything else
)

// linkTypes are names of ip-link(8) for the ARPHRD_* of linux/if_arp.h that the netlink library
// has no names for.
var linkTypes = map[string]string{
	"unknown280": "can", "unknown290": "mctp", "unknown519": "rawip", "unknown820": "phonet", "unknown823": "gre6",
	"unknown824": "netlink", "unknown825": "6lowpan", "unknown826": "vsockmon",
}

// linkLayers has the link types whose frames can be parsed. Those of the devices without Ethernet
// begin with IP, because the kernel sets the MAC header to where the packet in the tunnel begins.
var linkLayers = map[string]LinkLayer{
	"ether": LinkEthernet, "loopback": LinkEthernet,
	"none":  LinkIP, // tun, wireguard, VXLAN-GPE
	"ppp":   LinkIP,
	"rawip": LinkIP, // modems
	"ipip":  LinkIP, "tunnel6": LinkIP, "sit": LinkIP, "gre": LinkIP, "gre6": LinkIP,
}

// ethernetKinds are the kinds of devices whose frames begin with an Ethernet header although they
// have a link type without one: IPsec moves the header of the packet that arrived in front of the
// packet that was inside of it.
var ethernetKinds = map[string]bool{"vti": true, "vti6": true, "xfrm": true}

// linkOf returns the link type of a device of a kind as ip-link(8) names it, and its link layer.
// The netlink library calls a type that it has no name for "unknown" with the number.
func linkOf(kind, encapsulation string) (string, LinkLayer) {
	name, ok := linkTypes[encapsulation]
	if !ok {
		name = encapsulation
	}
	layer, ok := linkLayers[name]
	if !ok {
		layer = LinkOther
	}
	if layer == LinkIP && ethernetKinds[kind] {
		layer = LinkEthernet
	}
	return name, layer
}
