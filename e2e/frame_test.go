// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"encoding/binary"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// generatedFrame is a UDP frame of 60 bytes from port 1000 to port 53.
func generatedFrame() []byte { return makeFrame(unix.IPPROTO_UDP, 53) }

// makeFrame returns a frame of 60 bytes with 26 bytes of UDP, TCP or SCTP from port 1000. No
// device has its hardware address, so the IP layer drops it.
func makeFrame(protocol byte, destinationPort uint16) []byte {
	frame := make([]byte, 60)
	copy(frame, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00})
	ip, transport := frame[14:34], frame[34:]
	copy(ip, []byte{0x45, 0, 0, 46, 0, 0, 0, 0, 64, protocol, 0, 0, 198, 51, 100, 1, 198, 51, 100, 2})
	binary.BigEndian.PutUint16(ip[10:], internetChecksum(ip))
	binary.BigEndian.PutUint16(transport, 1000)
	binary.BigEndian.PutUint16(transport[2:], destinationPort)
	switch protocol {
	case unix.IPPROTO_UDP:
		binary.BigEndian.PutUint16(transport[4:], uint16(len(transport)))
	case unix.IPPROTO_TCP:
		transport[12] = 5 << 4 // header length in words
	}
	return frame
}

// internetChecksum is the checksum of RFC 1071.
func internetChecksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 0; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	return ^uint16(sum)
}

// The frames that the generator derives are as valid as the frame that it was given.
func TestGeneratedFramesAreValid(t *testing.T) {
	for description, options := range map[string]generatorOptions{
		"the same again": {}, "flows that take turns": {flows: 8}, "random flows": {random: true},
	} {
		t.Run(description, func(t *testing.T) {
			l := newLab(t)
			g := newGenerator(t, l.sender, options)
			flows := map[string]bool{}
			frame := append(make([]byte, metadataBytes), generatedFrame()...)
			for range 64 {
				in := xdpContext{Data: metadataBytes, DataEnd: uint32(len(frame))}
				out := make([]byte, len(frame))
				verdict, err := g.objects.Generate.Run(&ebpf.RunOptions{Data: frame, DataOut: out, Context: in})
				if err != nil {
					t.Fatal(err)
				}
				ip, udp := out[metadataBytes+14:][:20], out[metadataBytes+34:]
				if verdict != xdpRedirect || internetChecksum(ip) != 0 || ip[9] != unix.IPPROTO_UDP || udp[5] != 26 {
					t.Fatalf("verdict %d on % x", verdict, out)
				}
				flows[string(ip[12:])+string(udp[:4])] = true
				copy(frame, out) // as the kernel does: each frame is derived from the last
			}
			want := map[bool]int{true: 64, false: int(max(options.flows, 1))}[options.random]
			if len(flows) != want {
				t.Errorf("%d flows, want %d", len(flows), want)
			}
		})
	}
}
