// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leaklab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// capture records the packets of a port at a device, as tcpdump does: with the kernel's time stamps
// of packet sockets. They are in mapped memory, and nothing reads them before the end of a run.
type capture struct {
	fd     int
	port   uint16
	frames []byte
	next   int
}

const (
	captureFrame = 256 // bytes, of which the headers are a part
	captureBlock = 1 << 20
	captureBytes = 4 * mostRequests * captureFrame
)

func newCapture(on netlab.End, port uint16) (_ *capture, err error) {
	c := &capture{port: port, fd: -1}
	device, err := on.Namespace.Link(on.Device)
	if err != nil {
		return nil, err
	}
	const allProtocols = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in network order
	err = on.Namespace.Do(func() (err error) {
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(c.fd)
		}
	}()
	if err := unix.SetsockoptInt(c.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2); err != nil {
		return nil, fmt.Errorf("setting the version of the ring: %w", err)
	}
	request := unix.TpacketReq{
		Block_size: captureBlock, Block_nr: captureBytes / captureBlock, Frame_size: captureFrame, Frame_nr: captureBytes / captureFrame,
	}
	if err := unix.SetsockoptTpacketReq(c.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &request); err != nil {
		return nil, fmt.Errorf("making the ring: %w", err)
	}
	if c.frames, err = unix.Mmap(c.fd, 0, captureBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("mapping the ring: %w", err)
	}
	err = unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: allProtocols, Ifindex: device.Attrs().Index})
	return c, err
}

func (c *capture) close() error {
	return errors.Join(unix.Munmap(c.frames), unix.Close(c.fd))
}

// segment is a packet with data.
type segment struct {
	ns         int64
	isFromHere bool
	client     uint16 // port
}

// take returns the segments with data since the last call, in the order of time.
func (c *capture) take() (segments []segment) {
	for {
		frame := c.frames[c.next*captureFrame:][:captureFrame]
		header := (*unix.Tpacket2Hdr)(unsafe.Pointer(&frame[0]))
		if header.Status&unix.TP_STATUS_USER == 0 {
			break
		}
		if s, hasData := c.segment(header, frame); hasData {
			segments = append(segments, s)
		}
		header.Status = unix.TP_STATUS_KERNEL
		c.next = (c.next + 1) % (captureBytes / captureFrame)
	}
	slices.SortStableFunc(segments, func(a, b segment) int { return int(a.ns - b.ns) })
	return segments
}

// segment parses a frame of Ethernet, IPv4 without options, and TCP.
func (c *capture) segment(header *unix.Tpacket2Hdr, frame []byte) (s segment, hasData bool) {
	packet := frame[header.Mac:][:min(header.Snaplen, captureFrame-uint32(header.Mac))]
	if len(packet) < 54 || binary.BigEndian.Uint16(packet[12:]) != unix.ETH_P_IP || packet[23] != unix.IPPROTO_TCP {
		return s, false
	}
	ip, tcp := packet[14:], packet[34:]
	from, to := binary.BigEndian.Uint16(tcp), binary.BigEndian.Uint16(tcp[2:])
	if from != c.port && to != c.port {
		return s, false
	}
	s = segment{ns: int64(header.Sec)*1e9 + int64(header.Nsec), isFromHere: from == c.port, client: from}
	if s.isFromHere {
		s.client = to
	}
	return s, int(binary.BigEndian.Uint16(ip[2:])) > 20+int(tcp[12]>>4)*4
}

// exchanges returns the times from the last segment of each request of a connection to the first of
// its response.
func exchanges(segments []segment, client uint16) (times []uint64) {
	requestNs := int64(-1)
	for _, s := range segments {
		switch {
		case s.client != client:
		case !s.isFromHere:
			requestNs = s.ns
		case requestNs >= 0:
			times = append(times, uint64(s.ns-requestNs))
			requestNs = -1
		}
	}
	return times
}
