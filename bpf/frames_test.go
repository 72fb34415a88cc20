// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"encoding/binary"
	"encoding/hex"
)

// Frames are built from the inside out: ethernet(0x0800, ipv4(17, udp(1000, 53, payload))).

const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherARP  = 0x0806
	tagVLAN   = 0x8100
	tagQinQ   = 0x88a8

	etherPPPoE, etherMPLS, etherMPLSMulticast = 0x8864, 0x8847, 0x8848

	pppIPv4, pppIPv6, pppLCP = 0x0021, 0x0057, 0xc021

	ipICMP, ipTCP, ipUDP, ipGRE, ipESP, ipICMPv6, ipSCTP = 1, 6, 17, 47, 50, 58, 132

	ipHopOptions, ipRouting, ipFragment, ipAuth, ipNoNext, ipDestOptions, ipMobility = 0, 43, 44, 51, 59, 60, 135
)

func be16(v int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(v)) }

func concat(parts ...[]byte) []byte {
	var all []byte
	for _, part := range parts {
		all = append(all, part...)
	}
	return all
}

func ethernet(ethertype int, payload []byte) []byte {
	return concat([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}, be16(ethertype), payload)
}

// tagged puts a VLAN tag in front of a payload. The type of the tag goes into the header before it.
func tagged(id, ethertype int, payload []byte) []byte {
	return concat(be16(id), be16(ethertype), payload)
}

// pppoe puts the headers of a PPPoE session and of PPP in front of a payload.
func pppoe(protocol int, payload []byte) []byte {
	return pppoeWith(0x1100, 2+len(payload), protocol, payload)
}

// pppoeWith is pppoe with its version, type and code, and with its length.
func pppoeWith(begin, length, protocol int, payload []byte) []byte {
	return concat(be16(begin), be16(0x1234), be16(length), be16(protocol), payload)
}

// mpls puts a stack of labels in front of a payload.
func mpls(labels []int, payload []byte) []byte {
	var stack []byte
	for i, label := range labels {
		entry := uint32(label)<<12 | 64
		if i == len(labels)-1 {
			entry |= 1 << 8
		}
		stack = binary.BigEndian.AppendUint32(stack, entry)
	}
	return append(stack, payload...)
}

// withoutLength sets the length in the header of IP to 0.
func withoutLength(packet []byte) []byte {
	at := 2
	if packet[0]>>4 == 6 {
		at = 4
	}
	packet[at], packet[at+1] = 0, 0
	return packet
}

// bigTCP is TCP with more data than the header of IP can say.
func bigTCP() []byte { return append(tcp(40000, 7777, 5), make([]byte, 66_000)...) }

func ipv4(protocol int, payload []byte) []byte {
	return ipv4With(ipv4Header{protocol: protocol, ihl: 5, destination: [4]byte{10, 0, 0, 2}}, payload)
}

// ipv4From returns a packet from another source.
func ipv4From(source [4]byte, protocol int, payload []byte) []byte {
	packet := ipv4(protocol, payload)
	copy(packet[12:], source[:])
	return packet
}

// headers returns the beginning of a frame, which is long enough for a message.
func headers(frame []byte) []byte { return frame[:min(len(frame), 400)] }

// fromHex returns the bytes of a frame as tcpdump -xx prints them.
func fromHex(digits string) []byte {
	frame, err := hex.DecodeString(digits)
	if err != nil {
		panic(err)
	}
	return frame
}

type ipv4Header struct {
	protocol, ihl, fragment int
	destination             [4]byte
	length                  int // 0: computed from the payload
}

func ipv4With(h ipv4Header, payload []byte) []byte {
	if h.length == 0 {
		h.length = 4*h.ihl + len(payload)
	}
	options := make([]byte, max(0, 4*h.ihl-20))
	for i := range options {
		options[i] = 1 // no operation
	}
	return concat([]byte{byte(4<<4 | h.ihl), 0}, be16(h.length), be16(7), be16(h.fragment),
		[]byte{64, byte(h.protocol), 0, 0, 10, 0, 0, 1}, h.destination[:], options, payload)
}

func ipv6(next int, payload []byte) []byte {
	source := [16]byte{0: 0xfd, 15: 1}
	destination := [16]byte{0: 0xfd, 15: 2}
	return concat([]byte{6 << 4, 0, 0, 0}, be16(len(payload)), []byte{byte(next), 64}, source[:], destination[:], payload)
}

// extension puts an IPv6 extension header of 8·(1+units) bytes in front of a payload.
func extension(next, units int, payload []byte) []byte {
	return concat([]byte{byte(next), byte(units)}, make([]byte, 6+8*units), payload)
}

// authentication puts an IPv6 authentication header of 4·(units+2) bytes in front of a payload.
func authentication(next, units int, payload []byte) []byte {
	return concat([]byte{byte(next), byte(units)}, make([]byte, 4*(units+2)-2), payload)
}

// fragment6 puts an IPv6 fragment header in front of a payload. The offset is in units of 8 bytes.
func fragment6(next, offset int, payload []byte) []byte {
	return concat([]byte{byte(next), 0}, be16(offset<<3|1), make([]byte, 4), payload)
}

func udp(source, destination int, payload []byte) []byte {
	return concat(be16(source), be16(destination), be16(8+len(payload)), be16(0), payload)
}

// tcp returns a TCP header of doff words.
func tcp(source, destination, doff int) []byte {
	rest := make([]byte, max(20, 4*doff)-4)
	rest[8] = byte(doff << 4)
	return concat(be16(source), be16(destination), rest)
}

func sctp(source, destination int) []byte {
	return concat(be16(source), be16(destination), make([]byte, 8))
}

func icmp(kind, code, id int) []byte {
	return concat([]byte{byte(kind), byte(code), 0, 0}, be16(id), be16(1))
}

// udpFrame returns a UDP frame of 60 bytes.
func udpFrame() []byte { return ethernet(etherIPv4, ipv4(ipUDP, udp(1000, 53, make([]byte, 18)))) }
