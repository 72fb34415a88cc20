// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/exchange"
	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// Both programs handle the same connections on several CPUs at once, and a full set evicts some.
// Each request still ends once.
func TestExchangesOnSeveralCPUs(t *testing.T) {
	const packets, workers, connections = 30_000, 4, 20
	for _, protocol := range []Protocol{ProtocolTCP, ProtocolUDP} {
		t.Run(protocol.String(), func(t *testing.T) {
			audit := loadExchanges(t, func(c *Config) { c.Clock, c.ExchangeConnections = ClockKtime, 16 }, service("login", protocol, servicePort))
			program := audit.devices.listed[0].program
			ctx, stop := context.WithCancel(t.Context())
			read, isOrdered, lastNs := uint64(0), true, uint64(0)
			var reader, senders sync.WaitGroup
			reader.Go(func() {
				_ = audit.ReadExchanges(ctx, func(batch []Exchange) {
					read += uint64(len(batch))
					for _, x := range batch {
						isOrdered = isOrdered && x.TimeNs >= lastNs
						lastNs = x.TimeNs
					}
				})
			})
			for worker := range workers {
				senders.Go(func() {
					r := rand.New(rand.NewPCG(uint64(worker), 5))
					actors := make([]actor, connections)
					for i := range actors {
						actors[i].peer = peerOf(i)
						actors[i].isUDP = protocol == ProtocolUDP
					}
					for range packets {
						a := &actors[r.IntN(connections)]
						s := a.next(r)
						if frame := a.frame(s, []uint8{0, dscpX, dscpY}[s.Class+1]); s.FromServer {
							runSent(t, program.egress, frame, 0)
						} else {
							runRaw(t, program.Program, frame, 0, 1)
						}
					}
				})
			}
			senders.Wait()
			stop() // one more read follows
			reader.Wait()
			counts, lost := audit.ExchangeCounts()
			c := counts[0]
			t.Logf("%+v, %d lost", c, lost)
			if err := checkIdentity(c); err != nil {
				t.Error(err)
			}
			if want := c.Requests - c.Outstanding - lost - c.Excluded[ExclusionRingFull]; read != want || !isOrdered {
				t.Errorf("%d records were read, want %d; in the order of time: %v", read, want, isOrdered)
			}
			if c.Requests < packets/2 || c.Responses[0] == 0 || c.Responses[1] == 0 || c.Excluded[ExclusionEvicted] == 0 {
				t.Error("too little to tell anything")
			}
		})
	}
}

// sendFrame sends a frame on a device with a packet socket, whose buffers have only the header of
// Ethernet in their linear part.
func sendFrame(t *testing.T, on netlab.End, frame []byte) {
	t.Helper()
	device, err := on.Namespace.Link(on.Device)
	if err != nil {
		t.Fatal(err)
	}
	err = on.Namespace.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: device.Attrs().Index})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestExchangesOfPacketSockets(t *testing.T) {
	l := newServiceLab(t, false, false, nil)
	if err := l.audit.SetAssessments([]Assessment{service("names", ProtocolUDP, servicePort)}); err != nil {
		t.Fatal(err)
	}
	want := uint64(0)
	for _, vlan := range []uint16{0, 5} {
		for i, addresses := range [][2]string{{"192.0.2.2", "192.0.2.1"}, {"2001:db8::2", "2001:db8::1"}} {
			client, server := netip.MustParseAddr(addresses[0]), netip.MustParseAddr(addresses[1])
			p := peer{netip.AddrPortFrom(client, uint16(2000+i)+vlan), netip.AddrPortFrom(server, servicePort), true, vlan}
			for class, dscp := range []uint8{dscpX, dscpY} {
				sendFrame(t, l.client, p.frame(exchange.Segment{Len: 100}, dscp))
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if err := netlab.Poll(ctx, func() error {
					if counts, _ := l.audit.ExchangeCounts(); counts[0].Outstanding != 1 {
						return fmt.Errorf("VLAN %d, %s, class %d: %+v", vlan, client, class, counts[0])
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				sendFrame(t, l.server, p.frame(exchange.Segment{FromServer: true, Len: 2000 - 600*uint32(class) - 600}, 0))
				if want++; l.ended(t, 0).Responses[class] != (want+1-uint64(class))/2 {
					t.Errorf("VLAN %d, %s: %d exchanges, and counted %+v", vlan, client, want, l.ended(t, 0))
				}
			}
		}
	}
}
