// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"context"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// learn sends as many samples as a baseline needs, alternately 0.99 ms and 1.01 ms, and returns
// the time of the last.
func (p *probe) learn(t *testing.T, frame []byte) uint64 {
	t.Helper()
	now := uint64(1e12)
	run(t, p.program(0), frame, now, 1)
	for i := range p.config.MinSamples {
		now += 990_000 + 20_000*uint64(i%2)
		run(t, p.program(0), frame, now, 1)
	}
	return now
}

// readAll reads all events in the rings.
func (p *probe) readAll(t *testing.T) []Event {
	t.Helper()
	events, err := p.drain()
	if err != nil {
		t.Fatal(err)
	}
	return events
}

func (p *probe) drain() (events []Event, err error) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	err = p.ReadEvents(ended, func(e *Event) { events = append(events, *e) })
	return events, err
}

func TestFlaggedPacketArrivesAsEvent(t *testing.T) {
	for _, test := range []struct {
		name                string
		frame               []byte
		source, destination string
		protocol            Protocol
		number              uint8
		vlan                uint16
	}{
		{"UDP over IPv4", udpFrame(), "10.0.0.1:1000", "10.0.0.2:53", ProtocolUDP, 17, 0},
		{"TCP over IPv6 in a VLAN", ethernet(tagVLAN, tagged(7, etherIPv6, ipv6(ipTCP, tcp(1, 65535, 5)))),
			"[fd00::1]:1", "[fd00::2]:65535", ProtocolTCP, 6, 7},
		{"GRE", ethernet(etherIPv4, ipv4(ipGRE, make([]byte, 8))), "10.0.0.1:0", "10.0.0.2:0", ProtocolOther, 47, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newProbe(t, testConfig())
			now := p.learn(t, test.frame)
			before := p.onlySlot(t).Baseline.state()
			start := time.Now()
			const late = 1_500_000
			run(t, p.program(0), test.frame, now+late, 1)
			events := p.readAll(t)
			if len(events) != 1 {
				t.Fatalf("got %d events, want 1", len(events))
			}
			e := events[0]
			if off := e.Time.Sub(start); off < -time.Second || off > 10*time.Second {
				t.Errorf("time: got %v, want about %v", e.Time, start)
			}
			want := Event{
				Flag: Flag{
					AuditNs: now + late, KtimeNs: e.KtimeNs, DeltaNs: late, Domain: DomainLinear, Samples: before.N, MeanQ16: before.MeanQ16,
					M2: before.M2, Clip: p.config.Clip, LenBytes: uint32(len(test.frame)), Late: true,
				},
				Device: "test0", Time: e.Time,
				Source: netip.MustParseAddrPort(test.source), Destination: netip.MustParseAddrPort(test.destination),
				Protocol: test.protocol, ProtocolNumber: test.number, VLAN: test.vlan,
			}
			if e != want {
				t.Errorf("got  %+v\nwant %+v", e, want)
			}
			// 500 µs late against a standard deviation of 10 µs.
			if score := e.Score(); score < 45 || score > 55 {
				t.Errorf("score: got %v, want about 49.5", score)
			}
			if last := p.Counters()[0].LastFlag; last == nil || *last != want.Flag {
				t.Errorf("last flag: got %+v, want %+v", last, want.Flag)
			}
			if got := p.EventCounts(); got.Received["test0"] != 1 || got.Lost != 0 || got.Malformed != 0 {
				t.Errorf("counts: got %+v", got)
			}
		})
	}
}

// Each flag has exactly one fate, whether its event is sent or not.
func TestEveryFlagHasAFate(t *testing.T) {
	const flags = 5000
	for _, test := range []struct {
		name   string
		rate   uint32
		closed bool
		want   func(fates [NumFates]uint64, elapsed time.Duration) bool
	}{
		{"no event is allowed", 0, false, func(f [NumFates]uint64, _ time.Duration) bool {
			return f[FateRateLimit] == flags
		}},
		// A slow machine sends more, so the bound is that of the time the flags took.
		{"a burst of one second's allowance is sent, then the rate limits", 100, false,
			func(f [NumFates]uint64, elapsed time.Duration) bool {
				most := 100 + uint64(100*elapsed.Seconds()) + 1
				return f[FateSent] >= 100 && f[FateSent] <= most && f[FateSent]+f[FateRateLimit] == flags
			}},
		{"a ring that is not drained is full", MaxEventRate, false, func(f [NumFates]uint64, _ time.Duration) bool {
			return f[FateSent] == ringBytes/128-1 && f[FateSent]+f[FateRingFull] == flags ||
				f[FateSent] == ringBytes/128 && f[FateSent]+f[FateRingFull] == flags
		}},
		{"no reader", MaxEventRate, true, func(f [NumFates]uint64, _ time.Duration) bool {
			return f[FateNoReader] == flags
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := testConfig()
			config.EventRate = test.rate
			config.Threshold, config.Calibrate = 0, 0 // each scored packet may become an event
			p := newProbe(t, config)
			now := p.learn(t, udpFrame())
			if test.closed {
				if err := p.events.reader.Pause(); err != nil {
					t.Fatal(err)
				}
			}
			start := time.Now()
			for range flags {
				now += 1e6
				run(t, p.program(0), udpFrame(), now, 1)
			}
			elapsed := time.Since(start)
			c := p.Counters()[0]
			if !test.want(c.Fates, elapsed) {
				t.Errorf("fates: got %v of %d flags in %v", c.Fates, flags, elapsed)
			}
			var sum uint64
			for _, n := range c.Fates {
				sum += n
			}
			flagged := c.Packets.Outcome(OutcomeFlaggedEarly) + c.Packets.Outcome(OutcomeFlaggedLate)
			if sum != flags || flagged != flags {
				t.Errorf("got %d fates of %d flagged packets, want %d", sum, flagged, flags)
			}
			if test.closed {
				return
			}
			if got := uint64(len(p.readAll(t))); got != c.Fates[FateSent] {
				t.Errorf("read %d events, but %d were sent", got, c.Fates[FateSent])
			}
		})
	}
}

// On steady traffic with a mean of 1 ms and a standard deviation of 20 µs, delays of eight
// standard deviations are flagged, and few other packets are.
func TestPlantedDelaysAreFlagged(t *testing.T) {
	const packets, every = 400_000, 100
	p := newProbe(t, testConfig())
	r := rand.New(rand.NewPCG(1, 1))
	now, planted, found, falseFlags := uint64(1e12), 0, 0, 0
	cells := p.block.Protocols[FamilyIPv4][ProtocolUDP].Packets[:]
	for i := range packets {
		delta := 1e6 + 20e3*r.NormFloat64()
		isPlanted := i > 1000 && i%every == 0
		if isPlanted {
			delta += 8 * 20e3 // delays all later packets, too
			planted++
		}
		now += uint64(math.Round(delta))
		before := cells[OutcomeFlaggedEarly] + cells[OutcomeFlaggedLate]
		run(t, p.program(0), udpFrame(), now, 1)
		switch isFlagged := cells[OutcomeFlaggedEarly]+cells[OutcomeFlaggedLate] > before; {
		case isFlagged && isPlanted:
			found++
		case isFlagged:
			falseFlags++
		}
	}
	detected, falseRate := float64(found)/float64(planted), float64(falseFlags)/float64(packets-planted)
	t.Logf("%d of %d planted delays flagged (%.4f), %d false flags (%.2g of the rest)", found, planted, detected, falseFlags, falseRate)
	if detected < 0.99 {
		t.Errorf("flagged %.4f of the planted delays, want at least 0.99", detected)
	}
	if falseRate > 2e-4 {
		t.Errorf("flagged %.2g of the other packets, want at most 2e-4", falseRate)
	}
}

func TestDamagedRecordsAreRefused(t *testing.T) {
	for _, record := range [][]byte{nil, make([]byte, eventBytes-1)} {
		if _, ok := decodeEvent(record, &Event{}, timing.Params{}); ok {
			t.Errorf("a record of %d bytes was decoded", len(record))
		}
	}
	record := make([]byte, eventBytes)
	for samples, want := range []bool{false, false, true} {
		binary.NativeEndian.PutUint32(record[unsafe.Offsetof(programFlagState{}.N):], uint32(samples))
		if _, ok := decodeEvent(record, &Event{}, timing.Params{}); ok != want {
			t.Errorf("a record of a baseline of %d samples: decoded %v, want %v", samples, ok, want)
		}
	}
}
