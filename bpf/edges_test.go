// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"math"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// teach sets the baseline of the only flow to a state that traffic would take too long to reach.
func (p *probe) teach(t *testing.T, state timing.State) {
	t.Helper()
	slot, flows := p.onlySlot(t), p.maps.byName[programMapFlowSets]
	for set := range p.sets {
		way := slices.IndexFunc(p.sets[set].Slots[:], func(s programFlowSlot) bool { return s == *slot })
		if way < 0 {
			continue
		}
		value := p.sets[set]
		value.Slots[way].Baseline = programBaseline{
			MeanQ16: state.MeanQ16, M2Low: state.M2.Lo, M2High: uint32(state.M2.Hi), N: uint32(state.N),
		}
		if err := flows.Update(uint32(set), &value, ebpf.UpdateExist); err != nil {
			t.Fatal(err)
		}
		return
	}
}

// update changes the counters of this CPU by a system call, because they are mapped read-only.
func (p *probe) update(t *testing.T, change func(*programDeviceCounters)) {
	t.Helper()
	block := *p.block
	change(&block)
	for cpu := range p.counters.blocks[0] {
		if &p.counters.blocks[0][cpu] != p.block {
			continue
		}
		if err := p.maps.byName[programMapAuditCounters].Update(uint32(cpu), &block, ebpf.UpdateExist); err != nil {
			t.Fatal(err)
		}
	}
}

// At the limits of the arithmetic, the program and the model still have the same bits, nothing
// wraps around, and no score is NaN.
func TestProgramEqualsModelAtTheLimits(t *testing.T) {
	const (
		middle = timing.MaxDelta << 15 // 2³⁰ ns as a mean
		most   = 2 * timing.MaxWindow  // one more than the maximum number of samples
		judged = OutcomeJudged
		early  = OutcomeFlaggedEarly
		late   = OutcomeFlaggedLate
		few    = OutcomeMinSamples
		pause  = OutcomeIdleGap
		back   = OutcomeReordered
	)
	learnt := timing.State{N: 1000, MeanQ16: 1e6 << 16, M2: Uint128{Lo: 999 * 1e8}} // 1 ms ± 10 µs
	for _, test := range []struct {
		name   string
		domain Domain
		state  timing.State // before the steps
		steps  []int64      // of the clock from packet to packet, in ns
		want   []Outcome
	}{
		{"a single packet", DomainLinear, timing.State{}, nil, nil},
		{"one sample less than the minimum", DomainLinear,
			timing.State{N: 99, MeanQ16: 1e6 << 16}, []int64{timing.MaxDelta, 1e6}, []Outcome{few, judged}},
		{"no variance at all", DomainLinear, timing.State{N: 1000, MeanQ16: 1e6 << 16}, []int64{1e6 + 1, 1e6 + 2, 1e6 - 2}, []Outcome{judged, late, early}},
		{"a gap of 2⁴⁰ ns and the largest gap leave the baseline unchanged", DomainLinear,
			learnt, []int64{1 << 40, 1e6, 1 << 62, 1e6, timing.MaxDelta + 1}, []Outcome{pause, judged, pause, judged, pause}},
		{"a small step back of the clock keeps the last time, one of 2⁴⁰ ns sets it", DomainLinear,
			learnt, []int64{-1, 1, 1e6, -1 << 40, 1e6, 1 << 40}, []Outcome{back, early, judged, back, judged, pause}},
		{"the same packet again", DomainLinear, learnt, []int64{0, 1e6}, []Outcome{early, judged}},
		{"the largest M2, mean in the middle", DomainLinear,
			timing.State{N: most - 3, MeanQ16: middle, M2: Uint128{Hi: m2HighMask, Lo: 1 << 63}},
			[]int64{0, timing.MaxDelta, 0, timing.MaxDelta}, []Outcome{judged, judged, judged, judged}},
		{"the largest M2 that can be", DomainLinear,
			timing.State{N: most - 1, MeanQ16: middle, M2: Uint128{Hi: 1 << (25 + 60 - 64)}},
			[]int64{0, timing.MaxDelta}, []Outcome{judged, judged}},
		{"the largest mean without variance", DomainLinear,
			timing.State{N: most - 1, MeanQ16: timing.MaxDelta << 16}, []int64{timing.MaxDelta, 0, 0}, []Outcome{judged, early, early}},
		{"the smallest mean without variance", DomainLinear,
			timing.State{N: most - 1}, []int64{0, timing.MaxDelta, timing.MaxDelta}, []Outcome{judged, late, late}},
		{"the largest logarithm without variance", DomainLog2,
			timing.State{N: most - 1, MeanQ16: 31 << 36}, []int64{timing.MaxDelta, 0}, []Outcome{judged, early}},
		{"the smallest logarithm without variance", DomainLog2,
			timing.State{N: most - 1}, []int64{1, 0, timing.MaxDelta}, []Outcome{judged, judged, late}},
		{"the largest M2 of logarithms", DomainLog2,
			timing.State{N: most - 1, MeanQ16: 31 << 35, M2: Uint128{Lo: 1 << 63, Hi: 1 << (25 + 49 - 64)}},
			[]int64{0, timing.MaxDelta}, []Outcome{judged, judged}},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := testConfig()
			config.Domain, config.Window, config.IdleTimeout = test.domain, timing.MaxWindow, timing.MaxDelta
			p, m := newProbe(t, config), newModel(config)
			now := uint64(1 << 50)
			run(t, p.program(0), udpFrame(), now, 1)
			m.observe(now)
			if c := p.Counters()[0]; c.Packets.Outcome(OutcomeNewFlow) != 1 || sumOf(&c.Packets) != 1 {
				t.Fatalf("first packet: got %v, want a new flow", c.Packets[FamilyIPv4][ProtocolUDP])
			}
			p.teach(t, test.state)
			m.state = test.state
			var got []Outcome
			for i, step := range test.steps {
				now += uint64(step)
				before, flagged := m.state, m.outcomes
				outcome := m.observe(now)
				run(t, p.program(0), udpFrame(), now, 1)
				got = append(got, outcome)
				if slot := p.onlySlot(t); slot.Baseline.state() != m.state || slot.LastNs != m.lastNs {
					t.Fatalf("step %d: got %+v last %d, want %+v last %d", i, slot.Baseline.state(), slot.LastNs, m.state, m.lastNs)
				}
				if got := p.block.Protocols[FamilyIPv4][ProtocolUDP].Packets[outcome]; got != flagged[outcome]+1 {
					t.Fatalf("step %d: outcome %v was counted %d times, want %d", i, outcome, got, flagged[outcome]+1)
				}
				if outcome == early || outcome == late {
					score := p.Counters()[0].LastFlag.Score()
					if math.IsNaN(score) || math.IsInf(score, 0) || math.Abs(score) < 4 || (score < 0) != (outcome == early) {
						t.Errorf("step %d: score %v against %+v is flagged %v", i, score, before, outcome)
					}
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("outcomes: got %v, want %v", got, test.want)
			}
		})
	}
}

// Near overflow, a sum carries into its upper half, and no counter changes its neighbour.
func TestCountersNearOverflow(t *testing.T) {
	p := newProbe(t, testConfig())
	now := p.learn(t, udpFrame())
	const near = math.MaxUint64 - 1
	p.update(t, func(block *programDeviceCounters) {
		cell := &block.Protocols[FamilyIPv4][ProtocolUDP]
		cell.Packets[OutcomeJudged], cell.Bytes = near, near-uint64(len(udpFrame()))
		block.Histogram[timing.Cell(1e6+100, timing.Cuts())] = near
		block.Sums.ReferenceNs = 1e6
		block.Sums.Deviation = [2][2]uint64{{near, 7}, {near, 7}}
		block.Sums.Squared = [2]uint64{near, 7}
	})
	want := *p.block
	run(t, p.program(0), udpFrame(), now+1e6+100, 1)

	cell := &want.Protocols[FamilyIPv4][ProtocolUDP]
	cell.Packets[OutcomeJudged]++
	cell.Bytes += uint64(len(udpFrame()))
	want.Histogram[timing.Cell(1e6+100, timing.Cuts())]++
	want.Sums.Deviation[0] = [2]uint64{98, 8}
	want.Sums.Squared = [2]uint64{100*100 - 2, 8}
	if *p.block != want {
		t.Errorf("got  %+v\nwant %+v", *p.block, want)
	}
}
