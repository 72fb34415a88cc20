// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"unsafe"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// cell identifies the counter of a packet. A test sends every frame once, as the first packet
// of its flow.
type cell struct {
	family   Family
	protocol Protocol
	outcome  Outcome
}

// frameCase is a frame and what is counted.
type frameCase struct {
	about string
	frame []byte
	want  cell
	// key has source, destination, protocol number and VLAN of the flow. It is empty if the frame
	// has no flow.
	key string
}

// linkedFrame is a frameCase on a device with a link layer.
type linkedFrame struct {
	frameCase
	link netdev.LinkLayer
}

// allFrames returns the frames of frameTable and of ipFrameTable.
func allFrames() (all []linkedFrame) {
	for _, test := range frameTable {
		all = append(all, linkedFrame{test, netdev.LinkEthernet})
	}
	for _, test := range ipFrameTable {
		all = append(all, linkedFrame{test, netdev.LinkIP})
	}
	return all
}

var frameTable = []frameCase{
	{"UDP over IPv4", udpFrame(),
		cell{FamilyIPv4, ProtocolUDP, OutcomeNewFlow}, "10.0.0.1:1000 10.0.0.2:53 17 0"},
	{"TCP over IPv4", ethernet(etherIPv4, ipv4(ipTCP, tcp(40000, 443, 5))),
		cell{FamilyIPv4, ProtocolTCP, OutcomeNewFlow}, "10.0.0.1:40000 10.0.0.2:443 6 0"},
	{"TCP with options", ethernet(etherIPv4, ipv4(ipTCP, tcp(40000, 443, 15))),
		cell{FamilyIPv4, ProtocolTCP, OutcomeNewFlow}, "10.0.0.1:40000 10.0.0.2:443 6 0"},
	{"TCP whose header claims fewer than 5 words", ethernet(etherIPv4, ipv4(ipTCP, tcp(40000, 443, 4))),
		cell{FamilyIPv4, ProtocolTCP, OutcomeUnparsed}, ""},
	{"TCP whose header claims more than the packet has", ethernet(etherIPv4, ipv4(ipTCP, append(tcp(1, 2, 5)[:12], 15<<4, 0, 0, 0, 0, 0, 0, 0))),
		cell{FamilyIPv4, ProtocolTCP, OutcomeUnparsed}, ""},
	{"SCTP over IPv4", ethernet(etherIPv4, ipv4(ipSCTP, sctp(5000, 5001))),
		cell{FamilyIPv4, ProtocolSCTP, OutcomeNewFlow}, "10.0.0.1:5000 10.0.0.2:5001 132 0"},
	{"ICMP echo request: the identifier is the source port, type and code the destination port", ethernet(etherIPv4, ipv4(ipICMP, icmp(8, 0, 77))),
		cell{FamilyIPv4, ProtocolICMP, OutcomeNewFlow}, "10.0.0.1:77 10.0.0.2:2048 1 0"},
	{"ICMP port unreachable", ethernet(etherIPv4, ipv4(ipICMP, icmp(3, 3, 77))),
		cell{FamilyIPv4, ProtocolICMP, OutcomeNewFlow}, "10.0.0.1:0 10.0.0.2:771 1 0"},
	{"GRE has no ports", ethernet(etherIPv4, ipv4(ipGRE, make([]byte, 20))),
		cell{FamilyIPv4, ProtocolOther, OutcomeNewFlow}, "10.0.0.1:0 10.0.0.2:0 47 0"},
	{"an IP protocol without payload", ethernet(etherIPv4, ipv4(253, nil)),
		cell{FamilyIPv4, ProtocolOther, OutcomeNewFlow}, "10.0.0.1:0 10.0.0.2:0 253 0"},
	{"IPv4 with all options", ethernet(etherIPv4, ipv4With(ipv4Header{protocol: ipUDP, ihl: 15}, udp(1, 2, nil))),
		cell{FamilyIPv4, ProtocolUDP, OutcomeNewFlow}, "10.0.0.1:1 0.0.0.0:2 17 0"},
	{"IPv4 whose header claims fewer than 5 words", ethernet(etherIPv4, ipv4With(ipv4Header{protocol: ipUDP, ihl: 4, length: 40}, udp(1, 2, make([]byte, 30)))),
		cell{FamilyIPv4, ProtocolOther, OutcomeUnparsed}, ""},
	{"IPv4 whose length is less than its header", ethernet(etherIPv4, ipv4With(ipv4Header{protocol: ipUDP, ihl: 5, length: 19}, udp(1, 2, nil))),
		cell{FamilyIPv4, ProtocolUDP, OutcomeUnparsed}, ""},
	{"IPv4 whose length is beyond the frame", ethernet(etherIPv4, ipv4With(ipv4Header{protocol: ipUDP, ihl: 5, length: 29}, udp(1, 2, nil))),
		cell{FamilyIPv4, ProtocolUDP, OutcomeUnparsed}, ""},
	{"IPv4 with padding after it", append(ethernet(etherIPv4, ipv4(ipUDP, udp(1, 2, nil))), make([]byte, 18)...),
		cell{FamilyIPv4, ProtocolUDP, OutcomeNewFlow}, "10.0.0.1:1 10.0.0.2:2 17 0"},
	{"UDP header that extends into the padding", append(ethernet(etherIPv4, ipv4(ipUDP, make([]byte, 7))), make([]byte, 18)...),
		cell{FamilyIPv4, ProtocolUDP, OutcomeUnparsed}, ""},
	{"the first fragment has ports", ethernet(etherIPv4, ipv4With(ipv4Header{protocol: ipUDP, ihl: 5, fragment: 0x2000}, udp(1, 2, make([]byte, 8)))),
		cell{FamilyIPv4, ProtocolUDP, OutcomeNewFlow}, "10.0.0.1:1 0.0.0.0:2 17 0"},
	{"a later fragment has no ports", ethernet(etherIPv4, ipv4With(ipv4Header{protocol: ipUDP, ihl: 5, fragment: 0x2001}, make([]byte, 8))),
		cell{FamilyIPv4, ProtocolUDP, OutcomeFragment}, ""},
	{"the last fragment has no ports", ethernet(etherIPv4, ipv4With(ipv4Header{protocol: ipTCP, ihl: 5, fragment: 1}, make([]byte, 3))),
		cell{FamilyIPv4, ProtocolTCP, OutcomeFragment}, ""},
	{"the ethertype of IPv4 with another version", ethernet(etherIPv4, ipv6(ipUDP, udp(1, 2, nil))),
		cell{FamilyIPv4, ProtocolOther, OutcomeUnparsed}, ""},

	{"UDP over IPv6", ethernet(etherIPv6, ipv6(ipUDP, udp(1000, 53, nil))),
		cell{FamilyIPv6, ProtocolUDP, OutcomeNewFlow}, "[fd00::1]:1000 [fd00::2]:53 17 0"},
	{"TCP over IPv6", ethernet(etherIPv6, ipv6(ipTCP, tcp(1000, 80, 8))),
		cell{FamilyIPv6, ProtocolTCP, OutcomeNewFlow}, "[fd00::1]:1000 [fd00::2]:80 6 0"},
	{"ICMPv6 echo reply", ethernet(etherIPv6, ipv6(ipICMPv6, icmp(129, 0, 9))),
		cell{FamilyIPv6, ProtocolICMP, OutcomeNewFlow}, "[fd00::1]:9 [fd00::2]:33024 58 0"},
	{"neighbour solicitation", ethernet(etherIPv6, ipv6(ipICMPv6, icmp(135, 0, 9))),
		cell{FamilyIPv6, ProtocolICMP, OutcomeNewFlow}, "[fd00::1]:0 [fd00::2]:34560 58 0"},
	{"ICMP of IPv4 inside IPv6 is another protocol", ethernet(etherIPv6, ipv6(ipICMP, icmp(8, 0, 9))),
		cell{FamilyIPv6, ProtocolOther, OutcomeNewFlow}, "[fd00::1]:0 [fd00::2]:0 1 0"},
	{"UDP after hop-by-hop, routing and destination options", ethernet(etherIPv6,
		ipv6(ipHopOptions, extension(ipRouting, 0, extension(ipDestOptions, 2, extension(ipUDP, 0, udp(5, 6, nil)))))),
		cell{FamilyIPv6, ProtocolUDP, OutcomeNewFlow}, "[fd00::1]:5 [fd00::2]:6 17 0"},
	{"TCP after an authentication header", ethernet(etherIPv6, ipv6(ipAuth, authentication(ipTCP, 4, tcp(5, 6, 5)))),
		cell{FamilyIPv6, ProtocolTCP, OutcomeNewFlow}, "[fd00::1]:5 [fd00::2]:6 6 0"},
	{"TCP after eight extension headers", ethernet(etherIPv6, ipv6(ipDestOptions, nested(8, tcp(5, 6, 5)))),
		cell{FamilyIPv6, ProtocolTCP, OutcomeNewFlow}, "[fd00::1]:5 [fd00::2]:6 6 0"},
	{"nine extension headers, one more than the parser accepts", ethernet(etherIPv6, ipv6(ipDestOptions, nested(9, tcp(5, 6, 5)))),
		cell{FamilyIPv6, ProtocolOther, OutcomeUnparsed}, ""},
	{"UDP after five extension headers of 512 bytes each", ethernet(etherIPv6, ipv6(ipDestOptions, nestedOf(5, 63, udp(5, 6, nil)))),
		cell{FamilyIPv6, ProtocolUDP, OutcomeNewFlow}, "[fd00::1]:5 [fd00::2]:6 17 0"},
	{"ESP hides its payload", ethernet(etherIPv6, ipv6(ipESP, make([]byte, 24))),
		cell{FamilyIPv6, ProtocolOther, OutcomeNewFlow}, "[fd00::1]:0 [fd00::2]:0 50 0"},
	{"no next header", ethernet(etherIPv6, ipv6(ipMobility, extension(ipNoNext, 0, nil))),
		cell{FamilyIPv6, ProtocolOther, OutcomeNewFlow}, "[fd00::1]:0 [fd00::2]:0 59 0"},
	{"an atomic fragment", ethernet(etherIPv6, ipv6(ipFragment, fragment6(ipUDP, 0, udp(5, 6, nil)))),
		cell{FamilyIPv6, ProtocolUDP, OutcomeNewFlow}, "[fd00::1]:5 [fd00::2]:6 17 0"},
	{"a later fragment after hop-by-hop options", ethernet(etherIPv6, ipv6(ipHopOptions, extension(ipFragment, 0, fragment6(ipUDP, 3, make([]byte, 16))))),
		cell{FamilyIPv6, ProtocolUDP, OutcomeFragment}, ""},
	{"an extension header beyond the payload", ethernet(etherIPv6, ipv6(ipHopOptions, extension(ipUDP, 1, nil)[:8])),
		cell{FamilyIPv6, ProtocolOther, OutcomeUnparsed}, ""},
	{"a payload length beyond the frame", ethernet(etherIPv6, ipv6(ipUDP, udp(1, 2, make([]byte, 9))))[:14+40+16],
		cell{FamilyIPv6, ProtocolUDP, OutcomeUnparsed}, ""},
	{"a jumbogram has its length in an option", ethernet(etherIPv6, jumbogram(extension(ipUDP, 0, udp(5, 6, nil)))),
		cell{FamilyIPv6, ProtocolUDP, OutcomeNewFlow}, "[fd00::1]:5 [fd00::2]:6 17 0"},
	{"the ethertype of IPv6 with another version", ethernet(etherIPv6, make([]byte, 60)),
		cell{FamilyIPv6, ProtocolOther, OutcomeUnparsed}, ""},

	{"UDP in a VLAN", ethernet(tagVLAN, tagged(0xe000|100, etherIPv4, ipv4(ipUDP, udp(5, 6, nil)))),
		cell{FamilyIPv4, ProtocolUDP, OutcomeNewFlow}, "10.0.0.1:5 10.0.0.2:6 17 100"},
	{"UDP in two VLANs: the outer one counts", ethernet(tagQinQ, tagged(200, tagVLAN, tagged(100, etherIPv6, ipv6(ipUDP, udp(5, 6, nil))))),
		cell{FamilyIPv6, ProtocolUDP, OutcomeNewFlow}, "[fd00::1]:5 [fd00::2]:6 17 200"},
	{"three tags, one more than the parser accepts", ethernet(tagQinQ, tagged(1, tagVLAN, tagged(2, tagVLAN, tagged(3, etherIPv4, ipv4(ipUDP, udp(5, 6, nil)))))),
		cell{FamilyOther, ProtocolOther, OutcomeUnparsed}, ""},
	{"IPv4 in a PPPoE session", ethernet(etherPPPoE, pppoe(pppIPv4, ipv4(ipTCP, tcp(40000, 443, 5)))),
		cell{FamilyIPv4, ProtocolTCP, OutcomeNewFlow}, "10.0.0.1:40000 10.0.0.2:443 6 0"},
	{"IPv6 with extension headers in a PPPoE session", ethernet(etherPPPoE, pppoe(pppIPv6, ipv6(ipHopOptions, extension(ipDestOptions, 2, extension(ipUDP, 0, udp(5, 6, nil)))))),
		cell{FamilyIPv6, ProtocolUDP, OutcomeNewFlow}, "[fd00::1]:5 [fd00::2]:6 17 0"},
	{"a PPPoE session in two VLANs", ethernet(tagQinQ, tagged(200, tagVLAN, tagged(100, etherPPPoE, pppoe(pppIPv4, ipv4(ipUDP, udp(5, 6, nil)))))),
		cell{FamilyIPv4, ProtocolUDP, OutcomeNewFlow}, "10.0.0.1:5 10.0.0.2:6 17 200"},
	{"a PPPoE session with padding after it", append(ethernet(etherPPPoE, pppoe(pppIPv4, ipv4(ipUDP, udp(1, 2, nil)))), make([]byte, 10)...),
		cell{FamilyIPv4, ProtocolUDP, OutcomeNewFlow}, "10.0.0.1:1 10.0.0.2:2 17 0"},
	{"a PPPoE session with more than a packet of IP", ethernet(etherPPPoE, pppoe(pppIPv4, append(ipv4(ipUDP, udp(1, 2, nil)), 0, 0))),
		cell{FamilyIPv4, ProtocolUDP, OutcomeNewFlow}, "10.0.0.1:1 10.0.0.2:2 17 0"},
	{"a packet of IP that is longer than its PPPoE session", ethernet(etherPPPoE, pppoeWith(0x1100, 2+27, pppIPv4, ipv4(ipUDP, udp(1, 2, nil)))),
		cell{FamilyIPv4, ProtocolUDP, OutcomeUnparsed}, ""},
	{"a PPPoE session too short for a header of IP", ethernet(etherPPPoE, pppoeWith(0x1100, 2+19, pppIPv4, ipv4(ipUDP, udp(1, 2, nil)))),
		cell{FamilyOther, ProtocolOther, OutcomeUnparsed}, ""},
	{"a PPPoE session without PPP", ethernet(etherPPPoE, pppoeWith(0x1100, 0, pppIPv6, ipv6(ipUDP, udp(1, 2, nil)))),
		cell{FamilyOther, ProtocolOther, OutcomeUnparsed}, ""},
	{"a PPPoE session beyond the frame", ethernet(etherPPPoE, pppoeWith(0x1100, 2+29, pppIPv4, ipv4(ipUDP, udp(1, 2, nil)))),
		cell{FamilyOther, ProtocolOther, OutcomeUnparsed}, ""},
	{"another version of PPPoE", ethernet(etherPPPoE, pppoeWith(0x2100, 2+28, pppIPv4, ipv4(ipUDP, udp(1, 2, nil)))),
		cell{FamilyOther, ProtocolOther, OutcomeUnparsed}, ""},
	{"another type of PPPoE", ethernet(etherPPPoE, pppoeWith(0x1200, 2+28, pppIPv4, ipv4(ipUDP, udp(1, 2, nil)))),
		cell{FamilyOther, ProtocolOther, OutcomeUnparsed}, ""},
	{"another code of PPPoE", ethernet(etherPPPoE, pppoeWith(0x1109, 2+28, pppIPv4, ipv4(ipUDP, udp(1, 2, nil)))),
		cell{FamilyOther, ProtocolOther, OutcomeUnparsed}, ""},
	{"PPP's own protocol in a PPPoE session", ethernet(etherPPPoE, pppoe(pppLCP, make([]byte, 40))),
		cell{FamilyOther, ProtocolOther, OutcomeUnparsed}, ""},
	{"IPv6 announced as IPv4 in a PPPoE session", ethernet(etherPPPoE, pppoe(pppIPv4, ipv6(ipUDP, udp(1, 2, nil)))),
		cell{FamilyIPv4, ProtocolOther, OutcomeUnparsed}, ""},

	{"IPv4 below one label", ethernet(etherMPLS, mpls([]int{100}, ipv4(ipTCP, tcp(40000, 443, 5)))),
		cell{FamilyIPv4, ProtocolTCP, OutcomeNewFlow}, "10.0.0.1:40000 10.0.0.2:443 6 0"},
	{"IPv6 below two labels of multicast", ethernet(etherMPLSMulticast, mpls([]int{100, 1<<20 - 1}, ipv6(ipUDP, udp(5, 6, nil)))),
		cell{FamilyIPv6, ProtocolUDP, OutcomeNewFlow}, "[fd00::1]:5 [fd00::2]:6 17 0"},
	{"labels in two VLANs", ethernet(tagQinQ, tagged(200, tagVLAN, tagged(100, etherMPLS, mpls([]int{16, 17}, ipv4(ipUDP, udp(5, 6, nil)))))),
		cell{FamilyIPv4, ProtocolUDP, OutcomeNewFlow}, "10.0.0.1:5 10.0.0.2:6 17 200"},
	{"the explicit null label of IPv4", ethernet(etherMPLS, mpls([]int{0}, ipv4(ipUDP, udp(5, 6, nil)))),
		cell{FamilyIPv4, ProtocolUDP, OutcomeNewFlow}, "10.0.0.1:5 10.0.0.2:6 17 0"},
	{"the explicit null label of IPv6", ethernet(etherMPLS, mpls([]int{100, 2}, ipv6(ipUDP, udp(5, 6, nil)))),
		cell{FamilyIPv6, ProtocolUDP, OutcomeNewFlow}, "[fd00::1]:5 [fd00::2]:6 17 0"},
	{"eight labels", ethernet(etherMPLS, mpls([]int{1, 2, 3, 4, 5, 6, 7, 8}, ipv4(ipUDP, udp(5, 6, nil)))),
		cell{FamilyIPv4, ProtocolUDP, OutcomeNewFlow}, "10.0.0.1:5 10.0.0.2:6 17 0"},
	{"eight labels in two VLANs", ethernet(tagQinQ, tagged(200, tagVLAN, tagged(100, etherMPLS, mpls([]int{1, 2, 3, 4, 5, 6, 7, 8}, ipv6(ipTCP, tcp(5, 6, 5)))))),
		cell{FamilyIPv6, ProtocolTCP, OutcomeNewFlow}, "[fd00::1]:5 [fd00::2]:6 6 200"},
	{"nine labels, one more than the parser accepts", ethernet(etherMPLS, mpls([]int{1, 2, 3, 4, 5, 6, 7, 8, 9}, ipv4(ipUDP, udp(5, 6, nil)))),
		cell{FamilyOther, ProtocolOther, OutcomeUnparsed}, ""},
	{"labels without a bottom", ethernet(etherMPLS, make([]byte, 40)),
		cell{FamilyOther, ProtocolOther, OutcomeUnparsed}, ""},
	{"labels to the end of the frame", ethernet(etherMPLS, mpls([]int{16, 17}, nil)),
		cell{FamilyOther, ProtocolOther, OutcomeUnparsed}, ""},
	{"a pseudowire with a control word", ethernet(etherMPLS, mpls([]int{16, 17}, append([]byte{0, 0, 0, 1}, udpFrame()...))),
		cell{FamilyOther, ProtocolOther, OutcomeUnparsed}, ""},
	{"a pseudowire whose address begins like IPv4", ethernet(etherMPLS, mpls([]int{16}, append([]byte{0x42}, udpFrame()[1:]...))),
		cell{FamilyIPv4, ProtocolOther, OutcomeUnparsed}, ""},
	{"a length beyond the frame below a label", ethernet(etherMPLS, mpls([]int{16}, ipv4With(ipv4Header{protocol: ipUDP, ihl: 5, length: 29}, udp(1, 2, nil)))),
		cell{FamilyIPv4, ProtocolUDP, OutcomeUnparsed}, ""},
	{"a later fragment below a label", ethernet(etherMPLS, mpls([]int{16}, ipv4With(ipv4Header{protocol: ipUDP, ihl: 5, fragment: 0x2001}, make([]byte, 8)))),
		cell{FamilyIPv4, ProtocolUDP, OutcomeFragment}, ""},

	{"TCP over IPv4 above 64 KiB has a length of 0", ethernet(etherIPv4, withoutLength(ipv4(ipTCP, bigTCP()))),
		cell{FamilyIPv4, ProtocolTCP, OutcomeNewFlow}, "10.0.0.1:40000 10.0.0.2:7777 6 0"},
	{"TCP over IPv6 above 64 KiB has a length of 0", ethernet(etherIPv6, withoutLength(ipv6(ipTCP, bigTCP()))),
		cell{FamilyIPv6, ProtocolTCP, OutcomeNewFlow}, "[fd00::1]:40000 [fd00::2]:7777 6 0"},
	{"TCP above 64 KiB after destination options", ethernet(etherIPv6, withoutLength(ipv6(ipDestOptions, extension(ipTCP, 0, bigTCP())))),
		cell{FamilyIPv6, ProtocolTCP, OutcomeNewFlow}, "[fd00::1]:40000 [fd00::2]:7777 6 0"},
	{"TCP above 64 KiB after the option of jumbograms", ethernet(etherIPv6, withoutLength(ipv6(ipHopOptions, extension(ipTCP, 0, bigTCP())))),
		cell{FamilyIPv6, ProtocolTCP, OutcomeNewFlow}, "[fd00::1]:40000 [fd00::2]:7777 6 0"},
	{"UDP over IPv4 above 64 KiB in a VLAN", ethernet(tagVLAN, tagged(100, etherIPv4, withoutLength(ipv4(ipUDP, udp(5, 6, make([]byte, 66_000)))))),
		cell{FamilyIPv4, ProtocolUDP, OutcomeNewFlow}, "10.0.0.1:5 10.0.0.2:6 17 100"},
	{"TCP above 64 KiB below a label", ethernet(etherMPLS, mpls([]int{16}, withoutLength(ipv4(ipTCP, bigTCP())))),
		cell{FamilyIPv4, ProtocolTCP, OutcomeNewFlow}, "10.0.0.1:40000 10.0.0.2:7777 6 0"},
	{"the shortest frame above 64 KiB", ethernet(etherIPv4, withoutLength(ipv4(ipTCP, bigTCP())))[:65536],
		cell{FamilyIPv4, ProtocolTCP, OutcomeNewFlow}, "10.0.0.1:40000 10.0.0.2:7777 6 0"},
	{"a length of 0 in the longest frame below 64 KiB", ethernet(etherIPv4, withoutLength(ipv4(ipTCP, bigTCP())))[:65535],
		cell{FamilyIPv4, ProtocolTCP, OutcomeUnparsed}, ""},
	{"IPv6 with a length of 0 in the longest frame below 64 KiB", ethernet(etherIPv6, withoutLength(ipv6(ipTCP, bigTCP())))[:65535],
		cell{FamilyIPv6, ProtocolTCP, OutcomeUnparsed}, ""},
	{"GRE above 64 KiB", ethernet(etherIPv4, withoutLength(ipv4(ipGRE, make([]byte, 66_000)))),
		cell{FamilyIPv4, ProtocolOther, OutcomeUnparsed}, ""},
	{"IPv6 with a length of 0 and no payload above 64 KiB", ethernet(etherIPv6, withoutLength(ipv6(ipNoNext, make([]byte, 66_000)))),
		cell{FamilyIPv6, ProtocolOther, OutcomeNewFlow}, "[fd00::1]:0 [fd00::2]:0 59 0"},
	{"GRE above 64 KiB after destination options", ethernet(etherIPv6, withoutLength(ipv6(ipDestOptions, extension(ipGRE, 0, make([]byte, 66_000))))),
		cell{FamilyIPv6, ProtocolOther, OutcomeUnparsed}, ""},
	{"a TCP header above 64 KiB with fewer than 5 words", ethernet(etherIPv4, withoutLength(ipv4(ipTCP, append(tcp(1, 2, 4), make([]byte, 66_000)...)))),
		cell{FamilyIPv4, ProtocolTCP, OutcomeUnparsed}, ""},
	{"a PPPoE session ends a packet without a length", ethernet(etherPPPoE, pppoeWith(0x1100, 2+39, pppIPv4, withoutLength(ipv4(ipTCP, bigTCP())))),
		cell{FamilyIPv4, ProtocolTCP, OutcomeUnparsed}, ""},
	{"IPv6 without a length that is only a header in its PPPoE session", ethernet(etherPPPoE, pppoeWith(0x1100, 2+40, pppIPv6, withoutLength(ipv6(ipTCP, bigTCP())))),
		cell{FamilyIPv6, ProtocolTCP, OutcomeUnparsed}, ""},

	{"ARP", ethernet(etherARP, make([]byte, 28)),
		cell{FamilyOther, ProtocolOther, OutcomeUnparsed}, ""},
	{"a bare Ethernet header", ethernet(etherIPv4, nil),
		cell{FamilyIPv4, ProtocolOther, OutcomeUnparsed}, ""},
}

// ipFrameTable has frames of devices without an Ethernet header.
var ipFrameTable = []frameCase{
	{"a packet from a tun device", fromHex("4500001c0000000040110000c0000209c00002089c4014e900080000"),
		cell{FamilyIPv4, ProtocolUDP, OutcomeNewFlow}, "192.0.2.9:40000 192.0.2.8:5353 17 0"},
	{"TCP over IPv4 without Ethernet", ipv4(ipTCP, tcp(40000, 443, 8)),
		cell{FamilyIPv4, ProtocolTCP, OutcomeNewFlow}, "10.0.0.1:40000 10.0.0.2:443 6 0"},
	{"a source of 8.0.69.0 is not an ethertype", ipv4From([4]byte{8, 0, 69, 0}, ipUDP, udp(1000, 53, make([]byte, 40))),
		cell{FamilyIPv4, ProtocolUDP, OutcomeNewFlow}, "8.0.69.0:1000 10.0.0.2:53 17 0"},
	{"TCP over IPv6 without Ethernet", ipv6(ipTCP, tcp(1000, 80, 8)),
		cell{FamilyIPv6, ProtocolTCP, OutcomeNewFlow}, "[fd00::1]:1000 [fd00::2]:80 6 0"},
	{"extension headers without Ethernet", ipv6(ipHopOptions, extension(ipDestOptions, 2, extension(ipUDP, 0, udp(5, 6, nil)))),
		cell{FamilyIPv6, ProtocolUDP, OutcomeNewFlow}, "[fd00::1]:5 [fd00::2]:6 17 0"},
	{"a later fragment without Ethernet", ipv4With(ipv4Header{protocol: ipUDP, ihl: 5, fragment: 0x2001}, make([]byte, 8)),
		cell{FamilyIPv4, ProtocolUDP, OutcomeFragment}, ""},
	{"a length beyond the packet", ipv4With(ipv4Header{protocol: ipUDP, ihl: 5, length: 29}, udp(1, 2, nil)),
		cell{FamilyIPv4, ProtocolUDP, OutcomeUnparsed}, ""},
	{"TCP above 64 KiB without Ethernet", withoutLength(ipv4(ipTCP, bigTCP())),
		cell{FamilyIPv4, ProtocolTCP, OutcomeNewFlow}, "10.0.0.1:40000 10.0.0.2:7777 6 0"},
	{"neither version 4 nor 6", append([]byte{5 << 4}, ipv4(ipUDP, udp(1, 2, nil))[1:]...),
		cell{FamilyOther, ProtocolOther, OutcomeUnparsed}, ""},
	{"an Ethernet header where there is none", udpFrame(),
		cell{FamilyOther, ProtocolOther, OutcomeUnparsed}, ""},
}

// nested puts n destination options headers in front of a transport payload: TCP.
func nested(n int, payload []byte) []byte {
	next := ipTCP
	for range n {
		payload = extension(next, 0, payload)
		next = ipDestOptions
	}
	return payload
}

// nestedOf puts n destination options headers of 8·(1+units) bytes in front of UDP.
func nestedOf(n, units int, payload []byte) []byte {
	next := ipUDP
	for range n {
		payload = extension(next, units, payload)
		next = ipDestOptions
	}
	return payload
}

// jumbogram is an IPv6 packet whose length field is 0.
func jumbogram(payload []byte) []byte {
	packet := ipv6(ipHopOptions, payload)
	packet[4], packet[5] = 0, 0
	return packet
}

// counts returns the cells and bytes of device 0 on this CPU.
func (p *probe) counts() (packets Packets, bytes [NumFamilies][NumProtocols]uint64) {
	for f := range packets {
		for q := range packets[f] {
			packets[f][q] = [NumOutcomes]uint64(p.block.Protocols[f][q].Packets[:NumOutcomes])
			bytes[f][q] = p.block.Protocols[f][q].Bytes
		}
	}
	return packets, bytes
}

// onlyKey returns the key of the only flow, in the format of frameTable.
func (p *probe) onlyKey(t *testing.T) string {
	t.Helper()
	var key programFlowKey
	slot := p.onlySlot(t)
	offset := uintptr(unsafe.Pointer(slot)) - uintptr(unsafe.Pointer(&p.sets[0]))
	set := offset / unsafe.Sizeof(programFlowSet{})
	way := (offset - set*unsafe.Sizeof(programFlowSet{}) - unsafe.Offsetof(programFlowSet{}.Slots)) / unsafe.Sizeof(programFlowSlot{})
	if err := p.maps.byName[programMapFlowKeys].Lookup(uint32(set*flowWays+way), &key); err != nil {
		t.Fatal(err)
	}
	return describeKey(&key)
}

func describeKey(key *programFlowKey) string {
	family := Family(key.Family)
	return fmt.Sprintf("%v %v %d %d", addrPort(family, &key.Source, key.SourcePort),
		addrPort(family, &key.Destination, key.DestinationPort), key.IpProtocol, key.VlanId)
}

// Every prefix of every valid frame passes unchanged and is counted once. A prefix is unparsed
// unless only padding is cut off.
func TestTruncatedFramesAreCountedOnce(t *testing.T) {
	const shortest = 14 // the minimum of BPF_PROG_TEST_RUN
	probes, totals := map[netdev.LinkLayer]*probe{}, map[netdev.LinkLayer]uint64{}
	for _, test := range allFrames() {
		if test.want.outcome == OutcomeUnparsed {
			continue
		}
		p := probes[test.link]
		if p == nil {
			p = newProbeOn(t, testConfig(), test.link)
			probes[test.link] = p
		}
		padding := map[string]int{
			"IPv4 with padding after it":            18,
			"a PPPoE session with padding after it": 10,
		}[test.about]
		const long = 4000
		for length := shortest; length <= len(test.frame); length++ {
			if length > long && length < biggestIP-2 || length > biggestIP+2 && length < len(test.frame)-2 {
				continue // all headers are there, and more of the payload changes nothing
			}
			before, _ := p.counts()
			run(t, p.program(0), test.frame[:length], 1e9, 1)
			totals[test.link]++
			after, _ := p.counts()
			if got, want := sumOf(&after), totals[test.link]; got != want {
				t.Fatalf("%s cut to %d bytes: counted %d times in all, want %d", test.about, length, got, want)
			}
			isUnparsed := after.Outcome(OutcomeUnparsed) != before.Outcome(OutcomeUnparsed)
			wantUnparsed := length < len(test.frame)-padding && !cutIsInvisible(test.about, length)
			if isUnparsed != wantUnparsed {
				t.Errorf("%s cut to %d of %d bytes: unparsed %v, want %v", test.about, length, len(test.frame), isUnparsed, wantUnparsed)
			}
		}
	}
	t.Logf("%d frames of each link layer", totals)
}

// cutIsInvisible reports whether the headers do not tell that the frame was cut, as those of a
// jumbogram, and of a frame that is still above 64 KiB.
func cutIsInvisible(about string, length int) bool {
	return about == "a jumbogram has its length in an option" && length >= 14+40+8+8 ||
		about == "IPv6 with a length of 0 and no payload above 64 KiB" && length >= 14+40 ||
		strings.Contains(about, "above 64 KiB") && (length > biggestIP || strings.Contains(about, "jumbogram") && length >= 14+40+8+20)
}

func sumOf(p *Packets) (sum uint64) {
	for o := range NumOutcomes {
		sum += p.Outcome(o)
	}
	return sum
}

// A packet without a timestamp, or with the value for none, is counted but not scored.
func TestPacketWithoutTimestampIsUntimed(t *testing.T) {
	p := newProbe(t, testConfig())
	for i, send := range []func(){
		func() { runRaw(t, p.program(0), udpFrame(), 0, 1) },
		func() { run(t, p.program(0), udpFrame(), math.MaxUint64, 1) },
	} {
		send()
		packets, _ := p.counts()
		if got, want := packets[FamilyIPv4][ProtocolUDP][OutcomeUntimed], uint64(i+1); got != want || sumOf(&packets) != want {
			t.Errorf("untimed packets: got %d of %d, want %d", got, sumOf(&packets), want)
		}
	}
}

func TestFramesAreCountedInTheirCells(t *testing.T) {
	for _, test := range allFrames() {
		t.Run(test.about, func(t *testing.T) {
			p := newProbeOn(t, testConfig(), test.link)
			run(t, p.program(0), test.frame, 1e9, 1)
			var want Packets
			want[test.want.family][test.want.protocol][test.want.outcome] = 1
			packets, bytes := p.counts()
			if packets != want {
				t.Errorf("cells: got %v, want one packet in %v", packets, test.want)
			}
			if got := bytes[test.want.family][test.want.protocol]; got != uint64(len(test.frame)) {
				t.Errorf("bytes: got %d, want %d", got, len(test.frame))
			}
			if test.key == "" {
				if inserts := p.block.FlowInserts; inserts != 0 {
					t.Errorf("%d flows were inserted, want none", inserts)
				}
				return
			}
			if got := p.onlyKey(t); got != test.key {
				t.Errorf("flow: got %s, want %s", got, test.key)
			}
		})
	}
}
