// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"math"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

func TestTotalIsExactAndNeverFalls(t *testing.T) {
	for _, test := range []struct {
		name   string
		last   Uint128
		sums   DeltaSums
		deltas uint64
		want   Uint128
	}{
		{"nothing was measured", Uint128{}, DeltaSums{}, 0, Uint128{}},
		{"all deltas are the reference", Uint128{}, DeltaSums{ReferenceNs: 1_000_000}, 3000, Uint128{Lo: 3e9}},
		{"a small difference of large sums is exact", Uint128{},
			DeltaSums{ReferenceNs: 1 << 31, AboveNs: Uint128{Lo: 5}, BelowNs: Uint128{Hi: 1 << 7}}, 1 << 40, Uint128{Lo: 5}},
		{"the sums are ahead of the count", Uint128{}, DeltaSums{ReferenceNs: 10, BelowNs: Uint128{Lo: 5}}, 0, Uint128{}},
		{"what came between would let it fall", Uint128{Lo: 100}, DeltaSums{ReferenceNs: 10, BelowNs: Uint128{Lo: 5}}, 10, Uint128{Lo: 100}},
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

// The kernel stores the low word of a sum before it carries into the high one: what is read between is not believed.
func TestSumBeforeItsCarryIsNotBelieved(t *testing.T) {
	last := Uint128{Hi: 1, Lo: 1<<64 - 5}
	words := [2]uint64{3, 1}
	if got := loadUint128(&words, &last); got != last {
		t.Errorf("before the carry: got %v, want %v as before", got, last)
	}
	words[1] = 2
	if got, want := loadUint128(&words, &last), (Uint128{Hi: 2, Lo: 3}); got != want {
		t.Errorf("after the carry: got %v, want %v", got, want)
	}
}

func sumOfCells(h *timing.Histogram) (sum uint64) {
	for _, n := range h {
		sum += n
	}
	return sum
}

// The delta that is pending is in the histogram once, whether or not the program has counted it already.
func TestPendingDeltaIsReadOnce(t *testing.T) {
	cuts := timing.Cuts()
	for _, test := range []struct {
		name                     string
		deltas, counted, pending uint64
		want                     uint64
	}{
		{"no delta so far", 0, 0, 0, 0},
		{"the last delta is pending", 5, 4, 1001, 5},
		{"a delta of nothing is pending", 1, 0, 1, 1},
		{"a packet has counted it and not taken it away yet", 5, 5, 1001, 5},
		{"a new flow has counted it", 5, 5, 0, 5},
		{"a packet has left its own, and is not counted itself", 5, 5, 2001, 5},
		{"the longest delta is pending", 1, 0, 1 + timing.MaxDelta, 1},
		{"what is pending is no delta", 1, 0, math.MaxUint64, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			block := &programDeviceCounters{}
			block.Protocols[FamilyIPv4][ProtocolUDP].Packets[OutcomeJudged] = test.deltas
			block.Histogram[7] = test.counted
			block.Sums.Pending = test.pending
			want := timing.Histogram{7: test.counted + 3} // 3 of another block
			if test.want > test.counted {
				want[timing.Cell(test.pending-1, cuts)]++
			}
			got := timing.Histogram{7: 3}
			r, last := &counterReader{cuts: cuts}, &blockSums{}
			r.addHistogram(block, last, &timing.Histogram{})
			r.addHistogram(block, last, &got) // and no more than once by each reading
			if got != want || sumOfCells(&got) != test.want+3 {
				t.Errorf("got %d deltas, want %d", sumOfCells(&got)-3, test.want)
			}
		})
	}
}

// Where a count was lost, what is pending is taken for counted too early or too late: no cell falls for that.
func TestNoCellFallsAfterACountWasLost(t *testing.T) {
	cuts := timing.Cuts()
	r, last := &counterReader{cuts: cuts}, &blockSums{}
	block := &programDeviceCounters{}
	outcomes := &block.Protocols[FamilyIPv4][ProtocolUDP].Packets
	first, second := timing.Cell(1000, cuts), timing.Cell(5000, cuts)
	outcomes[OutcomeJudged], block.Histogram[first] = 10, 8 // one is pending, and one was lost
	before := timing.Histogram{}
	for step, change := range []func(){
		func() { block.Sums.Pending = 1 + 1000 },
		func() { block.Histogram[first]++ }, // as if it were still pending
		func() { block.Sums.Pending = 1 + 5000 },
		func() { outcomes[OutcomeJudged]++ },
		func() { block.Histogram[second]++ },
		func() { block.Sums.Pending = 0 },
		func() { outcomes[OutcomeNewFlow]++ },
	} {
		change()
		after := timing.Histogram{}
		r.addHistogram(block, last, &after)
		for cell := range after {
			if after[cell] < before[cell] {
				t.Errorf("step %d: cell %d fell from %d to %d", step, cell, before[cell], after[cell])
			}
		}
		before = after
	}
}

// Counters are read while the program counts: every identity that the cells give holds at each reading, and no sum falls.
func TestReadingsUnderTraffic(t *testing.T) {
	config := DefaultConfig()
	config.Devices = []string{"test0"}
	audit := loadTest(t, config)
	countRuns(t)
	done := make(chan error, 1)
	go func() {
		_, _, err := audit.devices[0].program.Benchmark(udpFrame(), 3_000_000, nil)
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
				t.Fatalf("%s fell from %v to %v", name, pair[0], pair[1])
			}
		}
		for cell, n := range c.Histogram {
			if n < last.Histogram[cell] {
				t.Fatalf("cell %d of the histogram fell from %d to %d", cell, last.Histogram[cell], n)
			}
		}
		last = c
	}
	t.Logf("%d readings", readings)
	if got, want := sumOf(&last.Packets), packetsRun(t, audit.devices[0].program); got != want {
		t.Errorf("counted %d packets, want %d", got, want)
	}
	if got, want := sumOfCells(&last.Histogram), last.Packets.Deltas(); got != want {
		t.Errorf("the histogram has %d deltas, want %d", got, want)
	}
	if last.Sums.TotalNs == (Uint128{}) {
		t.Error("no delta was summed")
	}
}
