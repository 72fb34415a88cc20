// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/flowtable"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// testFlow is a flow: one frame of it, and the words that the program hashes.
type testFlow struct {
	frame []byte
	words []uint32
}

// raw returns a port as the program loads it: network byte order, read in native byte order.
func raw(port int) uint32 { return uint32(binary.NativeEndian.Uint16(be16(port))) }

func rawWords(address []byte) (words []uint32) {
	for ; len(address) > 0; address = address[4:] {
		words = append(words, binary.NativeEndian.Uint32(address))
	}
	return words
}

// newTestFlow returns the i-th of many flows over IPv4 and IPv6, with and without VLAN tags.
func newTestFlow(i int) testFlow {
	sourcePort, destinationPort, vlan := 1000+i%7, i/7%65536, 0
	payload := udp(sourcePort, destinationPort, nil)
	protocol := ipUDP
	if i%3 == 0 {
		payload, protocol = tcp(sourcePort, destinationPort, 5), ipTCP
	}
	destination := [4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}
	frame, ethertype := ipv4With(ipv4Header{protocol: protocol, ihl: 5, destination: destination}, payload), etherIPv4
	family := FamilyIPv4
	addresses := concat([]byte{10, 0, 0, 1}, destination[:])
	if i%4 == 0 {
		frame, ethertype, family = ipv6(protocol, payload), etherIPv6, FamilyIPv6
		binary.BigEndian.PutUint32(frame[8+16:], uint32(i)) // in the destination
		addresses = frame[8:40]
	}
	if i%5 == 0 {
		vlan = i % 4096
		frame, ethertype = tagged(vlan, ethertype, frame), tagVLAN
	}
	words := []uint32{raw(destinationPort)<<16 | raw(sourcePort), uint32(vlan)<<16 | uint32(family)<<8 | uint32(protocol)}
	source, target := rawWords(addresses[:len(addresses)/2]), rawWords(addresses[len(addresses)/2:])
	for w := range source {
		words = append(words, source[w], target[w])
	}
	return testFlow{ethernet(ethertype, frame), words}
}

// tableModel computes the state that the program should have for many flows.
type tableModel struct {
	*model
	table     *flowtable.Table
	slots     map[*flowtable.Slot]*slotModel
	inserts   uint64
	evictions [NumEvictions]uint64
	flags     []Flag // those that become events
}

// slotModel is what a slot of the table holds, and its record.
type slotModel struct {
	state  timing.State
	deltas uint64
	record timing.FlowRecord
	owner  flowtable.Slot // tag and mark of the flow of the record
}

func newTableModel(config Config) *tableModel {
	return &tableModel{
		model: newModel(config), table: flowtable.New(int(config.sets()), flowtable.Ways), slots: map[*flowtable.Slot]*slotModel{},
	}
}

// at returns what a slot holds.
func (m *tableModel) at(slot *flowtable.Slot) *slotModel {
	s := m.slots[slot]
	if s == nil {
		s = &slotModel{}
		m.slots[slot] = s
	}
	return s
}

// load makes the flow in a slot the current one. A flow that is flagged for the first time takes
// over the record of its slot, unless it was its own before.
func (m *tableModel) load(s *slotModel, owner flowtable.Slot, nowNs uint64) {
	if m.scope == BaselineFlow {
		m.state = s.state
	}
	m.record, m.deltas = s.record, s.deltas
	m.hasRecord = true
	if s.owner != owner {
		m.beginRecord(nowNs)
	}
}

// store is the end of what load began.
func (m *tableModel) store(s *slotModel, owner flowtable.Slot, isFlagged bool) {
	if m.scope == BaselineFlow {
		s.state = m.state
	}
	s.deltas, s.record.Halvings = m.deltas, m.record.Halvings
	if isFlagged {
		s.record, s.owner = m.record, owner
	}
}

func (m *tableModel) observe(hash flowtable.Hash, nowNs uint64, frame []byte) Outcome {
	way := m.table.Find(hash)
	if way < 0 {
		m.insert(hash, nowNs)
		return OutcomeNewFlow
	}
	slot := &m.table.Set(hash.Set)[way]
	owner := flowtable.Slot{Tag: hash.Tag, Mark: hash.Mark}
	m.load(m.at(slot), owner, nowNs)
	before, last := m.state, slot.LastNs
	m.lastNs, m.seen = last, true
	events := m.events
	outcome := m.model.observe(nowNs)
	slot.LastNs = m.lastNs
	m.store(m.at(slot), owner, outcome == OutcomeFlaggedEarly || outcome == OutcomeFlaggedLate)
	if m.events > events {
		m.flags = append(m.flags, Flag{
			AuditNs: nowNs, DeltaNs: nowNs - last, Domain: m.params.Domain, Samples: before.N, MeanQ16: before.MeanQ16, M2: before.M2,
			Clip: m.params.Clip, LenBytes: uint32(len(frame)), Late: outcome == OutcomeFlaggedLate,
		})
	}
	return outcome
}

func (m *tableModel) insert(hash flowtable.Hash, nowNs uint64) {
	way, before := m.table.Insert(hash, nowNs)
	slot := &m.table.Set(hash.Set)[way]
	s := m.at(slot)
	s.state, s.deltas = timing.State{}, 0
	s.record.Restart()
	m.inserts++
	m.outcomes[OutcomeNewFlow]++
	switch {
	case before.Tag == 0:
	case nowNs > before.LastNs && nowNs-before.LastNs > m.idleNs:
		m.evictions[EvictionExpired]++
	default:
		m.evictions[EvictionLive]++
	}
}

// Thousands of flows compete for the slots of a small table, at random times, on a clock that
// sometimes steps back. Every slot, cell, bucket, sum and event equals that of the model, bit
// for bit.
func TestManyFlowsEqualModel(t *testing.T) {
	for _, test := range []struct {
		slots   uint32
		flows   int
		packets int
		deltaNs float64
		domain  Domain
		scope   Scope
	}{
		{8, 12, 60_000, 1e4, DomainLinear, BaselineFlow},       // one set, with too few slots
		{512, 600, 400_000, 1e4, DomainLinear, BaselineFlow},   // collisions in some sets
		{512, 5_000, 200_000, 1e6, DomainLinear, BaselineFlow}, // few flows keep their slot
		{4096, 2_000, 500_000, 5e2, DomainLinear, BaselineFlow},
		{512, 600, 100_000, 1e4, DomainLog2, BaselineFlow},
		{512, 600, 100_000, 1e4, DomainLinear, BaselineDevice},
		{512, 600, 100_000, 1e4, DomainLog2, BaselineDevice},
	} {
		t.Run(fmt.Sprintf("%d flows in %d slots, %s, by %s", test.flows, test.slots, test.domain, test.scope), func(t *testing.T) {
			config := testConfig()
			config.Domain, config.Baseline = test.domain, test.scope
			config.Flows, config.MinSamples, config.Window, config.EventRate = test.slots, 10, 64, MaxEventRate
			p, m := newProbe(t, config), newTableModel(config)
			r := rand.New(rand.NewPCG(uint64(test.flows), 1))
			flows, hashes := make([]testFlow, test.flows), make([]flowtable.Hash, test.flows)
			for i := range flows {
				flows[i] = newTestFlow(i)
				hashes[i] = flowtable.HashWords(flows[i].words, &p.maps.devices.entries[0].keys)
			}
			now := uint64(1e12)
			var events []Event
			for i := range test.packets {
				// The first flows send most of the packets, as in real traffic.
				f := int(float64(test.flows) * math.Pow(r.Float64(), 3))
				now += uint64(test.deltaNs * r.ExpFloat64())
				at := now
				switch r.IntN(5000) {
				case 0:
					at -= r.Uint64N(1e7)
				case 1:
					now += 2 * uint64(config.IdleTimeout)
				}
				m.observe(hashes[f], at, flows[f].frame)
				run(t, p.program(0), flows[f].frame, at, 1)
				if i%1000 == 999 {
					events = append(events, p.readAll(t)...)
				}
			}
			p.compare(t, m, append(events, p.readAll(t)...))
		})
	}
}

// compareSlot returns an error unless a slot has the baseline and the record of the model.
func (m *tableModel) compareSlot(slot *flowtable.Slot, baseline *programBaseline, record *programFlowRecord) error {
	s := m.at(slot)
	if m.scope == BaselineFlow && baseline.state() != s.state {
		return fmt.Errorf("got %+v, want %+v", baseline.state(), s.state)
	}
	if got := record.model(baseline); got != s.record {
		return fmt.Errorf("got %+v, want %+v", got, s.record)
	}
	if record.Tag != s.owner.Tag || record.Mark != s.owner.Mark {
		return fmt.Errorf("got the record of tag %x mark %x, want %+v", record.Tag, record.Mark, s.owner)
	}
	return nil
}

// compare compares all maps and the events with the model.
func (p *probe) compare(t *testing.T, m *tableModel, events []Event) {
	t.Helper()
	used := 0
	for i := range p.sets {
		for way, want := range m.table.Set(uint64(i)) {
			slot := &m.table.Set(uint64(i))[way]
			got := &p.sets[i].Slots[way]
			if want.Tag != 0 {
				used++
			}
			if p.sets[i].Tags[way] != want.Tag || p.sets[i].Marks[way] != want.Mark || got.LastNs != want.LastNs {
				t.Fatalf("set %d way %d: got tag %x mark %x last %d, want %+v", i, way, p.sets[i].Tags[way], p.sets[i].Marks[way], got.LastNs, want)
			}
			if err := m.compareSlot(slot, &got.Baseline, &p.records[i].Records[way]); err != nil {
				t.Fatalf("set %d way %d: %v", i, way, err)
			}
		}
		if p.sets[i].Lock != 0 {
			t.Errorf("set %d is left locked", i)
		}
	}
	if m.scope == BaselineDevice && p.block.Device.Baseline.state() != m.state {
		t.Fatalf("baseline of the device: got %+v, want %+v", p.block.Device.Baseline.state(), m.state)
	}
	p.compareDecisions(t, m.model)
	c := p.Counters()[0]
	for o, want := range m.outcomes {
		if got := c.Packets.Outcome(Outcome(o)); got != want {
			t.Errorf("outcome %v: got %d, want %d", Outcome(o), got, want)
		}
	}
	if c.Histogram != m.histogram {
		t.Error("histograms differ")
	}
	if c.Sums != m.sums {
		t.Errorf("sums: got %+v, want %+v", c.Sums, m.sums)
	}
	if c.Restarts != m.restarts {
		t.Errorf("%d restarts, want %d", c.Restarts, m.restarts)
	}
	if c.Inserts != m.inserts || c.Evictions != m.evictions {
		t.Errorf("got %d inserts and evictions %v, want %d and %v", c.Inserts, c.Evictions, m.inserts, m.evictions)
	}
	if c.Fates[FateSent] != uint64(len(m.flags)) {
		t.Fatalf("%d events were sent, want %d; fates %v", c.Fates[FateSent], len(m.flags), c.Fates)
	}
	got := make([]Flag, len(events))
	for i, e := range events {
		got[i] = e.Flag
		got[i].KtimeNs = 0 // unknown to the model
	}
	if !slices.Equal(got, m.flags) {
		t.Errorf("got %d events, want %d, or their contents differ", len(got), len(m.flags))
	}
	t.Logf("%d slots used, %d inserts, evictions %v, %d events, outcomes %v", used, m.inserts, m.evictions, len(events), m.outcomes)
}
