// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// injector sends many packets of one flow through the program, at given times, in one system call.
type injector struct {
	program *ebpf.Program
	times   *ebpf.Memory
	packet  *ebpf.Variable
	now     uint64
}

func newInjector(t *testing.T, p *probe, packets int) *injector {
	t.Helper()
	spec, err := loadBench()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.maps.configure(spec, p.config, p.maps.devices.identity(0)); err != nil {
		t.Fatal(err)
	}
	spec.Maps[benchMapBenchInjected].MaxEntries = uint32(packets)
	for name, program := range spec.Programs {
		dropMetadataCalls(program)
		if name != benchProgBenchAuditInjected {
			delete(spec.Programs, name)
		}
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: p.maps.byName})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(collection.Close)
	times, err := collection.Maps[benchMapBenchInjected].Memory()
	if err != nil {
		t.Fatal(err)
	}
	return &injector{collection.Programs[benchProgBenchAuditInjected], times, collection.Variables[benchVarBenchPacket], 1e12}
}

// send sends one packet after each delta.
func (in *injector) send(t *testing.T, deltas []uint64) {
	t.Helper()
	buffer := make([]byte, 0, 8*len(deltas))
	for _, delta := range deltas {
		in.now += delta
		buffer = binary.NativeEndian.AppendUint64(buffer, in.now)
	}
	if _, err := in.times.WriteAt(buffer, 0); err != nil {
		t.Fatal(err)
	}
	if err := in.packet.Set(uint64(0)); err != nil {
		t.Fatal(err)
	}
	frame := append(make([]byte, metadataBytes), udpFrame()...)
	verdict, err := in.program.Run(&ebpf.RunOptions{
		Data: frame, Context: xdpContext{Data: metadataBytes, DataEnd: uint32(len(frame))}, Repeat: uint32(len(deltas)),
	})
	if err != nil || verdict != xdpPass {
		t.Fatalf("verdict %d and error %v of the last of %d packets, want XDP_PASS", verdict, err, len(deltas))
	}
}

// rounded returns deltas in whole nanoseconds, between 0 and 0.9 s.
func rounded(packets int, next func() float64) []uint64 {
	deltas := make([]uint64, packets)
	for i := range deltas {
		deltas[i] = uint64(math.Round(min(max(0, next()), 9e8)))
	}
	return deltas
}

// On every kind of traffic, few packets become events, but some do, however many packets are
// flagged.
func TestEventsAreRareOnAnyTraffic(t *testing.T) {
	const training, packets = 500_000, 1_000_000
	for seed, kind := range []struct {
		name string
		next func(r *rand.Rand) func() float64
	}{
		{"constant", func(r *rand.Rand) func() float64 { return func() float64 { return 1e6 + 20e3*r.NormFloat64() } }},
		{"exponential", func(r *rand.Rand) func() float64 { return func() float64 { return 1e5 * r.ExpFloat64() } }},
		{"lognormal 1", func(r *rand.Rand) func() float64 { return func() float64 { return 1e5 * math.Exp(r.NormFloat64()) } }},
		{"Pareto 1.5", func(r *rand.Rand) func() float64 {
			return func() float64 { return 1e4 * math.Pow(1-r.Float64(), -1/1.5) }
		}},
		{"Pareto 2.5", func(r *rand.Rand) func() float64 {
			return func() float64 { return 1e4 * math.Pow(1-r.Float64(), -1/2.5) }
		}},
		{"bursts and pauses", func(r *rand.Rand) func() float64 {
			return func() float64 {
				if r.IntN(20) == 0 {
					return 1e7 * r.ExpFloat64()
				}
				return 1e4 * r.ExpFloat64()
			}
		}},
		{"AR(1) of 0.9", func(r *rand.Rand) func() float64 {
			z := 0.0
			return func() float64 {
				z = 0.9*z + math.Sqrt(1-0.81)*r.NormFloat64()
				return 1e6 + 20e3*z
			}
		}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			p := newProbe(t, testConfig())
			next := kind.next(rand.New(rand.NewPCG(uint64(seed), 7)))
			in := newInjector(t, p, packets)
			in.send(t, rounded(training, next))
			before := p.Counters()[0]
			in.send(t, rounded(packets, next))
			after := p.Counters()[0]
			known := p.block.Calibration.known()
			checkTails(t, &known)

			flags := after.Packets.Outcome(OutcomeFlaggedEarly) + after.Packets.Outcome(OutcomeFlaggedLate) -
				before.Packets.Outcome(OutcomeFlaggedEarly) - before.Packets.Outcome(OutcomeFlaggedLate)
			suppressed := after.Fates[FateSuppressed] - before.Fates[FateSuppressed]
			events := float64(flags-suppressed) / packets
			t.Logf("flagged %.2g of the packets, events for %.2g; from |t| = %.1f on, early from %.1f",
				float64(flags)/packets, events, after.Calibration.EventScores[timing.SideLate], after.Calibration.EventScores[timing.SideEarly])
			if after.Packets.Judged()-before.Packets.Judged() != packets {
				t.Fatalf("%d packets were scored, want %d", after.Packets.Judged()-before.Packets.Judged(), packets)
			}
			if events > 2.5e-4 || events < 1e-5 {
				t.Errorf("events for %.2g of the packets, want 1e-5 to 2.5e-4", events)
			}
			if got := after.Calibration; got.Judged == 0 || got.LearningCPUs != 0 {
				t.Errorf("calibration: got %+v, want one that has learned on this CPU", got)
			}
		})
	}
}

// checkTails compares the counts of the tails with the bins.
func checkTails(t *testing.T, c *timing.Calibration) {
	t.Helper()
	for side, scores := range c.Scores {
		tail := uint32(0)
		for _, n := range scores[c.Cuts[side]:] {
			tail += n
		}
		if tail != c.Tails[side] || tail > c.Allowed+1 { // a score may be newer than the cut
			t.Errorf("side %d: the tail from bin %d on has %d scores, its count is %d, and %d are allowed", side, c.Cuts[side], tail, c.Tails[side], c.Allowed)
		}
	}
}

// All delays of at least eight standard deviations, in one of 100,000 packets, become events.
func TestRareDelaysBecomeEvents(t *testing.T) {
	const training, packets, every, deviation = 500_000, 2_000_000, 100_000, 20e3
	config := testConfig()
	config.EventRate = MaxEventRate
	p := newProbe(t, config)
	r := rand.New(rand.NewPCG(8, 8))
	in := newInjector(t, p, packets)
	steady := func() float64 { return 1e6 + deviation*r.NormFloat64() }
	in.send(t, rounded(training, steady))
	p.readAll(t)
	deltas := rounded(packets, steady)
	planted := map[uint64]bool{}
	for i := every / 2; i < packets; i += every {
		deltas[i] += uint64((8 + 4*r.Float64()) * deviation) // delays all later packets, too
		planted[deltas[i]] = true
	}
	in.send(t, deltas)
	others := 0
	for _, event := range p.readAll(t) {
		if !planted[event.DeltaNs] {
			others++
		}
		delete(planted, event.DeltaNs)
	}
	t.Logf("events for %.2g of the packets that were not planted", float64(others)/packets)
	if len(planted) > 0 {
		t.Errorf("%d of %d planted delays became no event", len(planted), packets/every)
	}
	if float64(others)/packets > 2.5e-4 {
		t.Errorf("%d events of packets that were not planted", others)
	}
}

// A program that takes over the maps keeps the scores, also with another Config.Calibrate. It
// discards them if their threshold differs, or if a program without calibration had the maps
// meanwhile, because the scores then lack the packets that this program flagged.
func TestTakenOverScores(t *testing.T) {
	const packets = 60_000
	for _, test := range []struct {
		name    string
		between func(*Config) // for the program in between; nil for none
		then    func(*Config) // for the program that takes over
		isKept  bool
	}{
		{"the same", nil, func(*Config) {}, true},
		{"another share", nil, func(c *Config) { c.Calibrate = 1e-2 }, true},
		{"another threshold", nil, func(c *Config) { c.Threshold = 3 }, false},
		{"no calibration meanwhile", func(c *Config) { c.Calibrate = 0 }, func(*Config) {}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newProbe(t, testConfig())
			r := rand.New(rand.NewPCG(9, 9))
			exponential := func() float64 { return 1e5 * r.ExpFloat64() }
			in := newInjector(t, p, packets)
			in.send(t, rounded(packets, exponential))
			judged := p.Counters()[0].Calibration.Judged
			for _, change := range []func(*Config){test.between, test.then} {
				if change == nil {
					continue
				}
				p.config = testConfig()
				change(&p.config)
				now := in.now
				in = newInjector(t, p, packets)
				in.now = now
				in.send(t, rounded(packets, exponential))
			}
			known := p.block.Calibration.known()
			checkTails(t, &known)
			flagged := p.Counters()[0].Packets.Outcome(OutcomeFlaggedEarly) + p.Counters()[0].Packets.Outcome(OutcomeFlaggedLate)
			scores := uint64(0)
			for _, n := range known.Scores[timing.SideLate] {
				scores += uint64(n)
			}
			for _, n := range known.Scores[timing.SideEarly] {
				scores += uint64(n)
			}
			// A score stands for eight at random, so that kept scores add up to the flagged
			// packets except for chance. Scores that were discarded lack at least half of them.
			areAll := math.Abs(float64(scores)-float64(flagged)) < 0.1*float64(flagged)
			if isKept := known.Forgotten == 0; isKept != test.isKept || areAll != test.isKept || known.Flagged != flagged {
				t.Errorf("%d scores of %d flagged packets, %d by their count; %d of %d scored packets are forgotten",
					scores, flagged, known.Flagged, known.Forgotten, judged)
			}
		})
	}
}

// The calibration of several CPUs has the sum of their packets and the highest of their cuts.
func TestCalibrationOfSeveralCPUs(t *testing.T) {
	params := DefaultConfig().params()
	var c calibrationSum
	c.add(params, &programCalibration{}, 0) // has never scored a packet
	if got, want := c.result(params), (Calibration{EventScores: [2]float64{4, 4}}); *got != want {
		t.Errorf("without a packet: got %+v, want %+v", got, want)
	}
	c.add(params, &programCalibration{Cuts: [2]uint32{64, 64}}, 19_999) // still learns
	c.add(params, &programCalibration{Forgotten: 10_000, Cuts: [2]uint32{0, 32}}, 50_000)
	c.add(params, &programCalibration{Cuts: [2]uint32{0, 16}}, 20_001)
	if got, want := c.result(params), (Calibration{Judged: 80_000, LearningCPUs: 1, EventScores: [2]float64{4, 8}}); *got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	c.add(params, &programCalibration{Cuts: [2]uint32{timing.ScoreBins}}, 1_000_000)
	if got := c.result(params); !math.IsInf(got.EventScores[timing.SideEarly], 1) {
		t.Errorf("no early packet is rare: got %+v", got)
	}
}

// The lowest bin has no lower bound, so a score far below it is in the tail that begins with
// it. Only a threshold below 1 flags such packets, and only with an M2 of 2⁶⁴ or more could the
// shift of the bins go wrong.
func TestNoScoreIsBelowCutZero(t *testing.T) {
	config := testConfig()
	config.Threshold = 0
	p := newProbe(t, config)
	now := p.learn(t, udpFrame())
	p.teach(t, timing.State{N: 8192, MeanQ16: 1e8 << 16, M2: Uint128{Hi: 16}})
	before := p.Counters()[0]
	flagged := before.Packets.Outcome(OutcomeFlaggedEarly) + before.Packets.Outcome(OutcomeFlaggedLate)
	// A million packets were scored, so that 49 scores are allowed: more than there are.
	p.update(t, func(block *programDeviceCounters) {
		block.Calibration = programCalibration{Flagged: flagged, Forgotten: before.Packets.Judged() - 1e6}
	})
	run(t, p.program(0), udpFrame(), now+1e8+1000, 1)
	known := p.block.Calibration.known()
	if known.Allowed != 49 || known.Cuts != [2]uint32{} || known.Tails != [2]uint32{timing.SideLate: 1} {
		t.Errorf("%d scores are allowed, the cuts are %v and the tails %v; want 49, zero and one on the late side",
			known.Allowed, known.Cuts, known.Tails)
	}
	if suppressed := p.Counters()[0].Fates[FateSuppressed] - before.Fates[FateSuppressed]; suppressed != 0 {
		t.Error("the packet was treated as below the tail")
	}
}
