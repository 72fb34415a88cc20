// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"fmt"
	"strings"
)

// kind is a kind of network device, with what the audit of such a device must do.
//
// The lines of own and far are commands of ip -batch, for the namespace of the audited device and
// for that of the sender. In them {d} is the device, {u} the end of a veth pair that only this
// kind uses, {n} its number, and {own-mac} and {far-mac} are the hardware addresses of {u} in the
// two namespaces. Tunnels join the addresses of the lab's pair, {own4} to {far6}, or those of
// {u}, {low-own4} to {low-far6}.
type kind struct {
	name     string
	own, far []string
	ownOn    string                            // device with the own addresses, if it is not {d}
	farOn    string                            // device with the far addresses, if it is not {d}
	setUp    func(*kindLab, *kindDevice) error // what ip cannot do, after its commands
	send     func(*kindLab, *kindDevice, packetClass, []byte) error
	carries  []int  // IP versions; nil for both
	attached string // mode that auto takes: drv or skb; refused without any
	refusal  string // key phrase of the refusal of native mode, or of every mode

	// What the audit sees of the packets that are sent to the device. A device of which it sees
	// nothing is audited in name only, and has a reason for that.
	sees     string
	reason   string
	isSilent bool // the sender cannot notice that the packets arrive

	below     string // a device under it that is audited too
	belowSees string

	isEverywhere bool // every kernel has it, also those without modules
	since        [2]int
}

// What an audit sees of the packets that are sent to a device.
const (
	seesAll      = "each packet"
	seesInner    = "each packet, by its inner flow"
	seesOuterUDP = "outer UDP flow"
	seesOuter    = "outer flow without ports"
	seesUnparsed = "unparsed"
	seesNothing  = "nothing"
)

// withoutEthernet is the refusal of native mode on a device whose frames begin with IP.
const withoutEthernet = "without an Ethernet header"

// noNative is the kernel's refusal of native mode by a driver without XDP.
const noNative = "Underlying driver does not support XDP in native mode"

var allKinds = []kind{
	{name: "lo", attached: "skb", refusal: noNative, sees: seesAll, isEverywhere: true},
	{
		name: "veth", own: []string{"link add {d} type veth peer name {d} netns {far-ns}"}, attached: "drv", sees: seesAll, isEverywhere: true,
	},
	{
		name: "netkit", setUp: addNetkit,
		attached: "skb", refusal: noNative, sees: seesAll, since: [2]int{6, 7},
	},
	{
		name: "bridge", farOn: "{u}", own: []string{"link add {d} type bridge mcast_snooping 0", "link set {u} master {d}"},
		attached: "skb", refusal: noNative, sees: seesAll, isEverywhere: true,
	},
	{
		name: "bond", farOn: "{u}", own: []string{"link add {d} type bond mode active-backup miimon 100", "link set {u} down", "link set {u} master {d}"},
		attached: "drv", sees: seesAll,
	},
	{
		name: "team", farOn: "{u}", own: []string{"link add {d} type team", "link set {u} down"}, setUp: addTeamPort,
		attached: "skb", refusal: noNative, sees: seesAll,
	},
	{
		name: "macvlan", farOn: "{u}", own: []string{"link add {d} link {u} type macvlan mode bridge"},
		attached: "skb", refusal: noNative, sees: seesAll, isEverywhere: true,
	},
	{
		name: "macvtap", farOn: "{u}", own: []string{"link add {d} link {u} type macvtap mode bridge"},
		attached: "skb", refusal: noNative, sees: seesAll, isEverywhere: true,
	},
	{
		name: "ipvlan", farOn: "{u}", own: []string{"link add {d} link {u} type ipvlan mode l2"},
		attached: "skb", refusal: noNative, sees: seesAll,
	},
	{
		name: "ipvtap", farOn: "{u}", own: []string{"link add {d} link {u} type ipvtap mode l2"},
		attached: "skb", refusal: noNative, sees: seesAll,
	},
	{
		name: "vlan, 802.1Q", own: []string{"link add {d} link {u} type vlan id {n}"}, far: []string{"link add {d} link {u} type vlan id {n}"},
		attached: "skb", refusal: noNative, sees: seesAll, below: "{u}", belowSees: seesInner,
	},
	{
		name: "vlan, 802.1ad",
		own:  []string{"link add {d} link {u} type vlan proto 802.1ad id {n}"}, far: []string{"link add {d} link {u} type vlan proto 802.1ad id {n}"},
		attached: "skb", refusal: noNative, sees: seesAll, below: "{u}", belowSees: seesInner,
	},
	{
		name: "macsec",
		own: []string{
			"link add {d} link {u} type macsec encrypt on",
			"macsec add {d} tx sa 0 pn 1 on key 01 {key}", "macsec add {d} rx port 1 address {far-mac}",
			"macsec add {d} rx port 1 address {far-mac} sa 0 pn 1 on key 02 {key}",
		},
		far: []string{
			"link add {d} link {u} type macsec encrypt on",
			"macsec add {d} tx sa 0 pn 1 on key 02 {key}", "macsec add {d} rx port 1 address {own-mac}",
			"macsec add {d} rx port 1 address {own-mac} sa 0 pn 1 on key 01 {key}",
		},
		attached: "skb", refusal: noNative, sees: seesAll, below: "{u}", belowSees: seesUnparsed,
	},
	{
		name: "vrf", ownOn: "{u}", farOn: "{u}", own: []string{"link add {d} type vrf table 1{n}", "link set {d} up", "link set {u} master {d}"},
		attached: "skb", refusal: noNative, sees: seesNothing, reason: "its ports receive the packets",
	},
	{
		name: "dummy", own: []string{"link add {d} type dummy"}, send: sendFromDummy, isSilent: true,
		attached: "skb", refusal: noNative, sees: seesNothing, reason: "it only sends, and drops what it sends",
	},
	{
		name: "ifb", ownOn: "{u}", farOn: "{u}", own: []string{"link add {d} type ifb", "link set {d} up"}, setUp: redirectToIFB,
		attached: "skb", refusal: noNative, sees: seesNothing, reason: "the kernel runs no generic XDP for redirected packets",
	},
	tunnel("vxlan", "id {n} local {own4} remote {far4} dstport 4789", seesOuterUDP),
	tunnel("geneve", "id {n} remote {far4}", seesOuterUDP),
	withoutHeader(tunnel("gre", "local {own4} remote {far4} key {n}", seesOuter)),
	tunnel("gretap", "local {own4} remote {far4} key {n}", seesOuter),
	tunnel("erspan", "seq key {n} local {own4} remote {far4} erspan_ver 1 erspan {n}", seesOuter),
	withoutHeader(tunnel("ip6gre", "local {own6} remote {far6} key {n}", seesOuter)),
	tunnel("ip6gretap", "local {own6} remote {far6} key {n}", seesOuter),
	tunnel("ip6erspan", "seq key {n} local {own6} remote {far6} erspan_ver 1 erspan {n}", seesOuter),
	withoutHeader(tunnel("ipip", "local {own4} remote {far4}", seesOuter, 4)),
	withoutHeader(tunnel("sit", "local {own4} remote {far4}", seesOuter, 6)),
	withoutHeader(tunnel("ip6tnl", "mode any local {own6} remote {far6}", seesOuter)),
	protected(tunnel("vti", "local {low-own4} remote {low-far4} key {n}", seesOuter), 4, "mark {n}"),
	protected(tunnel("vti6", "local {low-own6} remote {low-far6} key {n}", seesOuter), 6, "mark {n}"),
	protected(tunnel("xfrm", "dev {u} if_id {n}", seesOuter), 4, "if_id {n}"),
	wireguard(tunnel("wireguard", "", seesOuterUDP)),
	{
		name: "l2tp",
		own: []string{
			"l2tp add tunnel tunnel_id {n} peer_tunnel_id {n} encap udp local {own4} remote {far4} udp_sport 1701 udp_dport 1701",
			"l2tp add session name {d} tunnel_id {n} session_id 1 peer_session_id 1",
		},
		far: []string{
			"l2tp add tunnel tunnel_id {n} peer_tunnel_id {n} encap udp local {far4} remote {own4} udp_sport 1701 udp_dport 1701",
			"l2tp add session name {d} tunnel_id {n} session_id 1 peer_session_id 1",
		},
		attached: "skb", refusal: noNative, sees: seesInner, below: "{under}", belowSees: seesOuterUDP,
	},
	{name: "tun", setUp: addTun, send: writeToTun, attached: "skb", refusal: withoutEthernet, sees: seesAll, isEverywhere: true},
	{name: "tap", setUp: addTun, send: writeToTun, attached: "drv", sees: seesAll, isEverywhere: true},
	{name: "nlmon", own: []string{"link add {d} type nlmon"}, refusal: "link type netlink"},
	{name: "vsockmon", own: []string{"link add {d} type vsockmon"}, refusal: "link type vsockmon"},
}

// tunnel is a tunnel over the lab's pair, whose audit sees outer packets of a protocol. The
// options are those of the audited end.
func tunnel(name, options, outer string, carries ...int) kind {
	line := "link add {d} type " + name + " " + options
	return kind{
		name: name, own: []string{line}, far: []string{opposite(line)}, carries: carries,
		attached: "skb", refusal: noNative, sees: seesInner, below: "{under}", belowSees: outer, isEverywhere: name == "vxlan",
	}
}

// protected adds the states and policies of IPsec to a tunnel over IPv4 or IPv6. It has a pair for
// itself, because vti takes the packets of other tunnels between its addresses.
func protected(k kind, version int, match string) kind {
	const (
		hash = "auth hmac(sha256) 0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
		// The parameters that the ends of the tunnel have in each direction are the same.
		toOwn, toFar = "0x1{n}", "0x2{n}"
	)
	own, far := fmt.Sprintf("{low-own%d}", version), fmt.Sprintf("{low-far%d}", version)
	end := func(link, own, far, in, out string) []string {
		lines := []string{fmt.Sprintf("address add %s/%d dev {u}%s", own, map[int]int{4: 24, 6: 64}[version], map[int]string{6: " nodad"}[version]), link}
		for _, to := range []struct{ direction, source, destination, spi string }{{"in", far, own, in}, {"out", own, far, out}} {
			lines = append(lines, fmt.Sprintf("xfrm state add src %s dst %s proto ah spi %s reqid {n} mode tunnel flag af-unspec %s %s",
				to.source, to.destination, to.spi, hash, match))
			for _, inside := range []string{"0.0.0.0/0", "::/0"} {
				lines = append(lines, fmt.Sprintf("xfrm policy add src %s dst %s dir %s %s tmpl src %s dst %s proto ah reqid {n} mode tunnel",
					inside, inside, to.direction, match, to.source, to.destination))
			}
		}
		return lines
	}
	k.own, k.far = end(k.own[0], own, far, toOwn, toFar), end(k.far[0], far, own, toFar, toOwn)
	k.below = "{u}"
	return k
}

func wireguard(k kind) kind {
	k.setUp = configureWireguard
	return withoutHeader(k)
}

// withoutHeader marks a kind whose frames begin with IP.
func withoutHeader(k kind) kind {
	k.refusal = withoutEthernet
	return k
}

// opposite exchanges the ends of a line.
func opposite(line string) string {
	return strings.NewReplacer("{low-own4}", "{low-far4}", "{low-far4}", "{low-own4}", "{low-own6}", "{low-far6}", "{low-far6}", "{low-own6}",
		"{own4}", "{far4}", "{far4}", "{own4}", "{own6}", "{far6}", "{far6}", "{own6}").Replace(line)
}

// isTunnel reports whether the device carries packets inside of others.
func (k kind) isTunnel() bool { return k.sees == seesInner }

// isBare reports whether the frames of the device begin with IP. Auto tries no native mode on it.
func (k kind) isBare() bool { return k.refusal == withoutEthernet }

// refused says which modes are refused, and for what.
func (k kind) refused() string {
	switch {
	case k.attached == "":
		return "every mode, for the link type"
	case k.isBare():
		return "native, for the link type"
	case k.attached == "skb":
		return "native, by the driver"
	}
	return ""
}
