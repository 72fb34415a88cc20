// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"unsafe"

	"github.com/xdp-audit/xdp_audit_exporter/internal/flowtable"
	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// onlyRecord returns the record of the only flow that has one.
func (p *interpretedProgram) onlyRecord(t *testing.T) programFlowRecord {
	t.Helper()
	var records []programFlowRecord
	for _, set := range arrayOf[programSetRecords](p.interpreter, programMapFlowRecords) {
		records = append(records, set.Records[:]...)
	}
	records = slices.DeleteFunc(records, func(r programFlowRecord) bool { return r == programFlowRecord{} })
	if len(records) != 1 {
		t.Fatalf("%d records, want 1", len(records))
	}
	return records[0]
}

// A flow's record counts flagged packets in a row on one side. A packet that is not flagged
// shortens the run by eight, and one on the other side ends it.
func TestRunsOfFlags(t *testing.T) {
	const usual, late, early = 1_000_000, 1_600_000, 400_000
	config := testConfig()
	config.Flows, config.MinSamples, config.Window = flowWays, 100, 128
	p := newInterpretedProgram(t, config, longestFrame, netdev.LinkEthernet)
	now := uint64(1e12)
	send := func(delta uint64) {
		now += delta
		p.send(t, udpFrame(), now)
	}
	for i := range 200 {
		send(usual + uint64(i%7)*20_000)
	}
	for _, step := range []struct {
		name   string
		deltas []uint64
		run    uint32
		isLate uint8
	}{
		{"the first flag", []uint64{late}, 1, 1},
		{"flags in a row", []uint64{late, late}, 3, 1},
		{"a flag on the other side", []uint64{early}, 1, 0},
		{"one more there", []uint64{early}, 2, 0},
		{"a packet between that is not flagged", []uint64{usual, early}, 1, 0},
		{"one in a longer run", slices.Concat(slices.Repeat([]uint64{early}, 9), []uint64{usual, early}), 3, 0},
		{"a whole window between", slices.Repeat([]uint64{usual, usual + 120_000}, 64), 3, 0},
		{"a flag after it, at the same number of samples", []uint64{late}, 1, 1},
	} {
		for _, delta := range step.deltas {
			send(delta)
		}
		if got := p.onlyRecord(t).Run; got.Packets != step.run || got.IsLate != step.isLate {
			t.Errorf("%s: run of %d, late %d, want %d and %d", step.name, got.Packets, got.IsLate, step.run, step.isLate)
		}
	}
	p.compare(t)
}

// The level of 101 flagged packets in a row on one side becomes the baseline, also when that is
// halved meanwhile. A packet in between that is not flagged makes the run longer.
func TestBaselinesRestart(t *testing.T) {
	const usual, late, early = 1_000_000, 3_000_000, 300_000
	withUsual := slices.Concat(slices.Repeat(append(slices.Repeat([]uint64{late}, 19), usual), 8), slices.Repeat([]uint64{late}, 13))
	for _, scope := range []Scope{BaselineFlow, BaselineDevice} {
		for _, test := range []struct {
			name     string
			samples  int // before the level shifts; the baseline is halved at 256
			deltas   []uint64
			restarts uint64
			n        uint64 // of the baseline at the end
		}{
			{"to a later level", 200, slices.Repeat([]uint64{late}, 101), 1, 100},
			{"to an earlier level", 200, slices.Repeat([]uint64{early}, 101), 1, 100},
			{"one packet too few", 150, slices.Repeat([]uint64{late}, 100), 0, 250},
			{"the first of the run at the halving", 255, slices.Repeat([]uint64{late}, 101), 1, 100},
			{"in the middle of the run", 225, slices.Repeat([]uint64{early}, 101), 1, 100},
			{"before the last of the run", 156, slices.Repeat([]uint64{late}, 101), 1, 100},
			{"at the last of the run", 155, slices.Repeat([]uint64{late}, 101), 1, 100},
			{"and learns the new level", 200, slices.Repeat([]uint64{late}, 200), 1, 199},
			{"on both sides", 150, slices.Repeat([]uint64{late, early}, 50), 0, 250},
			{"after a run on the other side", 200, slices.Concat(slices.Repeat([]uint64{early}, 50), slices.Repeat([]uint64{late}, 101)), 1, 100},
			{"with a usual packet in between", 150, slices.Concat(slices.Repeat([]uint64{late}, 100), []uint64{usual, late}), 0, 252},
			{"with one at the halving", 155, slices.Concat(slices.Repeat([]uint64{late}, 100), []uint64{usual, late}), 0, 129},
			{"with usual packets in a longer run", 200, withUsual, 1, 164},
		} {
			t.Run(fmt.Sprintf("by %s, %s", scope, test.name), func(t *testing.T) {
				config := testConfig()
				config.Flows, config.MinSamples, config.Window, config.Baseline = flowWays, 100, 128, scope
				p := newInterpretedProgram(t, config, longestFrame, netdev.LinkEthernet)
				now := uint64(1e12)
				p.send(t, udpFrame(), now)
				for i := range test.samples {
					now += usual + uint64(i%7)*5_000
					p.send(t, udpFrame(), now)
				}
				for _, delta := range test.deltas {
					now += delta
					p.send(t, udpFrame(), now)
				}
				p.compare(t)
				if p.model.restarts != test.restarts || p.model.state.N != test.n {
					t.Errorf("%d restarts and %d samples, want %d and %d", p.model.restarts, p.model.state.N, test.restarts, test.n)
				}
			})
		}
	}
}

// Whatever the record of a flow holds, as one that another program pinned, the program and the
// model decide alike on the flags that follow, and no flow has more than eight tokens.
func FuzzRecord(f *testing.F) {
	const recordBytes = int(unsafe.Sizeof(programFlowRecord{}))
	f.Add(make([]byte, recordBytes), bytes.Repeat([]byte{0, 0, 0, 1, 64, 66, 15, 0}, 50), true)
	f.Add(bytes.Repeat([]byte{0xff}, recordBytes), bytes.Repeat([]byte{0, 0, 0, 64, 1, 0, 0, 0}, 50), true)
	f.Add(bytes.Repeat([]byte{0x80, 0}, recordBytes/2), bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7}, 40), false)
	config := testConfig()
	config.Flows, config.MinSamples, config.Window, config.Threshold, config.Calibrate = flowWays, 2, 64, 2, 0.1
	config.EventRate, config.IdleTimeout = MaxEventRate, timing.MaxDelta
	var p *interpretedProgram
	f.Fuzz(func(t *testing.T, record, deltas []byte, isOfBaseline bool) {
		if len(record) < recordBytes || len(deltas) > 400 {
			t.Skip()
		}
		if p == nil {
			p = newInterpretedProgram(t, config, longestFrame, netdev.LinkEthernet)
		}
		p.reset()
		now := uint64(1e15)
		p.send(t, udpFrame(), now)
		sets, records := arrayOf[programFlowSet](p.interpreter, programMapFlowSets), arrayOf[programSetRecords](p.interpreter, programMapFlowRecords)
		way := slices.IndexFunc(sets[0].Tags[:], func(tag uint32) bool { return tag != 0 })
		r := &records[0].Records[way]
		copy(unsafe.Slice((*byte)(unsafe.Pointer(r)), recordBytes), record)
		r.Tag, r.Mark, r.Run.IsLate, r.Run.Patience = sets[0].Tags[way], sets[0].Marks[way], r.Run.IsLate&1, r.Run.Patience%5
		r.Run.Packets &= 1 // the level begins with the second packet
		sets[0].Slots[way].Baseline.M2High |= uint32(b2i(isOfBaseline)) << 23
		slot := p.model.at(&p.model.table.Set(0)[way])
		slot.record = records[0].Records[way].model(&sets[0].Slots[way].Baseline)
		slot.owner = flowtable.Slot{Tag: r.Tag, Mark: r.Mark}
		for len(deltas) >= 4 {
			now += uint64(binary.LittleEndian.Uint32(deltas) >> 1)
			deltas = deltas[4:]
			p.send(t, udpFrame(), now)
		}
		p.compare(t)
		if isFlagged := p.model.decisions != [NumDecisions]uint64{}; isFlagged && r.EarnedQ32 > 8<<32 {
			t.Errorf("the flow has %d tokens", r.EarnedQ32>>32)
		}
	})
}
