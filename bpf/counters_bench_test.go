// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// madeUpBlocks returns blocks of counters in which the CPUs from 0 to written−1 of each device
// have counted packets.
func madeUpBlocks(devices, cpus, written int) []programDeviceCounters {
	blocks := make([]programDeviceCounters, devices*cpus)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range blocks {
		// Written, so that each block has memory of its own, as in a map.
		blocks[i].Reserved[0] = 1
		blocks[i].Reserved[0] = 0
		if i%cpus >= written {
			continue
		}
		b := &blocks[i]
		for _, family := range []Family{FamilyIPv4, FamilyIPv6} {
			for _, protocol := range []Protocol{ProtocolTCP, ProtocolUDP} {
				cells := &b.Protocols[family][protocol]
				cells.Bytes = 1 + random.Uint64N(1<<40)
				for o := range NumOutcomes {
					cells.Packets[o] = 1 + random.Uint64N(1<<30)
				}
			}
		}
		b.Sums.ReferenceNs = 1000
		b.Sums.Deviation[0][0], b.Sums.Deviation[1][0], b.Sums.Squared[0] = random.Uint64(), random.Uint64(), random.Uint64()
		b.FlowInserts = random.Uint64N(1 << 20)
		for range 200 {
			b.Histogram[random.IntN(len(b.Histogram))] += random.Uint64N(1 << 20)
		}
		b.Calibration.Flagged = 1000
		for range 50 {
			b.Calibration.Scores[random.IntN(2)][random.IntN(len(b.Calibration.Scores[0]))] += random.Uint32N(1 << 10)
		}
	}
	return blocks
}

// One reading of all counters of 16 devices, for different numbers of possible CPUs and of CPUs
// that have received packets.
func BenchmarkReadCounters(b *testing.B) {
	const devices = 16
	for _, cpus := range []int{2, 128, 256} {
		for _, written := range []int{0, (cpus + 7) / 8, cpus} {
			b.Run(fmt.Sprintf("cpus=%d/written=%d", cpus, written), func(b *testing.B) {
				r := newCounterReader(madeUpBlocks(devices, cpus, written), cpus, devices, DefaultConfig())
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
