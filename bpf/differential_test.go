// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// probe gives access to the maps of a loaded audit whose program runs on one CPU.
type probe struct {
	*Audit
	block   *programDeviceCounters // of device 0 on this CPU
	sets    []programFlowSet
	records []programSetRecords
}

// newProbe loads an audit and pins the test to one CPU.
func newProbe(t testing.TB, config Config) *probe {
	t.Helper()
	return newProbeOn(t, config, netdev.LinkEthernet)
}

// newProbeOn is newProbe for a device with a link layer.
func newProbeOn(t testing.TB, config Config, link netdev.LinkLayer) *probe {
	t.Helper()
	audit := loadTestOn(t, config, link)
	cpu := pinToCPU(t)
	return probeOn(t, audit, cpu)
}

// probeOn gives access to the maps of an audit whose program runs on a CPU.
func probeOn(t testing.TB, audit *Audit, cpu int) *probe {
	t.Helper()
	records := openTestArray[programSetRecords](t, audit.maps.byName[programMapFlowRecords], unix.PROT_READ).slice()
	return &probe{Audit: audit, block: &audit.counters.blocks[0][cpu], sets: mapSets(t, audit), records: records}
}

// recordOf returns the record of a slot.
func (p *probe) recordOf(slot *programFlowSlot) *programFlowRecord {
	for i := range p.sets {
		for way := range p.sets[i].Slots {
			if slot == &p.sets[i].Slots[way] {
				return &p.records[i].Records[way]
			}
		}
	}
	return nil
}

// mapSets maps the sets of the flow table until the test ends.
func mapSets(t testing.TB, audit *Audit) []programFlowSet {
	t.Helper()
	return openTestArray[programFlowSet](t, audit.maps.byName[programMapFlowSets], unix.PROT_READ).slice()
}

// pinToCPU pins the test to the first CPU that it may run on, and returns the id of this CPU.
func pinToCPU(t testing.TB) int {
	t.Helper()
	runtime.LockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.SchedSetaffinity(0, &before); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
	for cpu := range 1024 {
		if !before.IsSet(cpu) {
			continue
		}
		var one unix.CPUSet
		one.Set(cpu)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			t.Fatal(err)
		}
		return cpu
	}
	t.Fatal("no CPU to run on")
	return 0
}

// onlySlot returns the slot of the only flow in the table.
func (p *probe) onlySlot(t testing.TB) *programFlowSlot {
	t.Helper()
	var found *programFlowSlot
	for i := range p.sets {
		for way, tag := range p.sets[i].Tags {
			if tag == 0 {
				continue
			}
			if found != nil {
				t.Fatal("more than one flow in the table")
			}
			found = &p.sets[i].Slots[way]
		}
	}
	if found == nil {
		t.Fatal("no flow in the table")
	}
	return found
}

// deltas is a kind of traffic. Each call of next returns the next delta in nanoseconds.
type deltas struct {
	name string
	next func(i int, r *rand.Rand) float64
}

var kindsOfTraffic = []deltas{
	{"steady 1 ms with sd 20 µs", func(_ int, r *rand.Rand) float64 { return 1e6 + 20e3*r.NormFloat64() }},
	{"steady 1 ms with sd 5 ns", func(_ int, r *rand.Rand) float64 { return 1e6 + 5*r.NormFloat64() }},
	{"steady with outliers of 8 sd", func(i int, r *rand.Rand) float64 {
		return 1e6 + 20e3*r.NormFloat64() + 160e3*float64(b2i(i%100 == 0))
	}},
	{"constant", func(int, *rand.Rand) float64 { return 1e6 }},
	{"constant except for one in a thousand", func(i int, _ *rand.Rand) float64 { return 1e6 + 3*float64(b2i(i%1000 == 999)) }},
	{"exponential", func(_ int, r *rand.Rand) float64 { return 1e5 * r.ExpFloat64() }},
	{"lognormal", func(_ int, r *rand.Rand) float64 { return 1e5 * math.Exp(r.NormFloat64()) }},
	{"Pareto 1.5", func(_ int, r *rand.Rand) float64 { return 1e4 * math.Pow(1-r.Float64(), -1/1.5) }},
	{"levels that shift", func(i int, r *rand.Rand) float64 {
		return []float64{1e6, 3e6, 1e6 / 3, 50, 2e8}[i/4000%5] * (1 + 0.02*r.NormFloat64())
	}},
	{"extremes in turn", func(i int, _ *rand.Rand) float64 { return []float64{0, timing.MaxDelta}[i%2] }},
	{"every magnitude", func(_ int, r *rand.Rand) float64 { return math.Exp2(r.Float64() * 32) }},
	{"small integers", func(_ int, r *rand.Rand) float64 { return float64(r.IntN(4)) }},
	{"sometimes beyond the idle timeout", func(i int, r *rand.Rand) float64 {
		return 1e6 + 1e4*r.NormFloat64() + 5e9*float64(b2i(i%500 == 0))
	}},
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// model computes the state that the program should have for one flow.
type model struct {
	params    timing.Params
	idleNs    uint64
	cuts      *[timing.LinearCells]uint32
	state     timing.State
	run       timing.Run // of the device
	restarts  uint64
	lastNs    uint64
	seen      bool
	outcomes  [NumOutcomes]uint64
	histogram timing.Histogram
	sums      DeltaSums

	scope     Scope
	record    timing.FlowRecord
	hasRecord bool
	deltas    uint64 // of the flow, if it has no baseline of its own
	decisions [NumDecisions]uint64
	events    uint64
}

func newModel(config Config) *model {
	return &model{params: config.params(), idleNs: uint64(config.IdleTimeout), cuts: timing.Cuts(), scope: config.Baseline}
}

func (m *model) observe(nowNs uint64) Outcome {
	outcome := m.outcome(nowNs)
	m.outcomes[outcome]++
	return outcome
}

func (m *model) outcome(nowNs uint64) Outcome {
	if !m.seen {
		m.seen, m.lastNs = true, nowNs
		return OutcomeNewFlow
	}
	if nowNs < m.lastNs {
		if m.lastNs-nowNs > m.idleNs { // the clock was set back
			m.lastNs = nowNs
		}
		return OutcomeReordered
	}
	delta := nowNs - m.lastNs
	m.lastNs = nowNs
	if delta > m.idleNs {
		return OutcomeIdleGap
	}
	m.countDelta(delta)
	samples := m.state.N
	m.deltas++
	decision, score := m.params.ObserveScore(&m.state, delta)
	if m.scope == BaselineFlow {
		m.record.CountHalving(samples, m.state.N)
	}
	if m.scope == BaselineDevice && m.params.DeviceRestarts(&m.run, &m.state, decision, delta, nowNs) {
		m.restarts++
	}
	switch decision {
	case timing.TooFewSamples:
		return OutcomeMinSamples
	case timing.Early:
		m.flag(timing.Flagged{Score: score, DeltaNs: delta, Samples: samples, NowNs: nowNs})
		return OutcomeFlaggedEarly
	case timing.Late:
		m.flag(timing.Flagged{Score: score, DeltaNs: delta, Samples: samples, NowNs: nowNs, IsLate: true})
		return OutcomeFlaggedLate
	default:
		return OutcomeJudged
	}
}

// beginRecord makes the record that of a flow without flags.
func (m *model) beginRecord(nowNs uint64) {
	halvings := m.record.Halvings
	m.record, m.hasRecord = timing.NewFlowRecord(nowNs), true
	m.record.Halvings = halvings
}

// flag records a flagged packet. The model has no rate limit.
func (m *model) flag(flag timing.Flagged) {
	if !m.hasRecord {
		m.beginRecord(flag.NowNs)
	}
	var token timing.Token
	if m.scope == BaselineFlow {
		restarts := false
		if token, restarts = m.params.Flag(&m.record, &m.state, flag); restarts {
			m.restarts++
		}
	} else {
		token = m.params.FlagAlone(&m.record, m.deltas, flag)
	}
	if m.params.Calibrate != 0 {
		m.decisions[map[timing.Token]Decision{
			timing.TokenEarned: DecisionEarned, timing.TokenSurplus: DecisionEarned, timing.TokenUnearned: DecisionUnearned,
			timing.NoTokenCommon: DecisionCommon, timing.NoTokenLeft: DecisionNoToken,
		}[token]]++
	}
	if token <= timing.TokenUnearned {
		m.params.Spend(&m.record, token, flag.NowNs)
		m.events++
	}
}

func (m *model) countDelta(delta uint64) {
	m.histogram[timing.Cell(delta, m.cuts)]++
	s := &m.sums
	if s.ReferenceNs == 0 {
		s.ReferenceNs = max(delta, 1)
	}
	distance := max(delta, s.ReferenceNs) - min(delta, s.ReferenceNs)
	if delta >= s.ReferenceNs {
		s.AboveNs = s.AboveNs.Add(Uint128{Lo: distance})
	} else {
		s.BelowNs = s.BelowNs.Add(Uint128{Lo: distance})
	}
	s.SquaredNs2 = s.SquaredNs2.Add(Uint128{Lo: distance * distance})
	s.TotalNs = s.TotalNs.Add(Uint128{Lo: delta})
}

// fewer returns n, or n/400 with -short, as on an emulated machine.
func fewer(n int) int {
	if testing.Short() {
		return n / 400
	}
	return n
}

// The program and the model of internal/timing have the same bits after every packet.
func TestProgramEqualsModel(t *testing.T) {
	perKind := fewer(80_000) // × 13 kinds: more than a million
	for seed, kind := range kindsOfTraffic {
		if testing.Short() && seed%4 != 0 {
			continue // on an emulated machine, loading the program takes a second
		}
		t.Run(kind.name, func(t *testing.T) {
			config := testConfig()
			config.IdleTimeout = timing.MaxDelta
			config.Window = 1024
			config.Calibrate = 0.01 // learns, forgets
			compareWithModel(t, config, kind, uint64(seed), perKind)
		})
	}
}

// variants are the combinations of domain and baseline scope other than the default.
var variants = []struct {
	domain Domain
	scope  Scope
}{{DomainLog2, BaselineFlow}, {DomainLinear, BaselineDevice}, {DomainLog2, BaselineDevice}}

// The program and the model agree in each variant.
func TestVariantsEqualModel(t *testing.T) {
	perKind := fewer(24_000) // × 13 kinds: more than 300,000 in each variant
	for _, v := range variants {
		for seed, kind := range kindsOfTraffic {
			t.Run(fmt.Sprintf("%s, by %s: %s", v.domain, v.scope, kind.name), func(t *testing.T) {
				config := testConfig()
				config.IdleTimeout = timing.MaxDelta
				config.Window = 1024
				config.Calibrate = 0.1 // learns, and forgets several times
				config.Domain, config.Baseline = v.domain, v.scope
				compareWithModel(t, config, kind, uint64(seed), perKind)
			})
		}
	}
}

// The program and the model agree at other settings.
func TestProgramEqualsModelAtOtherSettings(t *testing.T) {
	for _, change := range []func(*Config){
		func(c *Config) { c.Threshold = 2 },
		func(c *Config) { c.Threshold = 3.1 },
		func(c *Config) { c.Threshold = 1000 },
		func(c *Config) { c.Clip = 0 },
		func(c *Config) { c.Clip = 1 },
		func(c *Config) { c.Clip = 1.75 },
		func(c *Config) { c.Clip = 4 },
		func(c *Config) { c.Clip, c.Threshold = 16, 20 },
		func(c *Config) { c.Clip, c.Threshold = 5, 2 },
		func(c *Config) { c.Clip, c.Domain = 0, DomainLog2 },
		func(c *Config) { c.Clip, c.Domain = 1, DomainLog2 },
		func(c *Config) { c.Clip, c.Baseline = 0, BaselineDevice },
		func(c *Config) { c.Clip, c.Domain, c.Baseline = 4, DomainLog2, BaselineDevice },
		func(c *Config) { c.MinSamples, c.Window = 2, 2 },
		func(c *Config) { c.IdleTimeout = 1_000_000 },
		func(c *Config) { c.Calibrate = 0 },
		func(c *Config) { c.Threshold, c.Calibrate = 0, 0.1 },
		func(c *Config) { c.Domain, c.Threshold = DomainLog2, 2 },
		func(c *Config) { c.Domain, c.Threshold = DomainLog2, 1000 },
		func(c *Config) { c.Domain, c.MinSamples, c.Window = DomainLog2, 2, 2 },
		func(c *Config) { c.Domain, c.Baseline, c.MinSamples, c.Window = DomainLog2, BaselineDevice, 2, 2 },
	} {
		config := testConfig()
		change(&config)
		t.Run(fmt.Sprintf("%s, by %s, threshold %v, clip %v, %d samples, window %d, idle %v, calibrated at %v", config.Domain, config.Baseline,
			config.Threshold, config.Clip, config.MinSamples, config.Window, config.IdleTimeout, config.Calibrate),
			func(t *testing.T) {
				for seed, kind := range kindsOfTraffic {
					compareWithModel(t, config, kind, uint64(seed), 1000)
				}
			})
	}
}

// baseline returns the baseline that the packets of a flow are scored against.
func (p *probe) baseline(t *testing.T, slot *programFlowSlot) timing.State {
	t.Helper()
	if p.config.Baseline == BaselineFlow {
		return slot.Baseline.state()
	}
	if b := slot.Baseline; b.MeanQ16 != 0 || b.state().M2 != (Uint128{}) {
		t.Fatalf("the flow has a baseline of its own: %+v", b)
	}
	return p.block.Device.Baseline.state()
}

// lastFlag returns the last flag, the zero value before the first one.
func (p *probe) lastFlag() (flag Flag) {
	flag, _ = loadLastFlag(&p.block.LastFlag, p.config.params())
	return flag
}

// compareFlag compares the last flag with the baseline before the packet and the packet's delta.
func (p *probe) compareFlag(t *testing.T, before timing.State, deltaNs uint64, outcome Outcome) {
	t.Helper()
	flag := p.lastFlag()
	if flag.baseline() != before || flag.DeltaNs != deltaNs || flag.Late != (outcome == OutcomeFlaggedLate) {
		t.Fatalf("flag: got %+v, want %v with a delta of %d ns against %+v", flag, outcome, deltaNs, before)
	}
	if score := math.Abs(flag.Score()); score < p.config.Threshold*(1-1e-8) {
		t.Fatalf("flag %+v has |t| = %v, below the threshold", flag, score)
	}
}

// compareDecisions compares what was decided on flagged packets with the model.
func (p *probe) compareDecisions(t *testing.T, m *model) {
	t.Helper()
	flagged := m.outcomes[OutcomeFlaggedEarly] + m.outcomes[OutcomeFlaggedLate]
	b := p.block
	decisions := [NumDecisions]uint64{b.EarnedEvents, b.UnearnedEvents, b.Fates[FateSuppressed], b.Fates[fateNoToken]}
	if got, want := b.Fates[FateSuppressed]+b.Fates[fateNoToken], flagged-m.events; got != want || decisions != m.decisions {
		t.Fatalf("%d of %d flags were suppressed, want %d; decisions %v, want %v", got, flagged, want, decisions, m.decisions)
	}
}

// model returns the record, and what the slot's baseline has of it, as the model has them.
func (r *programFlowRecord) model(b *programBaseline) timing.FlowRecord {
	return timing.FlowRecord{
		N: r.N, Run: r.run(), Earned: r.EarnedQ32, UnearnedAt: r.UnearnedAtNs, Drift: r.DriftQ32,
		Cuts: r.CutsQ32, Halvings: b.M2High >> halvingsShift, IsBaseline: b.M2High&hasRecordBit != 0,
	}
}

func (r *programFlowRecord) run() timing.Run {
	return timing.Run{
		Packets: r.Run.Packets, IsLate: r.Run.IsLate != 0, Patience: r.Run.Patience,
		SinceNs: r.Level.SinceNs, Level: r.Level.Baseline.state(),
	}
}

func compareWithModel(t *testing.T, config Config, kind deltas, seed uint64, packets int) {
	t.Helper()
	config.EventRate = MaxEventRate // the model has no limit
	p := newProbe(t, config)
	m := newModel(config)
	r := rand.New(rand.NewPCG(seed, 1))
	frame := udpFrame()
	now := uint64(1e12)
	var slot *programFlowSlot
	var record *programFlowRecord
	var flag Flag
	for i := range packets {
		now += uint64(min(max(0, math.Round(kind.next(i, r))), 1e10))
		at := now
		if r.IntN(200) == 0 {
			at -= min(now, r.Uint64N(1e6)) // the clock steps back for one packet
		}
		before, lastNs := m.state, m.lastNs
		want := m.observe(at)
		run(t, p.program(0), frame, at, 1)
		if slot == nil {
			slot = p.onlySlot(t)
			record = p.recordOf(slot)
		}
		if got := record.model(&slot.Baseline); got != m.record {
			t.Fatalf("packet %d, %v: got %+v, want %+v", i, want, got, m.record)
		}
		if got := p.baseline(t, slot); got != m.state || slot.LastNs != m.lastNs {
			t.Fatalf("packet %d: got %+v last %d, want %+v last %d", i, got, slot.LastNs, m.state, m.lastNs)
		}
		if want == OutcomeFlaggedEarly || want == OutcomeFlaggedLate {
			p.compareFlag(t, before, at-lastNs, want)
			p.compareDecisions(t, m)
			flag = p.lastFlag()
		} else if got := p.lastFlag(); got != flag {
			t.Fatalf("packet %d, expected to be %v: the last flag is %+v, want the flag before, %+v", i, want, got, flag)
		}
		got := p.block.Protocols[FamilyIPv4][ProtocolUDP].Packets[:NumOutcomes]
		if [NumOutcomes]uint64(got) != m.outcomes {
			t.Fatalf("packet %d, expected to be %v: outcomes %v, want %v", i, want, got, m.outcomes)
		}
	}
	counters := p.Counters()[0]
	if counters.Restarts != m.restarts {
		t.Errorf("%d restarts, want %d", counters.Restarts, m.restarts)
	}
	if counters.Histogram != m.histogram {
		t.Error("histograms differ")
	}
	if counters.Sums != m.sums {
		t.Errorf("sums: got %+v, want %+v", counters.Sums, m.sums)
	}
	if got, want := counters.Bytes[FamilyIPv4][ProtocolUDP], uint64(packets*len(frame)); got != want {
		t.Errorf("bytes: got %d, want %d", got, want)
	}
}
