// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
)

// growSegments lets both ends of the pair exchange frames of more than 64 KiB, as BIG TCP does.
func (l *lab) growSegments(bytes int) {
	l.t.Helper()
	l.changeBothEnds(func(link netlink.Link) error {
		return errors.Join(
			netlink.LinkSetGSOMaxSize(link, bytes), netlink.LinkSetGSOIPv4MaxSize(link, bytes),
			netlink.LinkSetGROMaxSize(link, bytes), netlink.LinkSetGROIPv4MaxSize(link, bytes))
	})
}

// Frames of more than 64 KiB have a length of 0 in the header of IP, and are parsed. The kernel
// decides how many segments a frame has: on average they have to be that long, or the test shows
// nothing.
func TestBigTCP(t *testing.T) {
	const transferred = 200e6
	l := newLab(t)
	l.growSegments(150_000)
	e := l.startExporter("--audit.device="+device, "--audit.mode=skb")
	for family, to := range map[string]netip.Addr{"ipv4": l.audited.IPv4.Addr(), "ipv6": l.audited.IPv6.Addr()} {
		if err := transferTo(l, to, transferred); err != nil {
			t.Fatal(err)
		}
		s := e.atRest()
		packets, bytes := s.sum("packets_total", "family="+family, "protocol=tcp"), s.sum("bytes_total", "family="+family, "protocol=tcp")
		if bytes < transferred || bytes/packets < 1<<16 {
			t.Errorf("%s: %v bytes were counted in %v packets, want at least %v in frames above 64 KiB", family, bytes, packets, transferred)
		}
		if got := s.sum("outcomes_total", "outcome=unparsed"); got != 0 {
			t.Errorf("%s: %v packets were unparsed", family, got)
		}
	}
	e.expectStopped()
}
