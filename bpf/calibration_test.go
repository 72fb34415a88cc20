// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
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
	verdict, err := runToTheEnd(in.program, &ebpf.RunOptions{
		Data: frame, Context: xdpContext{Data: metadataBytes, DataEnd: uint32(len(frame))}, Repeat: uint32(len(deltas)),
	})
	if err != nil || verdict != xdpPass {
		t.Fatalf("verdict %d and error %v of the last of %d packets, want XDP_PASS", verdict, err, len(deltas))
	}
}

// Signals do not repeat the packets of a run.
func TestInjectedPacketsAreSentOnce(t *testing.T) {
	const packets = 500_000
	p := newProbe(t, testConfig())
	in := newInjector(t, p, 2*packets)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread, ended := unix.Gettid(), make(chan struct{})
	var signals sync.WaitGroup
	signals.Go(func() {
		for range 50 {
			_ = unix.Tgkill(unix.Getpid(), thread, unix.SIGURG) // by which Go preempts
			select {
			case <-ended:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	in.send(t, rounded(packets, func() float64 { return 1e6 }))
	close(ended)
	signals.Wait()
	if got := sumOf(&p.Counters()[0].Packets); got != packets {
		t.Errorf("the program counted %d packets, want %d", got, packets)
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
// flagged. In no block of packets are there more than a flow may earn.
func TestEventsAreRareOnAnyTraffic(t *testing.T) {
	const training, block, blocks = 500_000, 100_000, 10
	for seed, kind := range []struct {
		name string
		next func(r *rand.Rand) func() float64
	}{
		{"constant", func(r *rand.Rand) func() float64 { return func() float64 { return 1e6 + 20e3*r.NormFloat64() } }},
		{"exponential", func(r *rand.Rand) func() float64 { return func() float64 { return 1e5 * r.ExpFloat64() } }},
		{"lognormal 1.5", func(r *rand.Rand) func() float64 {
			return func() float64 { return 1e5 * math.Exp(1.5*r.NormFloat64()) }
		}},
		{"Pareto 1.1", func(r *rand.Rand) func() float64 {
			return func() float64 { return 1e4 * math.Pow(1-r.Float64(), -1/1.1) }
		}},
		{"bursts and pauses", func(r *rand.Rand) func() float64 {
			return func() float64 {
				if r.IntN(20) == 0 {
					return 1e7 * r.ExpFloat64()
				}
				return 1e4 * r.ExpFloat64()
			}
		}},
		{"ticks, one in 50 missed", func(r *rand.Rand) func() float64 {
			return func() float64 { return 4e6 * (1 + float64(b2i(r.IntN(50) == 0))) }
		}},
		{"outliers that rise", func(r *rand.Rand) func() float64 {
			i := 0.0
			return func() float64 {
				i++
				return 1e6 + 1e3*r.NormFloat64() + float64(b2i(r.IntN(20) == 0))*5e3*math.Pow(1e5, i/1.5e6)
			}
		}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			config := testConfig()
			config.EventRate = MaxEventRate
			p := newProbe(t, config)
			next := kind.next(rand.New(rand.NewPCG(uint64(seed), 7)))
			in := newInjector(t, p, training)
			in.send(t, rounded(training, next))
			start := p.Counters()[0]
			before, worst := start, uint64(0)
			for range blocks {
				in.send(t, rounded(block, next))
				after := p.Counters()[0]
				worst = max(worst, after.Decisions[DecisionEarned]-before.Decisions[DecisionEarned])
				before = after
			}
			earned := before.Decisions[DecisionEarned] - start.Decisions[DecisionEarned]
			t.Logf("%d events were earned, %d in the worst block; decisions %v", earned, worst, before.Decisions)
			// 1e-4 of the packets, and the 8 that a flow may have saved.
			if worst > 10+8 || earned < 10 || earned > 100+8 {
				t.Errorf("%d events were earned, want 10 to 108; %d in one block, want at most 18", earned, worst)
			}
			flags := before.Packets.Outcome(OutcomeFlaggedEarly) + before.Packets.Outcome(OutcomeFlaggedLate)
			if d := before.Decisions; d[DecisionEarned]+d[DecisionUnearned]+d[DecisionCommon]+d[DecisionNoToken] != flags {
				t.Errorf("%d flags have the decisions %v", flags, d)
			}
		})
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

// crowd sends packets of many flows.
type crowd struct {
	p      *probe
	lastNs map[int]uint64
}

// send sends the next packet of a flow, after a delta.
func (c *crowd) send(t *testing.T, flow int, deltaNs uint64) {
	t.Helper()
	if c.lastNs[flow] == 0 {
		c.lastNs[flow] = 1e12
	}
	c.lastNs[flow] += deltaNs
	run(t, c.p.program(0), newTestFlow(flow).frame, c.lastNs[flow], 1)
}

// learn lets a flow learn 1 ms ± 10 µs from that many packets.
func (c *crowd) learn(t *testing.T, flow, packets int) {
	t.Helper()
	for i := range packets {
		c.send(t, flow, 990_000+20_000*uint64(i%2))
	}
}

// A flow's first eight flags become events whatever other flows do: one that trained the program
// with a hundred flags of higher scores, and one that has used up its own events.
func TestOtherFlowsTakeNoEvents(t *testing.T) {
	p := newProbe(t, testConfig())
	c := crowd{p, map[int]uint64{}}
	const victim, attacker = 1, 2
	c.learn(t, victim, 1000)
	c.learn(t, attacker, 1000)
	for range 100 {
		c.send(t, attacker, 900_000_000)
		c.learn(t, attacker, 200)
	}
	before := p.Counters()[0]
	for i := range 10 {
		c.send(t, victim, 1_200_000)
		c.learn(t, victim, 10)
		after := p.Counters()[0]
		isEvent := after.Fates[FateSuppressed] == before.Fates[FateSuppressed]
		if before = after; isEvent != (i < 8) {
			t.Errorf("flag %d of the victim: event is %v; fates %v", i, isEvent, after.Fates)
		}
	}
}

// New flows use at most half of the event rate: the other half is there for flows that have earned
// their events. An event that the rate limit refuses costs no token.
func TestNewFlowsLeaveHalfOfTheRate(t *testing.T) {
	config := testConfig()
	config.Calibrate, config.EventRate = 0.1, 20
	p := newProbe(t, config)
	c := crowd{p, map[int]uint64{}}
	const old, flows = 0, 50
	c.learn(t, old, 1000) // has earned eight events
	for flow := 1; flow <= flows; flow++ {
		c.learn(t, flow, int(config.MinSamples)+1)
	}
	counts := func() (sent, limited uint64) {
		fates := p.Counters()[0].Fates
		return fates[FateSent], fates[FateRateLimit]
	}
	begin := time.Now()
	for range 4 {
		for flow := 1; flow <= flows; flow++ {
			c.send(t, flow, 1_500_000)
		}
	}
	seconds := time.Since(begin).Seconds()
	sent, limited := counts()
	if most := 10 + uint64(10*seconds) + 1; sent < 10 || sent > most || sent+limited != 4*flows {
		t.Errorf("%d of %d flags of new flows were sent and %d limited, want 10 to %d", sent, 4*flows, limited, most)
	}
	for range 8 {
		c.send(t, old, 1_500_000)
		c.learn(t, old, 1)
	}
	if now, _ := counts(); now != sent+8 {
		t.Errorf("%d of 8 flags of an old flow were sent; fates %v", now-sent, p.Counters()[0].Fates)
	}
	for i := range p.records {
		for way, r := range p.records[i].Records {
			if spent := int64(r.UnearnedAtNs-1e12)/450e9 + 8; r.Tag != 0 && spent > 4 {
				t.Errorf("set %d way %d: spent %d unearned tokens on at most four events", i, way, spent)
			}
		}
	}
	if got := p.Counters()[0].Decisions; got[DecisionUnearned] != sent || got[DecisionEarned] != 8 {
		t.Errorf("decisions %v, want %d and 8 events", got, sent)
	}
}

// A program that takes over the maps keeps the records, also with another Config.Calibrate or
// threshold, or if a program without calibration had the maps meanwhile.
func TestRecordsOutliveTheProgram(t *testing.T) {
	const packets = 60_000
	for _, test := range []struct {
		name    string
		between func(*Config) // for the program in between; nil for none
		then    func(*Config) // for the program that takes over
	}{
		{"the same", nil, func(*Config) {}},
		{"another share", nil, func(c *Config) { c.Calibrate = 1e-2 }},
		{"a lower threshold", nil, func(c *Config) { c.Threshold = 3 }},
		{"a higher threshold", nil, func(c *Config) { c.Threshold = 8 }},
		{"no calibration meanwhile", func(c *Config) { c.Calibrate = 0 }, func(*Config) {}},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := testConfig()
			config.EventRate = MaxEventRate
			p, m := newProbe(t, config), newModel(config)
			r := rand.New(rand.NewPCG(9, 9))
			in := newInjector(t, p, packets)
			for i, change := range []func(*Config){func(*Config) {}, test.between, test.then} {
				if change == nil {
					continue
				}
				if i > 0 {
					p.config = config
					change(&p.config)
					m.params = p.config.params()
					now := in.now
					in = newInjector(t, p, packets)
					in.now = now
				}
				deltas := rounded(packets, func() float64 { return 1e5 * r.ExpFloat64() })
				at := in.now
				in.send(t, deltas)
				for _, delta := range deltas {
					at += delta
					m.observe(at)
				}
				slot := p.onlySlot(t)
				if got := p.recordOf(slot).model(&slot.Baseline); got != m.record {
					t.Fatalf("program %d: got %+v, want %+v", i, got, m.record)
				}
				p.compareDecisions(t, m)
			}
			if m.decisions[DecisionEarned] == 0 || m.decisions[DecisionCommon] == 0 {
				t.Errorf("decisions %v", m.decisions)
			}
		})
	}
}

// A storm of flags that earns more events than the rate allows is suppressed, and few of its flags
// ask for the rate: a common flag costs its surplus token also if it is refused.
func TestStormAboveTheRateIsSuppressed(t *testing.T) {
	const packets = 100_000
	config := testConfig()
	config.Threshold, config.Calibrate, config.EventRate = 0, 0.01, 20
	p := newProbe(t, config)
	r := rand.New(rand.NewPCG(4, 4))
	newInjector(t, p, packets).send(t, rounded(packets, func() float64 { return 1e6 + 20e3*r.NormFloat64() }))
	fates := p.Counters()[0].Fates
	if fates[FateSuppressed] < packets*95/100 || fates[FateRateLimit] < packets/200 {
		t.Errorf("of %d flags, %d were suppressed and %d limited", packets, fates[FateSuppressed], fates[FateRateLimit])
	}
}
