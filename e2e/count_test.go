// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

const (
	packets = 10_000

	ethernetBytes, ipv4Bytes, ipv6Bytes, udpBytes = 14, 20, 40, 8
)

func TestUDPIsCountedExactly(t *testing.T) {
	for _, test := range []struct {
		family       string
		address      func(*lab) netip.Addr
		headersBytes int
	}{
		{"ipv4", func(l *lab) netip.Addr { return l.audited.IPv4.Addr() }, ethernetBytes + ipv4Bytes + udpBytes},
		{"ipv6", func(l *lab) netip.Addr { return l.audited.IPv6.Addr() }, ethernetBytes + ipv6Bytes + udpBytes},
	} {
		t.Run(test.family, func(t *testing.T) {
			l := newLab(t)
			e := l.startExporter("--audit.device=" + device)
			l.send(l.newFlow(test.address(l)), packets)
			s := e.atRest()
			labels := []string{"device=" + device, "family=" + test.family, "protocol=udp"}
			if got := s.sum("packets_total", labels...); got != packets {
				t.Errorf("%v packets were counted, want %d", got, packets)
			}
			if got, want := s.sum("bytes_total", labels...), float64(packets*(test.headersBytes+payloadBytes)); got != want {
				t.Errorf("%v bytes were counted, want %v", got, want)
			}
			if got := s.sum("packets_total"); got != packets {
				t.Errorf("%v packets of any kind were counted, want %d", got, packets)
			}
			e.expectStopped()
		})
	}
}

// The kernel decides into how many segments it cuts the data of a connection, and when it
// acknowledges them. So the number of frames comes from the driver: veth counts each frame that
// its NAPI poll hands to XDP. In native mode no frames are merged, because the kernel turns off
// segmentation offload at the peer.
func TestTCPIsCountedExactly(t *testing.T) {
	l := newLab(t)
	e := l.startExporter("--audit.device=" + device)
	const segmentBytes = 1448 // in a full frame: 1500 minus 20 of IPv4 and 32 of TCP
	if err := transfer(l, packets*segmentBytes); err != nil {
		t.Fatal(err)
	}
	l.poll(func() error {
		s := e.atRest()
		counted, frames := s.sum("packets_total"), float64(l.pair().frames().received)
		if counted != frames {
			return fmt.Errorf("%v packets were counted, and the driver received %v frames", counted, frames)
		}
		if tcp := s.sum("packets_total", "family=ipv4", "protocol=tcp"); tcp != counted || tcp < packets {
			t.Errorf("%v of %v packets were counted as TCP over IPv4, want all of them, and at least %d", tcp, counted, packets)
		}
		if longest := s.sum("bytes_total", "protocol=tcp") / counted; longest > 1514 {
			t.Errorf("frames of %v bytes on average: they are merged", longest)
		}
		t.Logf("%v frames were received and counted", frames)
		return nil
	})
	e.expectStopped()
}

// transfer sends bytes over a connection, and returns when both ends have closed it.
func transfer(l *lab, size int64) error { return transferTo(l, l.audited.IPv4.Addr(), size) }

// transferTo is transfer to an address of the audited end.
func transferTo(l *lab, to netip.Addr, size int64) error {
	listener, err := l.audited.Namespace.Listen(netip.AddrPortFrom(to, 0).String())
	if err != nil {
		return err
	}
	defer listener.Close()
	received := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			received <- err
			return
		}
		n, err := io.Copy(io.Discard, conn)
		if n != size {
			err = errors.Join(err, fmt.Errorf("%d of %d bytes arrived", n, size))
		}
		received <- errors.Join(err, conn.Close())
	}()
	conn, err := l.sender.Namespace.Dial(l.ctx, "tcp", listener.Addr().String())
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	for left := size; left > 0; {
		// The kernel merges more of a long write than of many short ones.
		n, err := conn.Write(make([]byte, min(left, 1<<20)))
		if err != nil {
			return err
		}
		left -= int64(n)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		err = tcp.CloseWrite()
	}
	return errors.Join(err, <-received, conn.Close())
}

// The sums agree in every scrape while several flows, some of whose packets are flagged, run on
// both CPUs.
func TestSumsAgreeUnderTraffic(t *testing.T) {
	l := newLab(t)
	e := l.startExporter("--audit.device="+device, "--audit.min-samples=10", "--audit.threshold=2")
	const flows, rounds, scrapes = 4, 20, 100
	var running sync.WaitGroup
	errs := make(chan error, flows)
	for range flows {
		f := l.newFlow(l.audited.IPv4.Addr())
		running.Go(func() {
			for range rounds {
				if err := f.send(1000); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	var last float64
	for range scrapes {
		s := e.scrape()
		if err := s.checkIdentities(); err != nil {
			t.Error(err)
		}
		if now := s.sum("packets_total"); now < last {
			t.Errorf("the packets fell from %v to %v", last, now)
		} else {
			last = now
		}
	}
	running.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	s := e.atRest()
	l.pair().expectCounted(s, flows*rounds*1000)
	if s.sum("leak_flags_total") == 0 {
		t.Error("no packet was flagged, although the threshold is low")
	}
	t.Logf("of %v packets %v were flagged, %v of them had an event, %v came too often",
		s.sum("packets_total"), s.sum("leak_flags_total"), s.sum("events_total"), s.sum("event_fates_total", "fate=rate_limit"))
	e.expectStopped()
}

func TestDevicesAreCountedApart(t *testing.T) {
	l := newLab(t)
	second, _ := l.connect("audited1", "sender1", 1)
	e := l.startExporter("--audit.device="+device, "--audit.device="+second.Device)
	l.send(l.newFlow(l.audited.IPv4.Addr()), 300)
	l.send(l.newFlow(second.IPv4.Addr()), 500)
	s := e.atRest()
	for name, want := range map[string]float64{device: 300, second.Device: 500} {
		if got := s.sum("packets_total", "device="+name, "family=ipv4", "protocol=udp"); got != want {
			t.Errorf("%v packets were counted on %s, want %v", got, name, want)
		}
		if s.sum("hook_up", "device="+name) != 1 {
			t.Errorf("the hook of %s is not up", name)
		}
		e.expectLog(fmt.Sprintf("msg=%q", "XDP audit hook attached on "+name+" with mode=drv"))
	}
	if got := s.sum("flow_inserts_total", "device="+device); got < 1 {
		t.Errorf("%v flows on %s, want at least 1", got, device)
	}
	e.expectStopped()
}
