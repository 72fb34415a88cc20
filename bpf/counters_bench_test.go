// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// madeUpDeltas fills the histogram of a block, and returns the number of deltas.
type madeUpDeltas func(*rand.Rand, *Histogram) uint64

// everyLine puts deltas into every cache line of a histogram: the most that there is to read.
func everyLine(random *rand.Rand, h *Histogram) (deltas uint64) {
	for line := range len(h) / lineCells {
		n := 1 + random.Uint64N(1<<20)
		h[line*lineCells+random.IntN(lineCells)] = n
		deltas += n
	}
	return deltas
}

// eightFlows has eight flows with intervals between 10 µs and 100 ms and a jitter of 5 %, and the
// packets of bursts, 1 to 10 µs apart.
func eightFlows(random *rand.Rand, h *Histogram) (deltas uint64) {
	cuts := timing.Cuts()
	for range 8 {
		interval := 1e4 * math.Pow(1e4, random.Float64())
		for range 1000 {
			h[timing.Cell(uint64(max(interval*(1+0.05*random.NormFloat64()), 1)), cuts)]++
			deltas++
		}
	}
	for range 1000 {
		h[timing.Cell(uint64(1000*math.Pow(10, random.Float64())), cuts)]++
		deltas++
	}
	return deltas
}

// madeUpBlocks returns blocks of counters in which the CPUs from 0 to written−1 of each device
// have counted packets.
func madeUpBlocks(devices, cpus, written int, fill madeUpDeltas) []programDeviceCounters {
	blocks := make([]programDeviceCounters, devices*cpus)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range blocks {
		// Written, so that each block has memory of its own, as in a map.
		blocks[i].FlowInserts = 1
		blocks[i].FlowInserts = 0
		if i%cpus >= written {
			continue
		}
		b := &blocks[i]
		deltas := fill(random, (*Histogram)(&b.Histogram))
		cells := b.Protocols[FamilyIPv4][:NumProtocols]
		for p := range cells {
			cells[p].Bytes = 1 + random.Uint64N(1<<40)
			for o := range NumOutcomes {
				cells[p].Packets[o] = random.Uint64N(1 << 30)
			}
			cells[p].Packets[OutcomeJudged], cells[p].Packets[OutcomeMinSamples] = 0, 0
			cells[p].Packets[OutcomeFlaggedEarly], cells[p].Packets[OutcomeFlaggedLate] = 0, 0
		}
		cells[ProtocolTCP].Packets[OutcomeJudged] = deltas / 3
		cells[ProtocolUDP].Packets[OutcomeJudged] = deltas - deltas/3
		b.Sums.ReferenceNs = 1000
		b.Sums.Deviation[0][0], b.Sums.Deviation[1][0], b.Sums.Squared[0] = random.Uint64(), random.Uint64(), random.Uint64()
		b.FlowInserts = random.Uint64N(1 << 20)
		b.LastFlag.Sequence = 1 + random.Uint64N(1<<20)
		b.LastFlag.Events[(b.LastFlag.Sequence+1)&1].Event.Flag.KtimeNs = random.Uint64()
	}
	return blocks
}

// One reading of all counters of 16 devices, for different numbers of possible CPUs and of CPUs
// that have received packets.
func BenchmarkReadCounters(b *testing.B) {
	const devices = 16
	for _, cpus := range []int{2, 128, 256} {
		for _, written := range []int{0, (cpus + 7) / 8, cpus} {
			for name, fill := range map[string]madeUpDeltas{"eight-flows": eightFlows, "every-line": everyLine} {
				b.Run(fmt.Sprintf("cpus=%d/written=%d/deltas=%s", cpus, written, name), func(b *testing.B) {
					r := newCounterReader(madeUpBlocks(devices, cpus, written, fill), cpus, devices, DefaultConfig())
					for b.Loop() {
						for device := range devices {
							var c Counters
							r.read(device, &c)
						}
					}
				})
			}
		}
	}
}
