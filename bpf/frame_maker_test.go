// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"encoding/binary"
	"math/rand/v2"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

const (
	shortestFrame = 14 // the minimum of BPF_PROG_TEST_RUN
	longFrame     = 9000
	longestFrame  = 68_000 // a little less than the kernel takes
	bigFrames     = 2000   // one frame in this many has more than the header of IP can say
)

// frameMaker makes random frames. Most of them start as a valid frame of one of several hundred
// flows. Half of the frames are then damaged, mostly in fields that the parser reads.
type frameMaker struct {
	r     *rand.Rand
	on    netdev.LinkLayer // of the device
	frame []byte
	looks []look
}

// look is a field of the frame that determines how the rest is parsed.
type look struct{ at, bytes int }

func newFrameMaker(r *rand.Rand, on netdev.LinkLayer) *frameMaker {
	return &frameMaker{r: r, on: on, frame: make([]byte, 0, longestFrame)}
}

// next returns a frame, which is valid until the next call.
func (m *frameMaker) next() []byte {
	m.frame, m.looks = m.frame[:0], m.looks[:0]
	switch m.r.IntN(20) {
	case 0:
		m.noise(shortestFrame + m.r.IntN(200))
	case 1: // noise after a valid ethertype
		m.noise(12)
		m.number(m.oneOf(etherIPv4, etherIPv6, tagVLAN, tagQinQ), 2)
		m.frame = append(m.frame, byte(m.oneOf(0x45, 0x60, 0x4f, 0x46, 0)))
		m.noise(m.r.IntN(200))
	default:
		if m.on == netdev.LinkEthernet {
			m.link()
		} else {
			m.ip()
		}
	}
	if m.r.IntN(2) == 0 {
		for range 1 + m.r.IntN(3) {
			m.damage()
		}
	}
	if short := shortestFrame - len(m.frame); short > 0 {
		m.noise(short)
	}
	m.frame = m.frame[:min(len(m.frame), longestFrame)]
	return m.frame
}

func (m *frameMaker) oneOf(values ...int) int { return values[m.r.IntN(len(values))] }

func (m *frameMaker) noise(n int) {
	for ; n >= 8; n -= 8 {
		m.frame = binary.NativeEndian.AppendUint64(m.frame, m.r.Uint64())
	}
	for range n {
		m.frame = append(m.frame, byte(m.r.Uint32()))
	}
}

func (m *frameMaker) zeros(n int) {
	for range n {
		m.frame = append(m.frame, 0)
	}
}

// number appends a field of one or two bytes that the parser reads.
func (m *frameMaker) number(value, bytes int) {
	m.looks = append(m.looks, look{len(m.frame), bytes})
	if bytes == 2 {
		m.frame = append(m.frame, byte(value>>8))
	}
	m.frame = append(m.frame, byte(value))
}

// link makes a frame with up to three VLAN tags, one more than the parser accepts.
func (m *frameMaker) link() {
	m.zeros(12)
	if m.r.IntN(3) == 0 {
		for range 1 + m.r.IntN(3) {
			m.number(m.oneOf(tagVLAN, tagQinQ), 2)
			m.number(m.r.IntN(4)<<12|m.oneOf(0, 1, 100, 4095), 2)
		}
	}
	switch m.r.IntN(20) {
	case 0:
		m.number(m.oneOf(etherARP, 0, 1500, 0x88cc, etherMPLS, etherPPPoE, 0xffff), 2)
		m.noise(m.r.IntN(100))
	case 16, 17:
		m.number(etherPPPoE, 2)
		m.pppoe()
	case 18, 19:
		m.number(m.oneOf(etherMPLS, etherMPLS, etherMPLSMulticast), 2)
		m.mpls()
	case 1, 2, 3, 4, 5, 6, 7:
		m.number(etherIPv6, 2)
		m.ipv6()
	default:
		m.number(etherIPv4, 2)
		m.ipv4()
	}
	if m.r.IntN(4) == 0 {
		m.zeros(m.r.IntN(32)) // padding
	}
}

func (m *frameMaker) pppoe() {
	m.number(0x11, 1)
	m.number(0, 1)
	m.noise(2)
	begin := len(m.frame)
	m.number(0, 2) // the length, which is set below
	if m.r.IntN(2) == 0 {
		m.number(pppIPv4, 2)
		m.ipv4()
	} else {
		m.number(pppIPv6, 2)
		m.ipv6()
	}
	binary.BigEndian.PutUint16(m.frame[begin:], uint16(len(m.frame)-begin-2))
}

// mpls makes a stack of up to nine labels, one more than the parser accepts.
func (m *frameMaker) mpls() {
	labels := m.oneOf(1, 1, 2, 2, 3, 8, 9)
	for i := range labels {
		m.number(m.oneOf(0, 1, m.r.IntN(1<<16)), 2)
		bottom := m.r.IntN(8) << 1
		if i == labels-1 {
			bottom |= 1
		}
		m.number(bottom, 1)
		m.zeros(1)
	}
	if m.r.IntN(8) == 0 {
		m.number(m.oneOf(0, 1<<4, 0x45, 6<<4), 1)
		m.noise(m.r.IntN(100))
		return
	}
	m.ip()
}

// ip makes a packet of either version.
func (m *frameMaker) ip() {
	if m.r.IntN(2) == 0 {
		m.ipv6()
	} else {
		m.ipv4()
	}
	if m.r.IntN(4) == 0 {
		m.zeros(m.r.IntN(32)) // what follows a packet that is shorter than its frame
	}
}

func (m *frameMaker) ipv4() {
	begin := len(m.frame)
	words := 5
	if m.r.IntN(4) == 0 {
		words += m.r.IntN(11)
	}
	m.number(4<<4|words, 1)
	m.zeros(1)
	m.number(0, 2) // the length, which is set below
	m.zeros(2)
	fragment := 0
	if m.r.IntN(8) == 0 {
		fragment = m.oneOf(0x2000, 0x4000, 0x2001, 1, 0x1fff, 0x8000, 0x3000)
	}
	m.number(fragment, 2)
	m.zeros(1)
	protocol := m.oneOf(ipTCP, ipUDP, ipSCTP, ipICMP, ipTCP, ipUDP, ipGRE, ipESP, ipICMPv6, m.r.IntN(256))
	m.number(protocol, 1)
	m.zeros(2)
	m.address(4)
	m.address(4)
	m.noise(4 * (words - 5))
	m.transport(protocol)
	length := len(m.frame) - begin
	if m.isWithoutLength(length) {
		length = 0
	}
	binary.BigEndian.PutUint16(m.frame[begin+2:], uint16(length))
}

func (m *frameMaker) ipv6() {
	begin := len(m.frame)
	m.number(6<<4, 1)
	m.zeros(3)
	m.number(0, 2) // the length, which is set below
	headers := 0
	if m.r.IntN(2) == 0 {
		headers = m.r.IntN(11)
	}
	protocol := m.oneOf(ipTCP, ipUDP, ipSCTP, ipICMPv6, ipTCP, ipUDP, ipNoNext, ipESP, ipICMP, m.r.IntN(256))
	next := protocol
	kinds := [10]int{}
	for i := range headers {
		kinds[i] = m.oneOf(ipHopOptions, ipRouting, ipDestOptions, ipDestOptions, ipAuth, ipMobility, 139, 140, ipFragment)
	}
	if headers > 0 {
		next = kinds[0]
	}
	m.number(next, 1)
	m.zeros(1)
	m.address(16)
	m.address(16)
	for i := range headers {
		next := protocol
		if i+1 < headers {
			next = kinds[i+1]
		}
		m.number(next, 1)
		m.extension(kinds[i])
	}
	m.transport(protocol)
	length := len(m.frame) - begin - 40
	if headers > 0 && kinds[0] == ipHopOptions && m.r.IntN(4) == 0 {
		length = 0 // a jumbogram
	}
	if m.isWithoutLength(length) {
		length = 0
	}
	binary.BigEndian.PutUint16(m.frame[begin+4:], uint16(length))
}

// isWithoutLength reports whether a packet gets a length of 0: most of those that are longer than
// their header can say, and a few others.
func (m *frameMaker) isWithoutLength(length int) bool {
	return length > biggestIP && m.r.IntN(8) > 0 || m.r.IntN(500) == 0
}

// extension makes an extension header without its first byte.
func (m *frameMaker) extension(kind int) {
	units := m.oneOf(0, 0, 0, 1, 2, m.r.IntN(8))
	if m.r.IntN(100) == 0 {
		units = m.r.IntN(256)
	}
	switch kind {
	case ipFragment:
		m.zeros(1)
		m.number(m.oneOf(0, 0, 0, 1, 6, 8, m.r.IntN(1<<16)), 2)
		m.noise(4)
	case ipAuth:
		m.number(units, 1)
		m.noise(4*(units+2) - 2)
	default:
		m.number(units, 1)
		m.noise(8*(units+1) - 2)
	}
}

// address makes one of two addresses, and rarely a random one.
func (m *frameMaker) address(bytes int) {
	if m.r.IntN(100) == 0 {
		m.noise(bytes)
		return
	}
	m.zeros(bytes - 1)
	m.frame = append(m.frame, byte(m.r.IntN(2)))
}

// transport makes a transport header and a payload.
func (m *frameMaker) transport(protocol int) {
	port := func() {
		m.frame = append(m.frame, byte(m.oneOf(0, 0, 0, 0, 0, 0, 0, m.r.IntN(256))), byte(m.r.IntN(4)))
	}
	switch protocol {
	case ipICMP, ipICMPv6:
		m.number(m.oneOf(0, 8, 128, 129, 3, m.r.IntN(256)), 1)
		m.frame = append(m.frame, byte(m.r.IntN(2)))
		m.zeros(2)
		port()
		m.noise(2)
	case ipTCP:
		port()
		port()
		m.noise(8)
		words := m.oneOf(5, 5, 5, 8, 15)
		m.number(words<<4, 1)
		m.noise(4*words - 13)
	case ipSCTP:
		port()
		port()
		m.noise(8)
	default:
		port()
		port()
		m.noise(4)
	}
	if m.r.IntN(bigFrames) == 0 {
		m.zeros(biggestIP - 100 + m.r.IntN(longestFrame-biggestIP))
	}
	switch m.r.IntN(200) {
	case 0:
		m.zeros(m.r.IntN(longFrame))
	case 1, 2, 3, 4:
		m.zeros(m.r.IntN(1500))
	default:
		m.noise(m.r.IntN(32))
	}
}

// damage changes the frame in one place.
func (m *frameMaker) damage() {
	if len(m.frame) < shortestFrame {
		return
	}
	switch m.r.IntN(8) {
	case 0: // cut off
		m.frame = m.frame[:shortestFrame+m.r.IntN(len(m.frame)-shortestFrame+1)]
	case 1: // extend
		m.noise(m.r.IntN(64))
	case 2: // change any byte
		m.frame[m.r.IntN(len(m.frame))] = byte(m.r.Uint32())
	case 3: // flip any bit
		m.frame[m.r.IntN(len(m.frame))] ^= 1 << m.r.IntN(8)
	case 4: // remove bytes
		at := m.r.IntN(len(m.frame))
		n := min(1+m.r.IntN(16), len(m.frame)-at)
		m.frame = append(m.frame[:at], m.frame[at+n:]...)
	default:
		m.damageNumber()
	}
}

// damageNumber changes a field that the parser reads: by a small amount, to an extreme, or to a
// random value.
func (m *frameMaker) damageNumber() {
	if len(m.looks) == 0 {
		return
	}
	l := m.looks[m.r.IntN(len(m.looks))]
	if l.at+l.bytes > len(m.frame) {
		return
	}
	field := m.frame[l.at : l.at+l.bytes]
	value := 0
	for _, b := range field {
		value = value<<8 | int(b)
	}
	switch m.r.IntN(4) {
	case 0:
		value += m.oneOf(-8, -4, -1, 1, 4, 8)
	case 1:
		value = m.oneOf(0, 1, 1<<(8*l.bytes-1), 1<<(8*l.bytes)-1)
	case 2:
		value ^= 1 << m.r.IntN(8*l.bytes)
	default:
		value = m.r.IntN(1 << (8 * l.bytes))
	}
	for i := range field {
		field[i] = byte(value >> (8 * (l.bytes - 1 - i)))
	}
}
