// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"crypto/rand"
	"encoding/binary"
	"log/slog"
	"math"
	"math/bits"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// An attacker who knows this code but not the random keys cannot choose flows that evict each
// other more often than random flows do. Of half as many flows as slots, 94.9 % find their slot
// again.
func TestChosenFlowsKeepTheirSlots(t *testing.T) {
	needBPF(t)
	const flows = 32_768
	config := testConfig()
	config.IdleTimeout = timing.MaxDelta
	for _, test := range []struct {
		name   string
		choose func(i uint32) (sourcePort, destinationPort uint16, source, destination uint32)
	}{
		{"ports in turn", func(i uint32) (uint16, uint16, uint32, uint32) { return uint16(i), 443, 1, 2 }},
		{"sources in turn", func(i uint32) (uint16, uint16, uint32, uint32) { return 1, 443, i, 2 }},
		{"the highest bits of both addresses", func(i uint32) (uint16, uint16, uint32, uint32) {
			return 1, 443, bits.Reverse32(i & 0xff), bits.Reverse32(i >> 8)
		}},
		{"one bit of each", func(i uint32) (uint16, uint16, uint32, uint32) {
			return 1 << (i % 16), 1 << (i / 16 % 16), 1 << (i / 256 % 32), 1 << (i / 8192 % 32)
		}},
		{"addresses that add up to the same", func(i uint32) (uint16, uint16, uint32, uint32) { return 1, 443, i, -i }},
	} {
		t.Run(test.name, func(t *testing.T) {
			audit, err := load(config, config.Devices, rand.Reader, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := audit.Close(); err != nil {
					t.Error(err)
				}
			}()
			if err := audit.devices.load(audit.devices.listed[0], 0); err != nil {
				t.Fatal(err)
			}
			runner := newRunner(t, audit.program(0).FD())
			frame := udpFrame()
			now := uint64(1e12)
			sendAll := func() Packets {
				for i := range uint32(flows) {
					sourcePort, destinationPort, source, destination := test.choose(i)
					binary.BigEndian.PutUint32(frame[14+12:], source)
					binary.BigEndian.PutUint32(frame[14+16:], destination)
					binary.BigEndian.PutUint16(frame[14+20:], sourcePort)
					binary.BigEndian.PutUint16(frame[14+22:], destinationPort)
					now += 10_000
					if err := runner.run(frame, now); err != nil {
						t.Fatal(err)
					}
				}
				return audit.Counters()[0].Packets
			}
			sendAll()
			sendAll() // while the table fills, evictions differ
			before := audit.Counters()[0].Packets
			after := sendAll()
			found := float64(after.Deltas()-before.Deltas()) / flows
			c := audit.Counters()[0]
			t.Logf("%.4f found their slot, %d evictions", found, c.Evictions[EvictionLive])
			// Poisson distribution: fewer than 8 other flows in a set with a mean of 4. The keys of
			// the hash are random: for 300 simulated sets of ideal hashes, and for 150 keys, the
			// standard deviation was 0.0036 and 0.0035.
			const want, deviation = 0.9489, 0.0036
			if math.Abs(found-want) > 6*deviation {
				t.Errorf("%.4f of the flows found their slot, want %.4f", found, want)
			}
			if all := sumOf(&after); all != 3*flows {
				t.Errorf("%d packets, want %d", all, 3*flows)
			}
		})
	}
}
