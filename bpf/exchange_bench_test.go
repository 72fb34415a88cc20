// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdp-audit/xdp_audit_exporter/internal/document"
	"github.com/xdp-audit/xdp_audit_exporter/internal/exchange"
)

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -output-stem bench_exchange -output-suffix _test benchExchange xdp/bench/bench_exchange.bpf.c -- -O3 -mcpu=v3 -Wall -Wextra -Wno-unused-parameter -Werror -Wpadded -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu

// loadExchangeBench returns programs of bench_exchange.bpf.c, which use the maps of an audit.
func loadExchangeBench(t testing.TB, audit *Audit) map[string]*ebpf.Program {
	t.Helper()
	spec, err := loadBenchExchange()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range spec.Programs {
		if dropMetadataCalls(p); name == leakProgXdpExchange || name == leakProgTcExchange || name == programProgXdpAudit {
			delete(spec.Programs, name)
		}
	}
	if err := audit.maps.configure(spec, audit.config, audit.maps.devices.identity(0)); err != nil {
		t.Fatal(err)
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: audit.maps.replacements()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(collection.Close)
	return collection.Programs
}

func ktimeClock(c *Config) { c.Clock = ClockKtime }

func peerOf(i int) peer {
	return peer{client: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(1024+i)), server: netip.MustParseAddrPort("198.51.100.9:443")}
}

// BenchmarkExchange measures the cost of a packet in nanoseconds, and as a ratio to the references
// of BenchmarkProgram.
func BenchmarkExchange(b *testing.B) {
	segment := exchange.Segment{Flags: exchange.ACK, Len: 100}
	request := peerOf(0).frame(segment, dscpX)
	bare := peerOf(0).frame(exchange.Segment{Flags: exchange.ACK}, dscpX)
	segment.FromServer = true
	response := peerOf(0).frame(segment, 0)
	audited := newMeasurement(b, workload{flows: 1}, workload{}.config())
	measured := loadExchanges(b, ktimeClock, service("login", ProtocolTCP, servicePort))
	other := loadExchanges(b, ktimeClock, service("login", ProtocolTCP, servicePort+1))
	programs, others := loadExchangeBench(b, measured), loadExchangeBench(b, other)
	rows := []struct {
		name, title string
		program     *ebpf.Program
		frame       []byte
		reference   string
		must        float64 // greatest ratio to the reference; 0 for none
	}{
		{"floor", "*floor*: the clock and one look-up", audited.programs[progFloor], request, "floor", 0},
		{"audit", "without response times", audited.programs[progAudit], request, "floor", 0},
		{"other-port", "of another port", other.program(0), request, "floor", 0},
		{"acknowledgement", "of the service, without data", measured.program(0), bare, "floor", 2},
		{"data", "of the service, with data", programs[benchExchangeProgBenchExchangeData], request, "floor", 2},
		{"request-and-response", "", programs[benchExchangeProgBenchExchangeBoth], request, "floor", 0},
		{"sent-null", "outgoing, a program that does nothing", programs[benchExchangeProgBenchSentNull], response, "sent-floor", 0},
		{"sent-floor", "outgoing, *floor*", programs[benchExchangeProgBenchSentFloor], response, "sent-floor", 0},
		{"sent-other-port", "outgoing, of another port", others[benchExchangeProgBenchSentData], response, "sent-floor", 0},
		{"sent-data", "outgoing, of the service", programs[benchExchangeProgBenchSentData], response, "sent-floor", 0},
	}
	costs := map[string][]int{}
	ctx, stop := context.WithCancel(b.Context())
	defer stop()
	go func() { _ = measured.ReadExchanges(ctx, func([]Exchange) {}) }()
	turn := func(n int) {
		for _, row := range rows {
			_, cost, err := row.program.Benchmark(row.frame, n, nil)
			if err != nil {
				b.Fatal(row.name, err)
			}
			costs[row.name] = append(costs[row.name], int(cost.Nanoseconds()))
		}
	}
	turn(1000)
	clear(costs)
	for b.Loop() {
		turn(benchPackets)
	}
	for range minBenchRounds {
		turn(benchPackets)
	}
	var table strings.Builder
	table.WriteString("| packet | ns | to the floor | must | met |\n| --- | --: | --: | --: | --- |\n")
	for _, row := range rows {
		cost := median(costs[row.name])
		ratio := cost / median(costs[row.reference])
		b.ReportMetric(cost, row.name+"-ns")
		b.ReportMetric(ratio, row.name+"-x")
		if row.title == "" {
			continue
		}
		met := ""
		if row.must > 0 {
			met = map[bool]string{true: "yes", false: "**no**"}[ratio <= row.must]
		}
		fmt.Fprintf(&table, "| %s | %.0f | %.2f | %s | %s |\n", row.title, cost, ratio, factor(row.must), met)
	}
	if path := os.Getenv("BENCH_REPORT"); path != "" {
		reportCosts(b, filepath.Join(filepath.Dir(path), "exchanges.md"), table.String())
	}
}

func reportCosts(b *testing.B, path, table string) {
	b.Helper()
	machine, err := thisMachine()
	if err != nil {
		b.Fatal(err)
	}
	if err := document.Update(path, "exchange costs", fmt.Sprintf("%v\n%s.\n\n%s", machine, time.Now().Format(time.DateOnly), table)); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkReadExchanges measures how many records one core reads; an op is a record.
func BenchmarkReadExchanges(b *testing.B) {
	const perRun = 16_000
	audit := loadExchanges(b, ktimeClock, service("login", ProtocolTCP, servicePort))
	program := loadExchangeBench(b, audit)[benchExchangeProgBenchExchangeBoth]
	frame := peerOf(0).frame(exchange.Segment{Flags: exchange.ACK, Len: 100}, dscpX)
	read := 0
	for b.Loop() {
		b.StopTimer()
		frame = runExchanges(b, program, frame, perRun)
		b.StartTimer()
		audit.exchanges.read(func(batch []Exchange) { read += len(batch) })
	}
	if read < b.N*perRun*9/10 {
		b.Errorf("%d records were read, want %d", read, b.N*perRun)
	}
	b.ReportMetric(float64(read)/b.Elapsed().Seconds(), "records/s")
}

// runExchanges lets a program make n exchanges, and returns the frame as it is then.
func runExchanges(t testing.TB, program *ebpf.Program, frame []byte, n int) []byte {
	t.Helper()
	options := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)), Repeat: uint32(n)}
	if verdict, err := runToTheEnd(program, &options); err != nil || verdict != xdpPass {
		t.Fatalf("verdict %d, %v", verdict, err)
	}
	return options.DataOut
}

// TestAMillionExchangesAreRecorded makes about 100,000 exchanges a second, on all CPUs, and reads
// each of them.
func TestAMillionExchangesAreRecorded(t *testing.T) {
	const total, perTurn, pause = 1_000_000, 5000, 60 * time.Millisecond
	audit := loadExchanges(t, ktimeClock, service("login", ProtocolTCP, servicePort))
	program := loadExchangeBench(t, audit)[benchExchangeProgBenchExchangeBoth]
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var writers sync.WaitGroup
	read, sum, unordered, lastNs := map[uint64]uint32{}, 0, 0, uint64(0)
	allRead := make(chan struct{})
	go func() {
		defer close(allRead)
		_ = audit.ReadExchanges(ctx, func(batch []Exchange) {
			for _, x := range batch {
				if x.TimeNs < lastNs || x.Position != read[x.Connection] || x.Exclusion != ExclusionNone {
					unordered++
				}
				lastNs = x.TimeNs
				read[x.Connection]++
			}
			if sum += len(batch); sum == total {
				stop()
			}
		})
	}()
	begin := time.Now()
	cpus := min(runtime.NumCPU(), 4)
	for cpu := range cpus {
		writers.Go(func() {
			frame := peerOf(cpu).frame(exchange.Segment{Flags: exchange.ACK, Len: 100}, uint8(dscpX+cpu%2*(dscpY-dscpX)))
			for range total / cpus / perTurn {
				frame = runExchanges(t, program, frame, perTurn)
				time.Sleep(pause) // the pace; a turn takes the kernel about 20 ms more
			}
		})
	}
	writers.Wait()
	elapsed := time.Since(begin)
	select {
	case <-allRead:
	case <-time.After(10 * time.Second):
		stop()
		<-allRead
	}
	counts, lost := audit.ExchangeCounts()
	t.Logf("%.0f exchanges a second: %+v", total/elapsed.Seconds(), counts[0])
	reportExchanges(t, "million", fmt.Sprintf("Of 1,000,000 exchanges at %.0f a second, %d were recorded, %d of them out of order, and %d were lost.\n",
		total/elapsed.Seconds(), sum, unordered, lost))
	if counts[0].Requests != total || counts[0].Responses[0]+counts[0].Responses[1] != total || lost != 0 {
		t.Errorf("%d lost, and counted are %+v", lost, counts[0])
	}
	if sum != total || unordered != 0 || len(read) != cpus {
		t.Errorf("read %d records of %d connections, %d of them out of order", sum, len(read), unordered)
	}
}
