// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"context"
	"testing"
)

// BenchmarkDrain measures the rate at which one core reads and decodes events.
func BenchmarkDrain(b *testing.B) {
	config := testConfig()
	config.Threshold, config.Calibrate, config.EventRate, config.Clock = 0, 0, MaxEventRate, ClockKtime
	audit := loadTest(b, config)
	pinToCPU(b)
	program := audit.program(0)
	fill := func() {
		if _, _, err := program.Benchmark(udpFrame(), 4000, nil); err != nil {
			b.Fatal(err)
		}
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	drain := func() (events int) {
		if err := audit.ReadEvents(ended, func(*Event) { events++ }); err != nil {
			b.Fatal(err)
		}
		return events
	}
	fill()
	drain()
	b.ReportAllocs()
	events := 0
	for b.Loop() {
		b.StopTimer()
		fill()
		b.StartTimer()
		events += drain()
	}
	if events < 1000 {
		b.Fatalf("%d events", events)
	}
	b.ReportMetric(float64(events)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(events), "ns/event")
}

// BenchmarkCounters measures one reading of the counters of four devices.
func BenchmarkCounters(b *testing.B) {
	config := DefaultConfig()
	config.Devices = []string{"test0", "test1", "test2", "test3"}
	audit := loadTest(b, config)
	b.ReportAllocs()
	for b.Loop() {
		if len(audit.Counters()) != len(config.Devices) {
			b.Fatal("a device is missing")
		}
	}
}
