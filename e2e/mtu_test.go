// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"errors"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// The hook stays attached while the state and the MTU of a device change.
func TestStateAndMTUChange(t *testing.T) {
	for _, mode := range []string{"drv", "skb"} {
		t.Run(mode, func(t *testing.T) {
			l := newLab(t)
			e := l.startExporter("--audit.device="+device, "--audit.mode="+mode, "--audit.follow")
			want := 0.0
			for _, mtu := range []int{1500, 9000, 65535, 1500} {
				l.resize(mtu)
				payload := mtu - ipv4Bytes - udpBytes
				before := e.atRest()
				l.sendSized(payload, 10)
				s := e.atRest()
				want += 10
				if got := s.sum("packets_total", "family=ipv4", "protocol=udp"); got != want {
					t.Errorf("MTU %d: %v packets were counted, want %v", mtu, got, want)
				}
				got := s.sum("bytes_total") - before.sum("bytes_total")
				if bytes := float64(10 * (ethernetBytes + mtu)); got != bytes {
					t.Errorf("MTU %d: %v bytes were counted, want %v", mtu, got, bytes)
				}
				if got := s.sum("outcomes_total", "outcome=unparsed"); got != 0 {
					t.Errorf("MTU %d: %v packets were not parsed", mtu, got)
				}
			}
			l.change(device, netlink.LinkSetDown)
			if err := hookIs(device, 1)(e.scrape()); err != nil {
				t.Errorf("while the device is down: %v", err)
			}
			l.resize(1500)
			l.sendSized(100, 10)
			e.expectPackets(device, want+10)
			e.expectStopped()
		})
	}
}

// A device with jumbo frames is attached in native mode.
func TestJumboFrames(t *testing.T) {
	l := newLab(t)
	l.resize(9000)
	e := l.startExporter("--audit.device=" + device)
	if modes := l.attached(); modes[device] != attachedDriver {
		t.Fatalf("attached are %v", modes)
	}
	l.sendSized(8000, 100)
	s := e.atRest()
	if got := s.sum("outcomes_total", "outcome=new_flow") + s.sum("deltas_total"); got != 100 {
		t.Errorf("%v packets were parsed, want 100", got)
	}
	if got, want := s.sum("bytes_total"), float64(100*(ethernetBytes+ipv4Bytes+udpBytes+8000)); got != want {
		t.Errorf("%v bytes were counted, want %v", got, want)
	}
	e.expectStopped()
}

// resize sets the MTU of both ends of the pair, and waits until they are up.
func (l *lab) resize(mtu int) {
	l.t.Helper()
	l.changeBothEnds(func(link netlink.Link) error {
		return errors.Join(netlink.LinkSetMTU(link, mtu), netlink.LinkSetUp(link))
	})
	for _, end := range []netlab.End{l.audited, l.sender} {
		l.poll(func() error {
			link, err := end.Namespace.Link(end.Device)
			if err == nil && link.Attrs().OperState != netlink.OperUp {
				err = fmt.Errorf("%s is %s", end.Device, link.Attrs().OperState)
			}
			return err
		})
	}
}

// sendSized sends packets with a payload of the given size.
func (l *lab) sendSized(payload, packets int) {
	l.t.Helper()
	l.restoreNeighbours()
	f := l.newFlow(l.audited.IPv4.Addr())
	f.payload = payload
	for range packets { // a few large packets fill the buffer of a socket
		l.send(f, 1)
	}
	if f.arrived.Load() == 0 {
		l.t.Errorf("no packet of %d bytes arrived", payload)
	}
}

// restoreNeighbours gives each end the hardware address of the other again. A device forgets it
// when it is set down.
func (l *lab) restoreNeighbours() {
	l.t.Helper()
	ends := []netlab.End{l.audited, l.sender}
	for i, end := range ends {
		peer, err := ends[1-i].Namespace.Link(ends[1-i].Device)
		if err != nil {
			l.t.Fatal(err)
		}
		err = end.Namespace.Do(func() error {
			link, err := netlink.LinkByName(end.Device)
			if err != nil {
				return err
			}
			return netlink.NeighSet(&netlink.Neigh{
				LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
				IP: ends[1-i].IPv4.Addr().AsSlice(), HardwareAddr: peer.Attrs().HardwareAddr,
			})
		})
		if err != nil {
			l.t.Fatal(err)
		}
	}
}
