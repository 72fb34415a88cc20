// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// deviceConfig scores against the baseline of the device. No baseline reaches its window or
// clips a delta, because clipping depends on the samples of each CPU.
func deviceConfig(domain Domain) Config {
	config := testConfig()
	config.Domain, config.Baseline = domain, BaselineDevice
	config.MinSamples, config.Window, config.IdleTimeout = timing.MaxWindow, timing.MaxWindow, timing.MaxDelta
	return config
}

// With packets of several flows on two CPUs, each CPU has the model's baseline of its own
// packets. The merged baseline is that of all packets except for rounding: each step rounds the
// mean by up to half of 2⁻¹⁶ units, and these errors add up like random numbers.
func TestBaselinesOfTwoCPUsAreMerged(t *testing.T) {
	const packets = 20_000
	for _, domain := range []Domain{DomainLinear, DomainLog2} {
		t.Run(string(domain), func(t *testing.T) {
			config := deviceConfig(domain)
			cpus := twoCPUs(t)
			p := newProbe(t, config)
			params := config.params()
			var whole timing.State
			parts := map[int]*timing.State{cpus[0]: {}, cpus[1]: {}}
			r := rand.New(rand.NewPCG(1, 1))
			flows, last := make([]testFlow, 5), make([]uint64, 5)
			for i := range flows {
				flows[i] = newTestFlow(i)
			}
			now := uint64(1e12)
			for i := range packets {
				if i%50 == 0 {
					if err := moveTo(cpus[i/50%2]); err != nil {
						t.Fatal(err)
					}
				}
				now += uint64(1e6 * math.Exp(0.3*r.NormFloat64()))
				f := r.IntN(len(flows))
				if last[f] > 0 {
					params.Observe(&whole, now-last[f])
					params.Observe(parts[cpus[i/50%2]], now-last[f])
				}
				last[f] = now
				run(t, p.program(0), flows[f].frame, now, 1)
			}
			for cpu, want := range parts {
				block := &p.counters.blocks[0][cpu].Device
				if got := block.Baseline.state(); got != *want {
					t.Errorf("CPU %d: got %+v, want %+v", cpu, got, *want)
				}
				if block.Sequence%2 != 0 || block.Sequence != 2*want.N {
					t.Errorf("CPU %d: sequence %d after %d samples", cpu, block.Sequence, want.N)
				}
			}
			got := p.Counters()[0].Baseline
			if merged := timing.Merge([]timing.State{*parts[cpus[0]], *parts[cpus[1]]}); got == nil || got.state() != merged || got.Domain != domain {
				t.Fatalf("got %+v, want %+v", got, merged)
			}
			if got.Samples != whole.N {
				t.Errorf("%d samples, want %d", got.Samples, whole.N)
			}
			if off := math.Abs(float64(got.MeanQ16) - float64(whole.MeanQ16)); off > math.Sqrt(packets) {
				t.Errorf("mean: off by %v · 2⁻¹⁶ units", off)
			}
			if ratio := got.StandardDeviation() / math.Sqrt(params.Variance(whole)); math.Abs(ratio-1) > 1e-6 {
				t.Errorf("standard deviation: off by %g", ratio-1)
			}
		})
	}
}

// Two CPUs continuously receive packets of their own flows while the baseline is read. No
// sample is lost, and the number of samples never decreases.
func TestBaselineIsReadUnderTraffic(t *testing.T) {
	for _, domain := range []Domain{DomainLinear, DomainLog2} {
		t.Run(string(domain), func(t *testing.T) {
			config := deviceConfig(domain)
			config.Clock = ClockKtime
			audit := loadTest(t, config)
			program := audit.program(0)
			var next atomic.Int64
			ended, read := make(chan struct{}), make(chan error, 1)
			go func() { read <- readBaselines(audit, ended) }()
			onEachCPU(t, hammerTime/5, func() error {
				_, _, err := program.Benchmark(newTestFlow(int(next.Add(1)%2)).frame, 20_000, nil)
				return err
			})
			close(ended)
			if err := <-read; err != nil {
				t.Error(err)
			}
			c := audit.Counters()[0]
			t.Logf("%d samples, mean %.1f ns, standard deviation %.3g", c.Baseline.Samples, c.Baseline.MeanNs(), c.Baseline.StandardDeviation())
			deltas := c.Packets.Deltas()
			// Each halving removes one window of samples.
			if deltas == 0 || (deltas-c.Baseline.Samples)%timing.MaxWindow != 0 {
				t.Errorf("%d samples of %d deltas", c.Baseline.Samples, deltas)
			}
			mean := c.Sums.TotalNs.Float64() / float64(deltas)
			// A step rounds by at most half of 2⁻¹⁶ ns. If all n steps round in one direction,
			// n/4 · 2⁻¹⁶ ns are left.
			tolerance := float64(deltas) / 4 * 0x1p-16
			if domain == DomainLinear && c.Baseline.Samples == deltas && math.Abs(c.Baseline.MeanNs()-mean) > tolerance {
				t.Errorf("mean %v ns, want %v ± %v", c.Baseline.MeanNs(), mean, tolerance)
			}
		})
	}
}

// readBaselines reads the baseline of a device until ended is closed.
func readBaselines(audit *Audit, ended <-chan struct{}) error {
	var before Baseline
	for {
		got := *audit.Counters()[0].Baseline
		if got.Samples < before.Samples && before.Samples < timing.MaxWindow {
			return fmt.Errorf("%d samples after %d", got.Samples, before.Samples)
		}
		if mean, deviation := got.MeanNs(), got.StandardDeviation(); mean < 0 || mean > timing.MaxDelta || math.IsNaN(deviation) {
			return fmt.Errorf("mean %v ns, standard deviation %v", mean, deviation)
		}
		before = got
		select {
		case <-ended:
			return nil
		default:
		}
	}
}

// While a writer is active, each baseline that is read was complete at some time. If the writer
// stops in the middle of a write, the last baseline remains.
func TestBaselineIsReadAtomically(t *testing.T) {
	var block programDeviceBaseline
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for n := uint32(1); ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			atomic.AddUint64(&block.Sequence, 1)
			atomic.StoreUint64(&block.Baseline.MeanQ16, uint64(n)*3)
			atomic.StoreUint64(&block.Baseline.M2Low, uint64(n)*5)
			atomic.StoreUint32(&block.Baseline.M2High, n*7)
			atomic.StoreUint32(&block.Baseline.N, n)
			atomic.AddUint64(&block.Sequence, 1)
		}
	}()
	var last timing.State
	whole := func(n uint64) timing.State {
		return timing.State{N: n, MeanQ16: n * 3, M2: Uint128{Hi: uint64(uint32(n)*7) & m2HighMask, Lo: n * 5}}
	}
	const wanted = 1000
	changes := 0
	for end := time.Now().Add(20 * time.Second); changes < wanted && time.Now().Before(end); {
		before := last
		loadBaseline(&block, &last)
		if last != whole(last.N) || last.N < before.N {
			t.Fatalf("got %+v after %+v", last, before)
		}
		if last != before {
			changes++
		}
	}
	close(stop)
	<-stopped
	if changes < wanted {
		t.Errorf("%d different states were read, want %d", changes, wanted)
	}
	loadBaseline(&block, &last)
	before := last
	block.Sequence++
	block.Baseline.N++
	if loadBaseline(&block, &last); last != before {
		t.Errorf("in the middle of a write: got %+v, want %+v as before", last, before)
	}
}

// The exported deviation of a device, and what is saved of it, are corrected for the clip.
func TestDeviationIsCorrectedForTheClip(t *testing.T) {
	const deviation = 20e3
	for _, clip := range []float64{0, 1, 1.8, 4} {
		config := testConfig()
		config.Baseline, config.Clip, config.Window = BaselineDevice, clip, 1<<15
		p := newInterpretedProgram(t, config, longestFrame, netdev.LinkEthernet)
		r := rand.New(rand.NewPCG(5, 5))
		now := uint64(1e12)
		for range 20_000 {
			now += uint64(1e6 + deviation*r.NormFloat64())
			p.send(t, udpFrame(), now)
		}
		reader := newCounterReader(arrayOf[programDeviceCounters](p.interpreter, programMapAuditCounters), interpretedCPUs, 1, config)
		var c Counters
		reader.read(0, &c)
		learnt := reader.learnt(0)
		saved := math.Sqrt(learnt.M2.Float64() / float64(learnt.N-1))
		for name, got := range map[string]float64{"exported": c.Baseline.StandardDeviation(), "saved": saved} {
			if math.Abs(got/deviation-1) > 0.02 { // three standard errors
				t.Errorf("clip %v: %s deviation %.0f ns, want %.0f", clip, name, got, deviation)
			}
		}
		if flag := c.LastFlag; flag != nil && math.Abs(flag.Score()) < config.Threshold*(1-1e-8) {
			t.Errorf("clip %v: the last flag has a score of %v", clip, flag.Score())
		}
	}
}

// A flow without samples is scored against the baseline that other flows of the device filled.
func TestShortFlowIsScoredAgainstItsDevice(t *testing.T) {
	for _, domain := range []Domain{DomainLinear, DomainLog2} {
		t.Run(fmt.Sprint(domain), func(t *testing.T) {
			config := testConfig()
			config.Domain, config.Baseline = domain, BaselineDevice
			p := newProbe(t, config)
			now := p.learn(t, newTestFlow(0).frame)
			frame := newTestFlow(1).frame
			run(t, p.program(0), frame, now, 1)
			run(t, p.program(0), frame, now+2_000_000, 1)
			c := p.Counters()[0]
			if got := c.Packets.Outcome(OutcomeFlaggedLate); got != 1 {
				t.Fatalf("%d packets flagged late, want 1", got)
			}
			if c.LastFlag.Samples != 100 || c.LastFlag.DeltaNs != 2_000_000 || c.LastFlag.Domain != domain {
				t.Errorf("flag: got %+v", c.LastFlag)
			}
			if c.Baseline.Samples != 101 || math.Abs(c.Baseline.MeanNs()-1e6) > 2000 {
				t.Errorf("baseline: got %+v with a mean of %v ns", c.Baseline, c.Baseline.MeanNs())
			}
		})
	}
}

func TestDeviceHasNoBaselineInFlowScope(t *testing.T) {
	p := newProbe(t, testConfig())
	p.learn(t, udpFrame())
	if got := p.Counters()[0].Baseline; got != nil || p.block.Device != (programDeviceBaseline{}) {
		t.Errorf("got %+v and %+v, want none", got, p.block.Device)
	}
}
