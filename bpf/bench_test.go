// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"os"
	"testing"
	"time"
)

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -output-stem bench_lru -output-suffix _test benchLRU xdp/bench/bench_lru.bpf.c -- -O3 -mcpu=v3 -Wall -Wextra -Werror -Wpadded -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -output-stem bench_spinlock -output-suffix _test benchSpinlock xdp/bench/bench_spinlock.bpf.c -- -O3 -mcpu=v3 -Wall -Wextra -Wno-unused-parameter -Werror -Wpadded -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu

const (
	minBenchRounds = 15
	// benchPackets is the number of packets per turn. Each turn costs the kernel about 20 ms
	// more, because it patches a dispatcher before and after it.
	benchPackets = 100_000
	allFlows     = 1 << 31 // more flows than packets
)

// workload is a kind of traffic.
type workload struct {
	name   string // of the benchmark; the key for comparing revisions
	title  string // row in the report
	frame  []byte
	change func(*Config)
	flows  uint32      // number of flows, which take turns
	table  *otherTable // measured in addition to the audit; nil: none
	must   float64     // largest ratio of the cost to the reference's; 0: no budget
	goal   float64
	check  expectation
}

func workloads() []workload {
	udp4 := udp(1000, 53, make([]byte, 18))
	plain := udpFrame()
	six := ethernet(etherIPv6, ipv6(ipUDP, udp4))
	tags := ethernet(tagQinQ, tagged(100, tagVLAN, tagged(7, etherIPv4, ipv4(ipUDP, udp4))))
	arp := ethernet(etherARP, make([]byte, 46))
	flagAll := func(c *Config) { c.Threshold = 0 }
	uncalibrated := func(c *Config) { c.Threshold, c.Calibrate = 0, 0 }
	watch := func(c *Config) { c.Watches = 64 }
	return []workload{
		{name: "one-hot-flow", title: "one hot flow", frame: plain, flows: 1, must: 1.6, goal: 1.35, check: isKnown(1)},
		{name: "8192-flows", title: "8,192 flows in turn", frame: plain, flows: 8192, must: 1.2, goal: 0.8, check: isKnown(8192)},
		{name: "65536-flows", title: "65,536 flows in turn, 65,536 slots", frame: plain, flows: 65536, must: 1.8, goal: 1.2, check: isOverfull},
		{name: "every-packet-new", title: "every packet a new flow", frame: plain, flows: allFlows, must: 1.8, goal: 1.3, check: isNew},
		{name: "every-packet-flagged", title: "every packet flagged, few of them rare", frame: plain, change: flagAll, flows: 1,
			must: 1.8, goal: 1.4, check: isSuppressed},
		{name: "every-packet-flagged-uncalibrated", title: "every packet flagged, uncalibrated, rate limit reached", frame: plain,
			change: uncalibrated, flows: 1, must: 1.8, goal: 1.4, check: isLimited},
		{name: "ipv6-one-hot-flow", title: "one hot flow, IPv6", frame: six, flows: 1, check: isKnown(1)},
		{name: "ipv6-8192-flows", title: "8,192 flows in turn, IPv6", frame: six, flows: 8192, check: isKnown(8192)},
		{name: "qinq-one-hot-flow", title: "one hot flow, two VLAN tags", frame: tags, flows: 1, check: isKnown(1)},
		{name: "not-ip", title: "not IP (ARP)", frame: arp, flows: 1, check: isUnparsed},
		{name: "watched-hot-flow", title: "one hot flow, covert windows on", frame: plain, change: watch, flows: 1, check: isKnown(1)},
		{name: "watched-8192-flows", title: "8,192 flows in turn, 64 of them watched", frame: plain, change: watch, flows: 8192,
			check: isKnown(8192)},

		{name: "lru-hash-one-hot-flow", title: "one hot flow", frame: plain, flows: 1, table: &lruHash, check: isKnown(1)},
		{name: "lru-hash-8192-flows", title: "8,192 flows in turn", frame: plain, flows: 8192, table: &lruHash, check: isKnown(8192)},
		{name: "lru-hash-every-packet-new", title: "every packet a new flow", frame: plain, flows: allFlows, table: &lruHash, check: isNew},
		{name: "spin-lock-one-hot-flow", title: "one hot flow", frame: plain, flows: 1, table: &spinLock, check: isKnown(1)},
	}
}

func (w workload) config() Config {
	config := DefaultConfig()
	config.Devices = []string{"test0"}
	if w.change != nil {
		w.change(&config)
	}
	return config
}

// BenchmarkProgram measures the cost of a packet; an op is a packet. With BENCH_REPORT=FILE it
// writes the results into that file, if it measured all workloads.
func BenchmarkProgram(b *testing.B) {
	r := report{date: time.Now().UTC()}
	b.Run("load", func(b *testing.B) { r.size = benchmarkLoad(b) })
	for _, w := range workloads() {
		result := newResult(w)
		b.Run(w.name, result.add)
		r.results = append(r.results, result)
	}
	path := os.Getenv("BENCH_REPORT")
	if path == "" || b.Failed() {
		return
	}
	if !r.isComplete() {
		b.Logf("not writing %s: some workloads were not measured", path)
		return
	}
	if err := r.writeTo(path); err != nil {
		b.Fatal(err)
	}
}

// add measures the workload once more and adds the result. -count sets the number of calls.
func (r *result) add(b *testing.B) {
	m := newMeasurement(b, r.workload, r.config())
	m.warmUp(b, benchPackets)
	rounds := 0
	for b.Loop() {
		m.round(b, benchPackets)
		rounds++
	}
	for ; rounds < minBenchRounds; rounds++ {
		m.round(b, benchPackets)
	}
	m.verify(b)
	m.report(b)
	r.merge(m)
}

// Each workload is what its name says.
func TestWorkloads(t *testing.T) {
	const packets = 10_000
	for _, w := range workloads() {
		t.Run(w.name, func(t *testing.T) {
			config := w.config()
			config.MinSamples = 2
			if config.Calibrate != 0 {
				config.Calibrate = 2e-3 // learned during the warm-up
			}
			m := newMeasurement(t, w, config)
			m.warmUp(t, packets)
			m.round(t, packets)
			m.round(t, packets)
			m.verify(t)
		})
	}
}

// programSize is the size of the loaded program.
type programSize struct {
	verified   uint32 // instructions that the verifier followed, over all paths
	translated int    // instructions
	jited      uint32 // bytes of machine code; 0 without the JIT
	tag        string // the kernel's digest of the instructions
}

// benchmarkLoad measures the time to load the program; an op is one program.
func benchmarkLoad(b *testing.B) programSize {
	audit := loadTest(b, workload{}.config())
	d := audit.devices.listed[0]
	for b.Loop() {
		if err := audit.devices.unload(d); err != nil {
			b.Fatal(err)
		}
		if err := audit.devices.load(d, 0); err != nil {
			b.Fatal(err)
		}
	}
	size := sizeOf(b, d)
	b.ReportMetric(float64(size.verified), "verified-insns")
	b.ReportMetric(float64(size.translated), "xlated-insns")
	b.ReportMetric(float64(size.jited), "jited-bytes")
	return size
}

func sizeOf(t testing.TB, d *device) programSize {
	t.Helper()
	const instructionBytes = 8
	info, err := d.program.Info()
	if err != nil {
		t.Fatal(err)
	}
	size := programSize{tag: info.Tag}
	size.verified, _ = info.VerifiedInstructions()
	translated, err := info.TranslatedSize()
	if err != nil {
		t.Fatal(err)
	}
	size.translated = translated / instructionBytes
	if size.jited, err = info.JitedSize(); err != nil {
		t.Fatal(err)
	}
	return size
}
