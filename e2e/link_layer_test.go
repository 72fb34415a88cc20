// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	linkTypeCAN = 280 // ARPHRD_CAN of linux/if_arp.h

	ethernetHeader = "0200000000010200000000020800"
	udpHeader      = "9c4014e900080000"
	udpPacket      = "4500001c0000000040110000c0000209c0000208" + udpHeader
)

// tunDevice is a tun device of the audited namespace and its user space end.
type tunDevice struct {
	*os.File
	name string
}

// newTun makes a tun device that is up, with a link type of linux/if_arp.h; 0 for its usual one.
func (l *lab) newTun(name string, flags uint16, linkType int) *tunDevice {
	l.t.Helper()
	tun := &tunDevice{name: name}
	err := l.audited.Namespace.Do(func() (err error) {
		if tun.File, err = os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
			return err
		}
		request, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		request.SetUint16(flags | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(int(tun.Fd()), unix.TUNSETIFF, request); err != nil {
			return err
		}
		if linkType != 0 {
			return unix.IoctlSetInt(int(tun.Fd()), unix.TUNSETLINK, linkType)
		}
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = tun.Close() })
	l.change(name, netlink.LinkSetUp)
	return tun
}

// receive lets the device receive a packet several times.
func (tun *tunDevice) receive(t *testing.T, packets int, digits string) {
	t.Helper()
	packet, err := hex.DecodeString(digits)
	if err != nil {
		t.Fatal(err)
	}
	for range packets {
		if _, err := tun.Write(packet); err != nil {
			t.Fatal(err)
		}
	}
}

// Packets of a device without an Ethernet header are parsed from the header of IP on, in generic
// mode, without a warning.
func TestADeviceWithoutEthernetIsAudited(t *testing.T) {
	const (
		fromEight = "4500002c000000004011000008004500c0000208" + udpHeader + "00000000000000000000000000000000"
		overIPv6  = "600000000008114020010db800000000000000000000000120010db8000000000000000000000002" + udpHeader
	)
	for _, mode := range []string{"auto", "skb"} {
		t.Run(mode, func(t *testing.T) {
			l := newLab(t)
			tun, tap := l.newTun("tun-a", unix.IFF_TUN, 0), l.newTun("tap-a", unix.IFF_TAP, 0)
			e := l.startExporter("--audit.device="+tun.name, "--audit.device="+tap.name, "--audit.mode="+mode)
			if got := l.attached()[tun.name]; got != attachedGeneric {
				t.Errorf("%s is attached in mode %d, want generic", tun.name, got)
			}
			if warnings := e.logged("level=WARN", tun.name); warnings > 0 {
				t.Errorf("%d warnings:\n%s", warnings, &e.stderr)
			}
			tun.receive(t, 100, udpPacket)
			tun.receive(t, 10, fromEight)
			tun.receive(t, 1, overIPv6)
			tap.receive(t, 7, ethernetHeader+udpPacket)
			s := e.atRest()
			for series, want := range map[string]float64{
				"packets_total device=tun-a family=ipv4 protocol=udp": 110,
				"packets_total device=tun-a family=ipv6 protocol=udp": 1,
				"packets_total device=tap-a family=ipv4 protocol=udp": 7,
				"outcomes_total device=tun-a outcome=new_flow":        3,
				"outcomes_total device=tun-a outcome=unparsed":        0,
			} {
				name, labels, _ := strings.Cut(series, " ")
				if got := s.sum(name, strings.Fields(labels)...); got != want {
					t.Errorf("%s is %v, want %v", series, got, want)
				}
			}
			e.expectStopped()
		})
	}
}

// IP is found in sessions of PPPoE and below labels of MPLS, in both modes.
func TestEncapsulatedIPIsAudited(t *testing.T) {
	const (
		addresses = "020000000001020000000002"
		pppoe     = "8864" + "11001234001e0021"
		mpls      = "8847" + "0001004000011140"
	)
	for _, mode := range []string{"drv", "skb"} {
		t.Run(mode, func(t *testing.T) {
			l := newLab(t)
			tap := l.newTun("tap-a", unix.IFF_TAP, 0)
			e := l.startExporter("--audit.device="+tap.name, "--audit.mode="+mode)
			tap.receive(t, 100, addresses+pppoe+udpPacket)
			tap.receive(t, 100, addresses+mpls+udpPacket)
			s := e.atRest()
			for series, want := range map[string]float64{
				"packets_total family=ipv4 protocol=udp": 200,
				"outcomes_total outcome=new_flow":        1, // a flow is that of its packets of IP
				"outcomes_total outcome=unparsed":        0,
			} {
				name, labels, _ := strings.Cut(series, " ")
				if got := s.sum(name, strings.Fields(labels)...); got != want {
					t.Errorf("%s is %v, want %v", series, got, want)
				}
			}
			e.expectStopped()
		})
	}
}

// A device whose frames cannot be parsed in the mode that is asked for is refused with its link
// type and the remedy, and nothing is attached.
func TestRefusedLinkTypes(t *testing.T) {
	for _, test := range []struct {
		mode     string
		linkType int
		want     []string
	}{
		{"drv", 0, []string{"tun-a", "link type none", "--audit.mode=skb"}},
		{"hw", 0, []string{"tun-a", "link type none", "--audit.mode=skb"}},
		{"auto", linkTypeCAN, []string{"tun-a", "link type can", "--audit.device"}},
		{"skb", linkTypeCAN, []string{"tun-a", "link type can", "--audit.device"}},
		{"skb", 999, []string{"tun-a", "link type unknown999", "--audit.device"}},
	} {
		t.Run(fmt.Sprint(test.mode, " ", test.linkType), func(t *testing.T) {
			l := newLab(t)
			l.newTun("tun-a", unix.IFF_TUN, test.linkType)
			l.start(binaries.exporter, serving([]string{"--audit.device=tun-a", "--audit.mode=" + test.mode})).expectRefusal(test.want...)
		})
	}
}

// A device that is followed is attached again when its link type changes, with a program for the
// new one.
func TestALinkTypeChanges(t *testing.T) {
	l := newLab(t)
	tap := l.newTun("tun-a", unix.IFF_TAP, 0)
	isCounted := func(want float64) func(scrape) error {
		return func(s scrape) error {
			if got := s.sum("packets_total", "device=tun-a", "protocol=udp"); got != want {
				return fmt.Errorf("%v packets of UDP were counted, want %v", got, want)
			}
			return nil
		}
	}
	e := l.startExporter("--audit.device=tun-a", "--audit.mode=auto", "--audit.follow")
	tap.receive(t, 5, ethernetHeader+udpPacket)
	e.await(isCounted(5))
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
	e.await(hookIs("tun-a", 0))
	tun := l.newTun("tun-a", unix.IFF_TUN, 0)
	e.await(hookIs("tun-a", 1))
	tun.receive(t, 5, udpPacket)
	e.await(isCounted(10))
	l.change(tun.name, netlink.LinkSetDown)
	if err := unix.IoctlSetInt(int(tun.Fd()), unix.TUNSETLINK, linkTypeCAN); err != nil {
		t.Fatal(err)
	}
	l.change(tun.name, netlink.LinkSetUp)
	e.await(hookIs("tun-a", 0))
	e.expectStopped()
}
