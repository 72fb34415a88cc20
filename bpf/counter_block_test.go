// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// A reading loads the lines of the histogram that have counts, and the others only if deltas are
// missing. What it reads is exact.
func TestHistogramLinesRead(t *testing.T) {
	block := &programDeviceCounters{}
	count := func(cell int, n uint64) {
		block.Histogram[cell] += n
		cells := &block.Protocols[FamilyIPv6][ProtocolICMP]
		cells.Bytes += 60 * n
		cells.Packets[OutcomeMinSamples] += n
	}
	var known lineSet
	for _, test := range []struct {
		description string
		count       func()
		want        int
	}{
		{"no delta", func() {}, 0},
		{"the first delta may be in any line", func() { count(0, 1) }, histogramLines},
		{"nothing has changed", func() {}, 1},
		{"more deltas in a known line", func() { count(7, 1000) }, 1},
		{"a delta in another line", func() { count(8, 1) }, histogramLines},
		{"nothing has changed, in two lines", func() {}, 2},
		{"the last cell, and known ones", func() { count(timing.Cells-1, 1); count(3, 5) }, histogramLines},
		{"nothing has changed, in three lines", func() {}, 3},
		{"a delta of each outcome that has one", func() {
			for _, o := range []Outcome{OutcomeJudged, OutcomeMinSamples, OutcomeFlaggedEarly, OutcomeFlaggedLate} {
				block.Histogram[600]++
				block.Protocols[FamilyIPv4][ProtocolTCP].Packets[o]++
			}
			block.Protocols[FamilyIPv4][ProtocolTCP].Bytes = 1
		}, histogramLines},
		{"packets without a delta", func() { block.Protocols[FamilyIPv4][ProtocolTCP].Packets[OutcomeNewFlow] = 9 }, 4},
	} {
		test.count()
		var sum Histogram
		r := histogramReader{sum: &sum}
		r.add(block, &known)
		r.finish()
		if r.lines != test.want {
			t.Errorf("%s: %d lines were read, want %d", test.description, r.lines, test.want)
		}
		if sum != Histogram(block.Histogram) {
			t.Errorf("%s: what was read differs from the block", test.description)
		}
	}
}

// All lines of a host are read once. Then the lines of typical deltas are a small part of all.
func TestHistogramLinesOfTypicalDeltas(t *testing.T) {
	for _, test := range []struct {
		name string
		fill madeUpDeltas
		most int // lines of a block on average
	}{{"eight flows", eightFlows, histogramLines / 3}, {"a delta in every line", everyLine, histogramLines}} {
		const cpus = 66 // not a multiple of denseBlocks
		blocks := madeUpBlocks(1, cpus, cpus, test.fill)
		states := make([]lineSet, cpus)
		for reading, most := range []int{histogramLines, test.most} {
			var got, want Histogram
			r := histogramReader{sum: &got}
			for cpu := range blocks {
				r.add(&blocks[cpu], &states[cpu])
				for cell, n := range blocks[cpu].Histogram {
					want[cell] += n
				}
			}
			r.finish()
			t.Logf("%s, reading %d: %d lines of %d", test.name, reading, r.lines/cpus, histogramLines)
			if r.lines > most*cpus {
				t.Errorf("%s, reading %d: %d lines, want at most %d", test.name, reading, r.lines, most*cpus)
			}
			if got != want {
				t.Errorf("%s, reading %d: what was read differs from the blocks", test.name, reading)
			}
		}
	}
}

// A CPU counts deltas while the histogram is read: most in few lines, and now and then the first
// one of a line. Each delta that was counted before a reading is in it, except for one whose place
// the packet that is being counted may take. No cell decreases, and at rest the reading is exact.
func TestHistogramIsReadUnderTraffic(t *testing.T) {
	readings, partial := 0, 0
	for seed := range uint64(20) {
		block := &programDeviceCounters{}
		block.Protocols[FamilyIPv4][ProtocolUDP].Bytes = 60
		var counted Histogram // deltas that are counted completely
		var ended atomic.Bool
		go func() {
			defer ended.Store(true)
			countMadeUpDeltas(rand.New(rand.NewPCG(3, seed)), block, &counted)
		}()
		var known lineSet
		var last Histogram
		for isLast := false; !isLast; readings++ {
			isLast = ended.Load()
			var before, sum Histogram
			for cell := range before {
				before[cell] = atomic.LoadUint64(&counted[cell])
			}
			r := histogramReader{sum: &sum}
			r.add(block, &known)
			r.finish()
			if r.lines < histogramLines {
				partial++
			}
			missing := uint64(0)
			for cell, n := range sum {
				if n < last[cell] {
					t.Fatalf("cell %d decreased from %d to %d", cell, last[cell], n)
				}
				missing += max(before[cell], n) - n
			}
			if missing > 1 {
				t.Fatalf("reading %d lacks %d deltas that were counted before", readings, missing)
			}
			last = sum
		}
		if last != counted {
			t.Fatal("the last reading differs from what was counted")
		}
	}
	if t.Logf("%d readings, %d of them partial", readings, partial); partial == 0 {
		t.Error("all lines were read at each reading")
	}
}

// countMadeUpDeltas counts deltas in a block as the program does, and afterwards in *counted.
func countMadeUpDeltas(random *rand.Rand, block *programDeviceCounters, counted *Histogram) {
	const rounds, burst = denseLines / 2, 20_000
	packets := &block.Protocols[FamilyIPv4][ProtocolUDP].Packets[OutcomeJudged]
	for round := range rounds {
		for i := range burst {
			cell := 512 + random.IntN(4*lineCells)
			if i == burst/2 {
				cell = lineCells * round
			}
			atomic.AddUint64(&block.Histogram[cell], 1)
			atomic.AddUint64(packets, 1)
			atomic.AddUint64(&counted[cell], 1)
		}
	}
}

// The reader of a host with CPUs of different kinds sums all blocks exactly, at the first reading
// and at later ones.
func TestReadingsSumAllBlocks(t *testing.T) {
	const cpus = 8
	blocks := madeUpBlocks(2, cpus, cpus-3, eightFlows)
	r := newCounterReader(blocks, cpus, 2, DefaultConfig())
	random := rand.New(rand.NewPCG(5, 6))
	for reading := range 4 {
		for device := range 2 {
			var want, got Counters
			for cpu := range cpus {
				block := &blocks[device*cpus+cpu]
				for f := range NumFamilies {
					for p := range NumProtocols {
						cells := &block.Protocols[f][p]
						want.Bytes[f][p] += cells.Bytes
						for o := range NumOutcomes {
							want.Packets[f][p][o] += cells.Packets[o]
						}
					}
				}
				for cell, n := range block.Histogram {
					want.Histogram[cell] += n
				}
				want.Inserts += block.FlowInserts
				want.Sums.SquaredNs2 = want.Sums.SquaredNs2.Add(Uint128{Lo: block.Sums.Squared[0]})
			}
			r.read(device, &got)
			if got.Bytes != want.Bytes || got.Packets != want.Packets || got.Inserts != want.Inserts ||
				got.Histogram != want.Histogram || got.Sums.SquaredNs2 != want.Sums.SquaredNs2 {
				t.Errorf("device %d, reading %d: got\n%+v\nwant\n%+v", device, reading, got, want)
			}
		}
		// One more delta on a CPU, on one that had none before at the end.
		block := &blocks[[]int{0, 9, cpus - 1, 0}[reading]]
		block.Histogram[random.IntN(timing.Cells)]++
		cells := &block.Protocols[FamilyIPv6][Protocol(reading)]
		cells.Bytes, cells.Packets[OutcomeFlaggedLate] = cells.Bytes+60, cells.Packets[OutcomeFlaggedLate]+1
	}
}

// Each used cell is visited once, in the order of the block.
func TestCellsOfASet(t *testing.T) {
	block := &programDeviceCounters{}
	var want, got []string
	for f := range NumFamilies {
		for p := range NumProtocols {
			if f == FamilyIPv4 && p == ProtocolSCTP {
				continue
			}
			block.Protocols[f][p].Bytes = 1
			want = append(want, fmt.Sprint(f, p))
		}
	}
	for used := usedCells(block); used != 0; {
		f, p := used.next()
		got = append(got, fmt.Sprint(f, p))
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
