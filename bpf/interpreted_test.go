// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"unsafe"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// interpretedProgram is the audit's program in the interpreter, next to the model of what it should
// do. Their comparison holds for both: an interpreter with an error does not agree with the model.
type interpretedProgram struct {
	*interpreter
	model       *framesModel
	config      Config
	firstBuffer int // bytes of a frame that the program can access
	sent        int
	watching    []uint32 // deltas that a watch should have recorded; nil without a watch
}

const (
	interpretedCPUs = 2
	interpretedCPU  = 1 // the one that runs the program
)

func newInterpretedProgram(t *testing.T, config Config, firstBuffer int, link netdev.LinkLayer) *interpretedProgram {
	t.Helper()
	return newInterpretedProgramOn(t, config, firstBuffer, link, uint32(link))
}

// newInterpretedProgramOn is newInterpretedProgram for a link layer of enum link_layer.
func newInterpretedProgramOn(t *testing.T, config Config, firstBuffer int, link netdev.LinkLayer, layer uint32) *interpretedProgram {
	t.Helper()
	spec, err := config.loadProgram()
	if err != nil {
		t.Fatal(err)
	}
	values := config.programConfig()
	// As on x86, so that counts do not depend on the machine.
	values.StoresAreOrdered, values.HasFrags, values.Owner = 1, 1, 3<<ownerShift
	values.LinkLayer = layer
	keys := testKeys()
	for i := range values.HashKeys {
		values.HashKeys[i] = uint32(keys.Uint64())
	}
	if err := setVariables(spec, values); err != nil {
		t.Fatal(err)
	}
	for name, n := range map[string]int{
		programMapAuditCounters: interpretedCPUs, programMapEventAllowances: interpretedCPUs, programMapSampledFlows: interpretedCPUs,
		programMapFlowSets: int(config.sets()), programMapFlowKeys: config.Slots(), programMapFlowRecords: int(config.sets()),
		programMapFlowWatches: int(max(config.Watches, 1)),
	} {
		spec.Maps[name].MaxEntries = uint32(n)
	}
	if config.measuresExchanges() {
		spec.Maps[leakMapExchangeCpus].MaxEntries = interpretedCPUs
		spec.Maps[leakMapExchangeSets].MaxEntries = config.exchangeSets()
		spec.Maps[leakMapExchangeRecords].MaxEntries = interpretedCPUs * config.exchangeRecords()
		sizes := leakExchangeSizes{SetMask: config.exchangeSets() - 1, RecordMask: config.exchangeRecords() - 1}
		if err := spec.Variables[leakVarExchangeConfig].Set(sizes); err != nil {
			t.Fatal(err)
		}
	}
	m, err := newInterpreter(spec, programProgXdpAudit)
	if err != nil {
		t.Fatal(err)
	}
	m.cpu = interpretedCPU
	return &interpretedProgram{
		interpreter: m, config: config, firstBuffer: firstBuffer,
		model: &framesModel{
			tableModel: newTableModel(config), keys: &values.HashKeys, owner: values.Owner, sets: uint64(config.sets()), readable: firstBuffer,
			link: link,
		},
	}
}

// reset makes the program and the model forget all packets.
func (p *interpretedProgram) reset() {
	for _, name := range []string{
		programMapAuditCounters, programMapEventAllowances, programMapFlowSets, programMapFlowKeys, programMapFlowRecords, programMapSampledFlows,
	} {
		clear(p.values(name))
	}
	m := *p.model
	m.tableModel, m.packets, m.bytes = newTableModel(p.config), Packets{}, [NumFamilies][NumProtocols]uint64{}
	p.model, p.sent, p.events = &m, 0, nil
}

// strip removes a VLAN tag with that control field from the frames that follow, as a driver does.
func (p *interpretedProgram) strip(tag uint16) {
	const idMask = 1<<12 - 1
	p.strippedTag, p.model.strippedID = tag, tag&idMask
}

// arrayOf returns the elements of an array.
func arrayOf[T any](m *interpreter, name string) []T {
	values := m.values(name)
	return unsafe.Slice((*T)(unsafe.Pointer(&values[0])), len(values)/int(unsafe.Sizeof(*new(T))))
}

// send runs the program on a frame at a time, which is on its clock, or in the metadata of the
// frame, where 0 means that there is none. It returns the outcome by which the frame was counted.
func (p *interpretedProgram) send(t *testing.T, frame []byte, atNs uint64) Outcome {
	t.Helper()
	metadataNs := atNs
	if p.config.Clock != ClockMetadata {
		p.nowNs, metadataNs = atNs, 0
	}
	p.sent++
	lastNs := p.model.lastNs
	at, key, slot := p.model.observe(frame, atNs)
	counters := &arrayOf[programDeviceCounters](p.interpreter, programMapAuditCounters)[interpretedCPU]
	cells := &counters.Protocols[at.family][at.protocol]
	before := cells.Packets[at.outcome]
	verdict, err := p.run(frame, metadataNs, p.firstBuffer)
	if err != nil || verdict != xdpPass {
		t.Fatalf("frame %d: verdict %d, want XDP_PASS: %v", p.sent, verdict, err)
	}
	if passed := p.regions[p.data>>32-1].bytes[metadataBytes:][:len(frame)]; !bytes.Equal(passed, frame) {
		t.Fatalf("frame %d was changed to %x", p.sent, headers(passed))
	}
	if cells.Packets[at.outcome] != before+1 {
		t.Fatalf("frame %d is not counted as %v: %x", p.sent, at, headers(frame))
	}
	if key != (programFlowKey{}) && arrayOf[programFlowKey](p.interpreter, programMapFlowKeys)[slot] != key {
		t.Fatalf("frame %d is not of the flow %+v in slot %d", p.sent, key, slot)
	}
	if p.watching != nil {
		p.watching = append(p.watching, uint32(atNs-lastNs))
	}
	return at.outcome
}

// watch gives the only flow the first watch, as user space does.
func (p *interpretedProgram) watch(t *testing.T) {
	t.Helper()
	sets := arrayOf[programFlowSet](p.interpreter, programMapFlowSets)
	for s := range sets {
		for way, tag := range sets[s].Tags {
			if tag == 0 {
				continue
			}
			watch := &arrayOf[programWatch](p.interpreter, programMapFlowWatches)[0]
			watch.Tag, watch.Mark = tag, sets[s].Marks[way]
			sets[s].Watches[way] = 1
			p.watching = []uint32{}
			return
		}
	}
	t.Fatal("no flow to watch")
}

// compare compares everything in the maps, and the events, with the model.
func (p *interpretedProgram) compare(t *testing.T) {
	t.Helper()
	m := p.model
	blocks := arrayOf[programDeviceCounters](p.interpreter, programMapAuditCounters)
	block := &blocks[interpretedCPU]
	var c Counters
	newCounterReader(blocks, interpretedCPUs, 1, p.config).read(0, &c)
	if c.Packets != m.packets || c.Bytes != m.bytes {
		t.Errorf("cells differ:\n got %v, %v\nwant %v, %v", c.Packets, c.Bytes, m.packets, m.bytes)
	}
	if c.Histogram != m.histogram || c.Sums != m.sums {
		t.Errorf("sums %+v, want %+v, or histograms differ", c.Sums, m.sums)
	}
	if c.Restarts != m.restarts {
		t.Errorf("%d restarts, want %d", c.Restarts, m.restarts)
	}
	if c.Inserts != m.inserts || c.Evictions != m.evictions {
		t.Errorf("%d inserts and evictions %v, want %d and %v", c.Inserts, c.Evictions, m.inserts, m.evictions)
	}
	if c.Decisions != m.decisions {
		t.Errorf("decisions: got %v, want %v", c.Decisions, m.decisions)
	}
	if p.config.Baseline == BaselineDevice && block.Device.Baseline.state() != m.state {
		t.Errorf("baseline of the device: got %+v, want %+v", block.Device.Baseline.state(), m.state)
	}
	p.compareSets(t)
	p.compareEvents(t, &c)
	if p.watching == nil {
		return
	}
	watch := &arrayOf[programWatch](p.interpreter, programMapFlowWatches)[0]
	if n := len(p.watching); watch.Recorded != uint64(n) || !slices.Equal(watch.DeltasNs[:n], p.watching) {
		t.Errorf("the watch has %d deltas, want %d, or they differ", watch.Recorded, n)
	}
	if taken := arrayOf[programFlowSamples](p.interpreter, programMapSampledFlows)[interpretedCPU].Taken; taken == 0 {
		t.Error("no packet was sampled")
	}
}

func (p *interpretedProgram) compareSets(t *testing.T) {
	t.Helper()
	sets := arrayOf[programFlowSet](p.interpreter, programMapFlowSets)
	records := arrayOf[programSetRecords](p.interpreter, programMapFlowRecords)
	for s := range sets {
		got := &sets[s]
		if got.Lock != 0 {
			t.Errorf("set %d is left locked", s)
		}
		want := p.model.table.Set(uint64(s))
		for way := range want {
			slot := want[way]
			if got.Tags[way] != slot.Tag || got.Marks[way] != slot.Mark || got.Slots[way].LastNs != slot.LastNs {
				t.Fatalf("set %d way %d: got tag %x, mark %x, %+v, want %+v", s, way, got.Tags[way], got.Marks[way], got.Slots[way], slot)
			}
			if err := p.model.compareSlot(&want[way], &got.Slots[way].Baseline, &records[s].Records[way]); err != nil {
				t.Fatalf("set %d way %d: %v", s, way, err)
			}
		}
	}
}

// compareEvents expects that the flags that no token entitles are suppressed, and that the others
// become events, as far as the rate limit allows.
func (p *interpretedProgram) compareEvents(t *testing.T, c *Counters) {
	t.Helper()
	m := p.model
	flagged := m.outcomes[OutcomeFlaggedEarly] + m.outcomes[OutcomeFlaggedLate]
	sent, limited := c.Fates[FateSent], c.Fates[FateRateLimit]
	if c.Fates[FateSuppressed] != flagged-m.events || sent+limited != m.events || sent != uint64(len(p.events)) {
		t.Fatalf("fates %v and %d events of %d flags, want %d", c.Fates, len(p.events), flagged, m.events)
	}
	if limited > 0 {
		return
	}
	for i, record := range p.events {
		event := (*programAuditEvent)(unsafe.Pointer(&record[0]))
		flag := flagOf(&event.Flag, p.config.params())
		flag.KtimeNs = 0 // the model has no such clock
		if flag != m.flags[i] || event.Key.Owner != m.owner {
			t.Fatalf("event %d: got %+v of owner %#x, want %+v", i, flag, event.Key.Owner, m.flags[i])
		}
	}
}

// The program in the interpreter agrees with the model to the bit for all kinds of traffic, in each
// domain and scope.
func TestInterpretedProgramEqualsModel(t *testing.T) {
	const packets = 2000
	for _, domain := range []Domain{DomainLinear, DomainLog2} {
		for _, scope := range []Scope{BaselineFlow, BaselineDevice} {
			for seed, kind := range kindsOfTraffic {
				clip := []float64{0, 1, 1.75, 1.8, 4}[seed%5]
				t.Run(fmt.Sprintf("%s, by %s, clip %v: %s", domain, scope, clip, kind.name), func(t *testing.T) {
					config := testConfig()
					config.Domain, config.Baseline, config.Clip = domain, scope, clip
					config.Window, config.Calibrate, config.EventRate = 256, 0.1, MaxEventRate
					p := newInterpretedProgram(t, config, longestFrame, netdev.LinkEthernet)
					r := rand.New(rand.NewPCG(uint64(seed), 1))
					now := uint64(1e12)
					for i := range packets {
						now += uint64(min(max(0, math.Round(kind.next(i, r))), 1e10))
						p.send(t, udpFrame(), now)
					}
					p.compare(t)
				})
			}
		}
	}
}

// Random frames, most of them damaged, agree with the model as well, also where a frame has several
// buffers.
func TestInterpretedFramesEqualModel(t *testing.T) {
	const frames = 30_000
	config := testConfig()
	config.Threshold, config.MinSamples, config.Window, config.Flows, config.EventRate = 2, 10, 64, 4096, MaxEventRate
	for layer := range uint32(linkLayerStripped + 1) {
		link := netdev.LinkLayer(layer)
		if layer == linkLayerStripped {
			link = netdev.LinkEthernet
		}
		p := newInterpretedProgramOn(t, config, 3000, link, layer)
		r := rand.New(rand.NewPCG(7, 7))
		maker := newFrameMaker(r, link)
		now := uint64(1e12)
		for range frames {
			now += uint64(1e4 * r.ExpFloat64())
			atNs := now
			switch r.IntN(500) {
			case 0:
				atNs = 0 // no metadata
			case 1:
				atNs -= r.Uint64N(1e8)
			}
			if layer == linkLayerStripped {
				p.strip(uint16(r.IntN(3) * r.IntN(1<<16)))
			}
			p.send(t, maker.next(), atNs)
		}
		p.compare(t)
	}
}
