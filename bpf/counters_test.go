// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

func TestTotalIsExactAndNeverDecreases(t *testing.T) {
	for _, test := range []struct {
		name   string
		last   Uint128
		sums   DeltaSums
		deltas uint64
		want   Uint128
	}{
		{"no delta", Uint128{}, DeltaSums{}, 0, Uint128{}},
		{"all deltas are the reference", Uint128{}, DeltaSums{ReferenceNs: 1_000_000}, 3000, Uint128{Lo: 3e9}},
		{"a small difference of large sums is exact", Uint128{},
			DeltaSums{ReferenceNs: 1 << 31, AboveNs: Uint128{Lo: 5}, BelowNs: Uint128{Hi: 1 << 7}}, 1 << 40, Uint128{Lo: 5}},
		{"the sums are ahead of the count", Uint128{}, DeltaSums{ReferenceNs: 10, BelowNs: Uint128{Lo: 5}}, 0, Uint128{}},
		{"the sums are ahead of the count, and a larger total was read before", Uint128{Lo: 100}, DeltaSums{ReferenceNs: 10, BelowNs: Uint128{Lo: 5}}, 10, Uint128{Lo: 100}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := &counterReader{totals: []Uint128{test.last}}
			c := &Counters{Sums: test.sums}
			c.Packets[FamilyIPv4][ProtocolUDP][OutcomeJudged] = test.deltas
			if got := r.total(0, c); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// The reader skips the blocks of CPUs without packets. What it reads is the sum over all blocks,
// and a baseline does not outlive the clearing of its block.
func TestUnusedBlocksAddNothing(t *testing.T) {
	const cpus = 16
	config := DefaultConfig()
	config.Baseline = BaselineDevice
	blocks := madeUpBlocks(1, cpus, 0, everyLine)
	r := newCounterReader(blocks, cpus, 1, config)
	want := Counters{}
	// Each cell alone makes a block used.
	cpu := 0
	for f := range NumFamilies {
		for p := range NumProtocols {
			block := &blocks[cpu]
			block.Protocols[f][p].Bytes, block.Protocols[f][p].Packets[OutcomeJudged] = 60, 5
			block.Histogram[cpu], block.Histogram[timing.Cells-1-cpu], block.FlowInserts = 2, 3, 4
			block.Device.Baseline.N = 5
			want.Bytes[f][p], want.Packets[f][p][OutcomeJudged] = 60, 5
			want.Histogram[cpu], want.Histogram[timing.Cells-1-cpu] = 2, 3
			want.Inserts += 4
			cpu++
		}
	}
	if used := cpus - 1; cpu != used {
		t.Fatalf("%d blocks are used, want %d", cpu, used)
	}
	for i := range blocks {
		if got, want := usedCells(&blocks[i]) == 0, i == cpus-1; got != want {
			t.Errorf("block %d is unused: %t, want %t", i, got, want)
		}
	}
	var got Counters
	r.read(0, &got)
	if got.Bytes != want.Bytes || got.Packets != want.Packets || got.Histogram != want.Histogram || got.Inserts != want.Inserts {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if n := r.netInserts(0); n != int64(want.Inserts) {
		t.Errorf("%d flows were inserted, want %d", n, want.Inserts)
	}
	if want := uint64(5 * cpu); got.Baseline.Samples != want {
		t.Errorf("the baseline has %d samples, want %d", got.Baseline.Samples, want)
	}
	clear(blocks)
	r.reset(0)
	var cleared Counters
	r.read(0, &cleared)
	if cleared.Baseline.Samples != 0 || sumOf(&cleared.Packets) != 0 {
		t.Errorf("after clearing: %d packets, a baseline of %d samples", sumOf(&cleared.Packets), cleared.Baseline.Samples)
	}
}

func sumOfCells(h *timing.Histogram) (sum uint64) {
	for _, n := range h {
		sum += n
	}
	return sum
}

// While the program counts, no sum decreases from one reading to the next. At rest, the cells
// add up.
func TestCountersAreConsistentUnderTraffic(t *testing.T) {
	config := DefaultConfig()
	config.Devices = []string{"test0"}
	audit := loadTest(t, config)
	countRuns(t)
	done := make(chan error, 1)
	go func() {
		_, _, err := audit.program(0).Benchmark(udpFrame(), 3_000_000, nil)
		done <- err
	}()
	var last Counters
	readings := 0
	for running := true; running; readings++ {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		default:
		}
		c := audit.Counters()[0]
		for name, pair := range map[string][2]Uint128{
			"total": {last.Sums.TotalNs, c.Sums.TotalNs}, "above": {last.Sums.AboveNs, c.Sums.AboveNs},
			"below": {last.Sums.BelowNs, c.Sums.BelowNs}, "squared": {last.Sums.SquaredNs2, c.Sums.SquaredNs2},
			"deltas": {{Lo: last.Packets.Deltas()}, {Lo: c.Packets.Deltas()}},
		} {
			if pair[1].Cmp(pair[0]) < 0 {
				t.Fatalf("%s decreased from %v to %v", name, pair[0], pair[1])
			}
		}
		for cell, n := range c.Histogram {
			if n < last.Histogram[cell] {
				t.Fatalf("cell %d of the histogram decreased from %d to %d", cell, last.Histogram[cell], n)
			}
		}
		last = c
	}
	t.Logf("%d readings", readings)
	if got, want := sumOf(&last.Packets), packetsRun(t, audit.program(0)); got != want {
		t.Errorf("counted %d packets, want %d", got, want)
	}
	if got, want := sumOfCells(&last.Histogram), last.Packets.Deltas(); got != want {
		t.Errorf("the histogram has %d deltas, want %d", got, want)
	}
	if last.Sums.TotalNs == (Uint128{}) {
		t.Error("no delta was summed")
	}
}
