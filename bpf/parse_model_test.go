// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"encoding/binary"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// biggestIP is the largest length that the header of IP can say.
const biggestIP = 65535

// parsed is the result of the model of the parser. The model was written from docs/DESIGN.md
// and the RFCs, not from parse.h.
type parsed struct {
	family   Family
	protocol Protocol
	class    class
	key      programFlowKey // of a packet that belongs to a flow, without the owner

	// The frame is longer than the header of IP can say. There Linux sets the length of TCP and
	// UDP to 0, and the packet ends with its frame.
	isBig bool
}

type class int

const (
	classUnparsed class = iota // not IP, truncated or malformed
	classFragment              // a fragment other than the first
	classFlow
)

// parseModel parses a frame of a device with that link layer. Programs can read its first
// `readable` bytes only. The driver has removed a VLAN tag with that id; 0 for none.
func parseModel(frame []byte, readable int, link netdev.LinkLayer, strippedID uint16) (p parsed) {
	o := octets{frame[:min(readable, len(frame))], len(frame)}
	p.isBig = len(frame) > biggestIP
	if link == netdev.LinkEthernet {
		p.class = p.ethernet(o)
	} else {
		p.class = p.ip(o)
	}
	if strippedID != 0 { // the outer tag
		p.key.VlanId = strippedID
	}
	if p.class != classFlow {
		p.key = programFlowKey{}
	}
	return p
}

// octets is a part of a frame. It has `all` bytes, and the first of them, in read, can be read.
type octets struct {
	read []byte
	all  int
}

// after returns the bytes after the first n.
func (o octets) after(n int) octets {
	return octets{o.read[min(n, len(o.read)):], o.all - n}
}

// upTo returns the first n bytes. There must be n bytes.
func (o octets) upTo(n int) octets {
	return octets{o.read[:min(n, len(o.read))], n}
}

// has reports whether the first n bytes exist and can be read.
func (o octets) has(n int) bool { return o.all >= n && len(o.read) >= n }

func (o octets) u16(at int) uint16 { return binary.BigEndian.Uint16(o.read[at:]) }

// inOrder returns a number in network byte order, as the program loads it.
func inOrder(v uint16) uint16 {
	var bytes [2]byte
	binary.BigEndian.PutUint16(bytes[:], v)
	return binary.NativeEndian.Uint16(bytes[:])
}

func (p *parsed) ethernet(o octets) class {
	const addresses = 12
	if !o.has(addresses + 2) {
		return classUnparsed
	}
	ethertype := o.u16(addresses)
	o = o.after(addresses + 2)
	for tags := 0; ethertype == tagVLAN || ethertype == tagQinQ; tags++ {
		if tags == 2 || !o.has(4) {
			return classUnparsed
		}
		if tags == 0 {
			p.key.VlanId = o.u16(0) % 4096
		}
		ethertype = o.u16(2)
		o = o.after(4)
	}
	switch ethertype {
	case etherIPv4:
		p.family = FamilyIPv4
		return p.ipv4(o)
	case etherIPv6:
		p.family = FamilyIPv6
		return p.ipv6(o)
	case etherPPPoE:
		return p.pppoe(o)
	case etherMPLS, etherMPLSMulticast:
		return p.mpls(o)
	}
	return classUnparsed
}

// pppoe is a session of RFC 2516, with IP by the protocol numbers of RFC 1332 and RFC 5072.
func (p *parsed) pppoe(o octets) class {
	if !o.has(8) || o.read[0] != 0x11 || o.read[1] != 0 {
		return classUnparsed
	}
	length, protocol := int(o.u16(4)), o.u16(6)
	if o = o.after(6); length > o.all {
		return classUnparsed
	}
	o = o.upTo(length).after(2)
	switch {
	case protocol == pppIPv4 && o.all >= 20:
		p.family = FamilyIPv4
		return p.ipv4(o)
	case protocol == pppIPv6 && o.all >= 40:
		p.family = FamilyIPv6
		return p.ipv6(o)
	}
	return classUnparsed
}

// mpls is a stack of labels of RFC 3032, of which eight are parsed.
func (p *parsed) mpls(o octets) class {
	for range 8 {
		if !o.has(4) {
			return classUnparsed
		}
		isBottom := o.read[2]&1 == 1
		o = o.after(4)
		if isBottom {
			return p.ip(o)
		}
	}
	return classUnparsed
}

// ip parses a packet by the version in its header.
func (p *parsed) ip(o octets) class {
	if o.has(1) {
		switch o.read[0] >> 4 {
		case 4:
			p.family = FamilyIPv4
			return p.ipv4(o)
		case 6:
			p.family = FamilyIPv6
			return p.ipv6(o)
		}
	}
	return classUnparsed
}

// ipv4 is RFC 791.
func (p *parsed) ipv4(o octets) class {
	if !o.has(20) || o.read[0]>>4 != 4 || o.read[0]&0xf < 5 {
		return classUnparsed
	}
	header, total := 4*int(o.read[0]&0xf), int(o.u16(2))
	p.key.Family, p.key.IpProtocol = uint8(FamilyIPv4), o.read[9]
	p.protocol = map4[p.key.IpProtocol]
	if total == 0 && p.isBig && (p.protocol == ProtocolTCP || p.protocol == ProtocolUDP) {
		total = o.all
	}
	if total < header || total > o.all {
		return classUnparsed
	}
	p.key.Source[0] = binary.NativeEndian.Uint32(o.read[12:])
	p.key.Destination[0] = binary.NativeEndian.Uint32(o.read[16:])
	if offset := o.u16(6) & 0x1fff; offset > 0 {
		return classFragment
	}
	return p.transport(o.upTo(total).after(header))
}

// ipv6 is RFC 8200.
func (p *parsed) ipv6(o octets) class {
	if !o.has(40) || o.read[0]>>4 != 6 {
		return classUnparsed
	}
	length, next := int(o.u16(4)), o.read[6]
	p.key.Family, p.protocol = uint8(FamilyIPv6), map6[next]
	for i := range p.key.Source {
		p.key.Source[i] = binary.NativeEndian.Uint32(o.read[8+4*i:])
		p.key.Destination[i] = binary.NativeEndian.Uint32(o.read[24+4*i:])
	}
	o = o.after(40)
	isJumbogram := length == 0 && next == ipHopOptions // RFC 2675
	isBig := length == 0 && p.isBig && !isJumbogram && (isExtension(next) || p.protocol == ProtocolTCP || p.protocol == ProtocolUDP)
	if !isJumbogram && !isBig {
		if length > o.all {
			return classUnparsed
		}
		o = o.upTo(length)
	}
	for range 8 {
		if !isExtension(next) {
			break
		}
		if !o.has(8) {
			return classUnparsed
		}
		var bytes int
		switch header := next; header {
		case ipFragment:
			bytes = 8
			if o.u16(2)>>3 > 0 {
				p.protocol = map6[o.read[0]]
				if isBig && p.protocol != ProtocolTCP && p.protocol != ProtocolUDP {
					return classUnparsed
				}
				return classFragment
			}
		case ipAuth: // RFC 4302, section 2.2
			bytes = 4 * (int(o.read[1]) + 2)
		default:
			bytes = 8 * (int(o.read[1]) + 1)
		}
		next = o.read[0]
		if o = o.after(bytes); o.all < 0 {
			return classUnparsed
		}
	}
	if isExtension(next) {
		return classUnparsed
	}
	p.key.IpProtocol, p.protocol = next, map6[next]
	if isBig && p.protocol != ProtocolTCP && p.protocol != ProtocolUDP {
		return classUnparsed
	}
	return p.transport(o)
}

// isExtension reports whether a header is in IANA's list of IPv6 extension headers and has the
// position of the next header: all headers of the list except ESP and those for experiments.
func isExtension(header uint8) bool {
	switch header {
	case ipHopOptions, ipRouting, ipFragment, ipAuth, ipDestOptions, ipMobility, 139, 140:
		return true
	}
	return false
}

// map4 and map6 are the protocols by number, over IPv4 and IPv6.
var map4 = [256]Protocol{1: ProtocolICMP, 6: ProtocolTCP, 17: ProtocolUDP, 132: ProtocolSCTP}
var map6 = [256]Protocol{58: ProtocolICMP, 6: ProtocolTCP, 17: ProtocolUDP, 132: ProtocolSCTP}

// transport parses the transport header that o begins with. o ends with the payload of the packet.
func (p *parsed) transport(o octets) class {
	switch p.protocol {
	case ProtocolTCP: // RFC 9293
		if !o.has(20) {
			return classUnparsed
		}
		if header := 4 * int(o.read[12]>>4); header < 20 || header > o.all {
			return classUnparsed
		}
	case ProtocolSCTP: // RFC 9260
		if !o.has(12) {
			return classUnparsed
		}
	case ProtocolUDP: // RFC 768
		if !o.has(8) {
			return classUnparsed
		}
	case ProtocolICMP: // RFC 792, RFC 4443
		if !o.has(8) {
			return classUnparsed
		}
		kind := o.read[0]
		isEcho := kind == 0 || kind == 8
		if p.family == FamilyIPv6 {
			isEcho = kind == 128 || kind == 129
		}
		if isEcho {
			p.key.SourcePort = inOrder(o.u16(4))
		}
		p.key.DestinationPort = inOrder(o.u16(0))
		return classFlow
	default:
		return classFlow
	}
	p.key.SourcePort, p.key.DestinationPort = inOrder(o.u16(0)), inOrder(o.u16(2))
	return classFlow
}

// appendWords appends the words of a flow key that the program hashes.
func appendWords(words []uint32, key *programFlowKey) []uint32 {
	words = append(words, uint32(key.DestinationPort)<<16|uint32(key.SourcePort),
		uint32(key.VlanId)<<16|uint32(key.Family)<<8|uint32(key.IpProtocol))
	n := 1
	if Family(key.Family) == FamilyIPv6 {
		n = 4
	}
	for i := range n {
		words = append(words, key.Source[i], key.Destination[i])
	}
	return words
}

// The model has the expected result for each frame of the table.
func TestParserModel(t *testing.T) {
	for _, test := range allFrames() {
		t.Run(test.about, func(t *testing.T) {
			p := parseModel(test.frame, len(test.frame), test.link, 0)
			got := cell{p.family, p.protocol, map[class]Outcome{
				classUnparsed: OutcomeUnparsed, classFragment: OutcomeFragment, classFlow: OutcomeNewFlow,
			}[p.class]}
			if got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
			if test.key == "" {
				return
			}
			if got := describeKey(&p.key); got != test.key {
				t.Errorf("flow: got %s, want %s", got, test.key)
			}
		})
	}
}
