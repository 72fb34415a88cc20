// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// hammerTime is the time for which CPUs contend for a set.
const hammerTime = 10 * time.Second

// twoCPUs returns two CPUs that the test may run on.
func twoCPUs(t *testing.T) [2]int {
	t.Helper()
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		t.Fatal(err)
	}
	var cpus []int
	for cpu := range 1024 {
		if allowed.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	if len(cpus) < 2 {
		if os.Getenv("REQUIRE_BPF") == "1" {
			t.Fatal("REQUIRE_BPF=1, but there is only one CPU to run on")
		}
		t.Skip("only one CPU to run on")
	}
	return [2]int(cpus)
}

// moveTo moves the calling thread, which must be locked, to a CPU.
func moveTo(cpu int) error {
	var one unix.CPUSet
	one.Set(cpu)
	return unix.SchedSetaffinity(0, &one)
}

// countRuns lets the kernel count the runs of programs until the test ends. The number of calls
// does not tell the number of runs, because a BPF_PROG_TEST_RUN that a signal interrupts is
// repeated.
func countRuns(t *testing.T) {
	t.Helper()
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stats.Close() })
}

// packetsRun returns the number of runs of a program.
func packetsRun(t *testing.T, program *ebpf.Program) uint64 {
	t.Helper()
	stats, err := program.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return stats.RunCount
}

// onEachCPU runs f again and again on two CPUs at the same time, for a given time.
func onEachCPU(t *testing.T, during time.Duration, f func() error) {
	t.Helper()
	var running sync.WaitGroup
	errs := make([]error, 2)
	end := time.Now().Add(during)
	for i, cpu := range twoCPUs(t) {
		running.Go(func() {
			// The thread stays locked, so that it ends with the goroutine and no other
			// goroutine gets its affinity.
			runtime.LockOSThread()
			if errs[i] = moveTo(cpu); errs[i] != nil {
				return
			}
			for isFirst := true; (isFirst || time.Now().Before(end)) && errs[i] == nil; isFirst = false {
				errs[i] = f()
			}
		})
	}
	running.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Two CPUs continuously receive packets of one flow. Each packet is counted once, and no update
// of the slot is lost or torn: the deltas add up to the time from the first packet to the last,
// and the slot has as many samples as deltas were counted.
func TestTwoCPUsShareAFlow(t *testing.T) {
	config := testConfig()
	config.Clock, config.Window, config.IdleTimeout = ClockKtime, timing.MaxWindow, timing.MaxDelta
	audit := loadTest(t, config)
	p := &probe{Audit: audit, sets: mapSets(t, audit)}
	program := audit.program(0)
	countRuns(t)
	runRaw(t, program, udpFrame(), 0, 1)
	slot := p.onlySlot(t)
	first := slot.LastNs

	onEachCPU(t, hammerTime, func() error {
		_, _, err := program.Benchmark(udpFrame(), 10_000, nil)
		return err
	})
	c := audit.Counters()[0]
	if got, want := sumOf(&c.Packets), packetsRun(t, program); got != want {
		t.Errorf("counted %d packets, want %d", got, want)
	}
	if c.Inserts != 1 {
		t.Errorf("the flow was inserted %d times", c.Inserts)
	}
	deltas, contended := c.Packets.Deltas(), c.Packets.Outcome(OutcomeContended)
	t.Logf("%d packets: %d deltas, %d contended, %d reordered", sumOf(&c.Packets), deltas, contended, c.Packets.Outcome(OutcomeReordered))
	if contended == 0 {
		t.Error("no packet was contended: the CPUs did not meet")
	}
	// Each halving removes one window of samples.
	if lost := deltas - uint64(slot.Baseline.N); lost%timing.MaxWindow != 0 {
		t.Errorf("the slot has %d samples, but %d deltas were counted", slot.Baseline.N, deltas)
	}
	if gaps := c.Packets.Outcome(OutcomeIdleGap); gaps > 0 {
		t.Fatalf("%d pauses: the sum of the deltas cannot be checked", gaps)
	}
	if got, want := c.Sums.TotalNs, (Uint128{Lo: slot.LastNs - first}); got != want {
		t.Errorf("the deltas add up to %v ns, but first and last packet are %v ns apart", got, want)
	}
}

// Two CPUs insert the same flows into one set. Each flow gets one slot.
func TestTwoCPUsInsertAFlowOnce(t *testing.T) {
	config := testConfig()
	config.Clock, config.Flows = ClockKtime, flowWays
	countRuns(t)
	flows := make([]testFlow, flowWays)
	for round := range 10 {
		audit := loadTest(t, config)
		program := audit.program(0)
		for i := range flows {
			flows[i] = newTestFlow(round*flowWays + i)
		}
		onEachCPU(t, 20*time.Millisecond, func() error {
			for _, flow := range flows {
				if _, _, err := program.Benchmark(flow.frame, 3, nil); err != nil {
					return err
				}
			}
			return nil
		})
		c := audit.Counters()[0]
		if got, want := sumOf(&c.Packets), packetsRun(t, program); got != want {
			t.Fatalf("counted %d packets, want %d", got, want)
		}
		if c.Inserts != flowWays || c.Evictions != [NumEvictions]uint64{} {
			t.Fatalf("%d inserts and evictions %v of %d flows", c.Inserts, c.Evictions, flowWays)
		}
		seen := map[uint32]bool{}
		for _, tag := range mapSets(t, audit)[0].Tags {
			if tag == 0 || seen[tag] {
				t.Fatalf("tag %x is zero or occurs twice in the set", tag)
			}
			seen[tag] = true
		}
	}
}

// A flow whose packets alternate between two CPUs has the same baseline as on one CPU.
func TestFlowThatAlternatesBetweenCPUsStaysOne(t *testing.T) {
	config := testConfig()
	cpus := twoCPUs(t)
	p, m := newProbe(t, config), newModel(config)
	r := rand.New(rand.NewPCG(1, 1))
	now := uint64(1e12)
	for i := range 3000 {
		now += uint64(1e6 + 20e3*r.NormFloat64())
		if err := moveTo(cpus[i%2]); err != nil {
			t.Fatal(err)
		}
		m.observe(now)
		run(t, p.program(0), udpFrame(), now, 1)
	}
	if got := p.onlySlot(t).Baseline.state(); got != m.state {
		t.Errorf("got %+v, want %+v", got, m.state)
	}
	c := p.Counters()[0]
	for o, want := range m.outcomes {
		if got := c.Packets.Outcome(Outcome(o)); got != want {
			t.Errorf("outcome %v: got %d, want %d", Outcome(o), got, want)
		}
	}
	for cpu := range cpus {
		if p.counters.blocks[0][cpus[cpu]].Protocols[FamilyIPv4][ProtocolUDP].Bytes == 0 {
			t.Errorf("no packet was counted on CPU %d", cpus[cpu])
		}
	}
}
