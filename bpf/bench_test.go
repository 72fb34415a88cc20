// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
)

// A workload is measured against what it cannot be cheaper than, in turn in the same run: null returns XDP_PASS, floor
// reads the clock and stores it, floor_table also changes one random line of an array as large as the flow table.
type workload struct {
	name      string
	config    func(*Config)
	flows     uint32 // in turn; 0: all packets of one flow
	programs  []string
	reference string
	audit     string
}

var (
	oneFlow   = []string{benchProgBenchNull, benchProgBenchFloor, benchProgXdpAudit}
	manyFlows = []string{benchProgBenchNullMany, benchProgBenchFloorMany, benchProgBenchFloorTableMany, benchProgBenchAuditMany}
)

var workloads = []workload{
	{"one-hot-flow", nil, 0, oneFlow, benchProgBenchFloor, benchProgXdpAudit},
	{"8192-flows", nil, 8192, manyFlows, benchProgBenchFloorTableMany, benchProgBenchAuditMany},
	{"65536-flows", nil, 65536, manyFlows, benchProgBenchFloorTableMany, benchProgBenchAuditMany},
	{"every-packet-new", nil, 1 << 31, manyFlows, benchProgBenchFloorTableMany, benchProgBenchAuditMany},
	{"every-packet-flagged", func(c *Config) { c.Threshold = 0 }, 0, oneFlow, benchProgBenchFloor, benchProgXdpAudit},
}

// loadBenchPrograms loads the bench object with the maps of an audit.
func loadBenchPrograms(b *testing.B, audit *Audit, flows uint32) map[string]*ebpf.Program {
	b.Helper()
	spec, err := loadBench()
	if err != nil {
		b.Fatal(err)
	}
	if err := audit.tables.configure(spec, audit.config, 0); err != nil {
		b.Fatal(err)
	}
	lines := tableBytes(audit.config) / 64
	spec.Maps[benchMapBenchTable].MaxEntries = lines
	for name, value := range map[string]uint32{
		benchVarBenchFlowMask: max(flows, 1) - 1,
		benchVarBenchLines:    lines,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			b.Fatal(err)
		}
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: audit.tables.maps})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(collection.Close)
	return collection.Programs
}

// tableBytes returns the bytes of the flow table's hot part.
func tableBytes(c Config) uint32 { return c.sets() * uint32(unsafe.Sizeof(programFlowSet{})) }

func BenchmarkProgram(b *testing.B) {
	for _, w := range workloads {
		b.Run(w.name, func(b *testing.B) { w.measure(b) })
	}
}

// measure reports the median cost of a packet of each program, and the ratio of the audit's to its reference's. The
// programs run in turn, so that a machine that speeds up or slows down does so for all of them.
func (w workload) measure(b *testing.B) {
	const rounds, packets = 15, 200_000
	config := DefaultConfig()
	config.Devices = []string{"test0"}
	if w.config != nil {
		w.config(&config)
	}
	needBPF(b)
	audit, err := load(config, testKeys(), nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := audit.Close(); err != nil {
			b.Error(err)
		}
	})
	programs := loadBenchPrograms(b, audit, w.flows)
	pinToCPU(b)
	frame := udpFrame()
	costs := map[string][]float64{}
	for b.Loop() {
		for range rounds {
			for _, name := range w.programs {
				_, cost, err := programs[name].Benchmark(frame, packets, nil)
				if err != nil {
					b.Fatal(err)
				}
				costs[name] = append(costs[name], float64(cost)/float64(time.Nanosecond))
			}
		}
	}
	b.ReportMetric(0, "ns/op") // an op is all rounds: meaningless
	for _, name := range w.programs {
		b.ReportMetric(median(costs[name]), name+"-ns")
	}
	b.ReportMetric(median(costs[w.audit])/median(costs[w.reference]), "x-"+w.reference)
	b.ReportMetric(float64(tableBytes(config)), "table-bytes")
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
