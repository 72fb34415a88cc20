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

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// deviceConfig judges against the device. No baseline is full or clips: what is clipped depends on the samples of a CPU.
func deviceConfig(domain Domain) Config {
	config := testConfig()
	config.Domain, config.Baseline = domain, BaselineDevice
	config.MinSamples, config.Window, config.IdleTimeout = timing.MaxWindow, timing.MaxWindow, timing.MaxDelta
	return config
}

// Packets of several flows on two CPUs: each CPU has the baseline that the model has of its packets, and what is read of the
// device is that of all packets, but for the rounding of the steps: half of 2⁻¹⁶ units of the mean in each, which add up as
// random numbers do.
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
				run(t, p.devices[0].program, flows[f].frame, now, 1)
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
				t.Errorf("mean: off by %v of 2⁻¹⁶ units", off)
			}
			if ratio := got.StandardDeviation() / math.Sqrt(domain.Variance(whole)); math.Abs(ratio-1) > 1e-6 {
				t.Errorf("standard deviation: off by %g", ratio-1)
			}
		})
	}
}

// Two CPUs have packets of their own flows all the time, and the baseline is read meanwhile: no sample is lost, and what is
// read never steps back.
func TestBaselineIsReadUnderTraffic(t *testing.T) {
	for _, domain := range []Domain{DomainLinear, DomainLog2} {
		t.Run(string(domain), func(t *testing.T) {
			config := deviceConfig(domain)
			config.Clock = ClockKtime
			audit := loadTest(t, config)
			program := audit.devices[0].program
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
			// Each halving takes a window away.
			if deltas == 0 || (deltas-c.Baseline.Samples)%timing.MaxWindow != 0 {
				t.Errorf("%d samples of %d deltas", c.Baseline.Samples, deltas)
			}
			mean := c.Sums.TotalNs.Float64() / float64(deltas)
			// A step rounds by half of 2⁻¹⁶ ns at most, of which n/4 are left after n steps if all round to one side.
			tolerance := float64(deltas) / 4 * 0x1p-16
			if domain == DomainLinear && c.Baseline.Samples == deltas && math.Abs(c.Baseline.MeanNs()-mean) > tolerance {
				t.Errorf("mean %v ns, want %v ± %v", c.Baseline.MeanNs(), mean, tolerance)
			}
		})
	}
}

// readBaselines reads the baseline of a device until the end.
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

// A writer that is always at work: whatever is read was there at one time, whole. One that stops in the middle leaves what
// was read before.
func TestBaselineIsReadWhole(t *testing.T) {
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
		return timing.State{N: n, MeanQ16: n * 3, M2: Uint128{Hi: uint64(uint32(n) * 7), Lo: n * 5}}
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
		t.Errorf("in the middle of a step: got %+v, want %+v as before", last, before)
	}
}

// A flow without samples of its own is judged by what other flows taught the device.
func TestShortFlowIsJudgedByItsDevice(t *testing.T) {
	for _, domain := range []Domain{DomainLinear, DomainLog2} {
		t.Run(fmt.Sprint(domain), func(t *testing.T) {
			config := testConfig()
			config.Domain, config.Baseline = domain, BaselineDevice
			p := newProbe(t, config)
			now := p.learn(t, newTestFlow(0).frame)
			frame := newTestFlow(1).frame
			run(t, p.devices[0].program, frame, now, 1)
			run(t, p.devices[0].program, frame, now+2_000_000, 1)
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

func TestFlowsWithBaselinesLeaveTheDeviceWithout(t *testing.T) {
	p := newProbe(t, testConfig())
	p.learn(t, udpFrame())
	if got := p.Counters()[0].Baseline; got != nil || p.block.Device != (programDeviceBaseline{}) {
		t.Errorf("got %+v and %+v, want none", got, p.block.Device)
	}
}
