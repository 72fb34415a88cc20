// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package history

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
)

var noon = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

// counted returns the counters of a device after a number of packets, a tenth of them flagged.
func counted(device string, n uint64) bpf.Counters {
	c := bpf.Counters{Device: device}
	c.Packets[bpf.FamilyIPv4][bpf.ProtocolUDP][bpf.OutcomeJudged] = n - n/10
	c.Packets[bpf.FamilyIPv4][bpf.ProtocolTCP][bpf.OutcomeFlaggedLate] = n / 10
	c.Bytes[bpf.FamilyIPv4][bpf.ProtocolUDP] = 100 * n
	c.Histogram[500] = n
	return c
}

func packets(p *Point) uint64 { return p.Packets }

func TestHistoryIsBounded(t *testing.T) {
	h := New()
	for i := range 2 * Points {
		h.Add(noon.Add(time.Duration(i)*Interval), []bpf.Counters{counted("eth0", uint64(1000*i))})
		h.AddScores(noon, "eth0", covert.Scores{})
		h.AddScores(noon, "eth9", covert.Scores{}) // not known
	}
	series := h.Device("eth0")
	if len(series) != Points || series[0].Packets != 1000*Points || series[Points-1].Packets != 1000*(2*Points-1) {
		t.Errorf("%d readings from %d to %d packets", len(series), series[0].Packets, series[len(series)-1].Packets)
	}
	if n := len(h.Scores("eth0")); n != Points {
		t.Errorf("%d scores, want %d", n, Points)
	}
	var many []bpf.Counters
	for i := range 4096 {
		many = append(many, counted(fmt.Sprint("veth", i), 1))
	}
	for i := range 2 * Points {
		h.Add(noon.Add(2*Points*Interval+time.Duration(i)*Interval), many)
	}
	readings := 0
	for name := range h.Names() {
		readings += len(h.Device(name))
	}
	if most := MaxDevices*Points + 4096*fewPoints; readings > most {
		t.Errorf("%d readings of 4096 devices, want at most %d", readings, most)
	}
}

func TestRates(t *testing.T) {
	h := New()
	now := noon
	for i := range 60 { // two minutes, with a gap of half a minute
		if i >= 30 && i < 45 {
			continue
		}
		now = noon.Add(time.Duration(i) * Interval)
		h.Add(now, []bpf.Counters{counted("eth0", uint64(2000*i))})
	}
	series := h.Device("eth0")
	rates := series.Rates(now.Add(time.Millisecond), Points*Interval, 60, packets)
	known := 0
	for i, rate := range rates {
		if math.IsNaN(rate) {
			continue
		}
		known++
		if rate != 1000 {
			t.Errorf("the rate of step %d is %v, want 1000", i, rate)
		}
	}
	if known < 8 || known > 10 || !math.IsNaN(rates[0]) || !math.IsNaN(rates[55]) {
		t.Errorf("%d steps have a rate, want 9: %v", known, rates)
	}
	first, last, ok := series.Since(10 * time.Second)
	if !ok || last.Time.Sub(first.Time) != 10*time.Second || Rate(&first, &last, (*Point).Flags) != 100 {
		t.Errorf("from %v to %v: %v flags per second", first.Time, last.Time, Rate(&first, &last, (*Point).Flags))
	}
	if _, _, ok := series[:1].Since(time.Second); ok {
		t.Error("one reading has a rate")
	}
}

// A device that was forgotten by the audit and comes back counts from the beginning.
func TestCountersThatBeginAgain(t *testing.T) {
	h := New()
	h.Add(noon, []bpf.Counters{counted("eth0", 1000)})
	h.Add(noon.Add(Interval), []bpf.Counters{counted("eth0", 2000)})
	h.Add(noon.Add(2*Interval), []bpf.Counters{counted("eth0", 10)})
	if series := h.Device("eth0"); len(series) != 1 || series[0].Packets != 10 {
		t.Errorf("the readings are %v", series)
	}
}

func TestDevicesAreForgotten(t *testing.T) {
	h := New()
	h.Add(noon, []bpf.Counters{counted("eth0", 1), counted("eth1", 1)})
	h.Add(noon.Add(Points*Interval), []bpf.Counters{counted("eth1", 2)})
	if names := h.Names(); len(names) != 2 || !names["eth0"].Equal(noon) {
		t.Errorf("the devices are %v", names)
	}
	h.Add(noon.Add((Points+1)*Interval), []bpf.Counters{counted("eth1", 3)})
	if names := h.Names(); len(names) != 1 || h.Device("eth0") != nil {
		t.Errorf("the devices are %v", names)
	}
}

func TestRecentHistogram(t *testing.T) {
	h := New()
	c := counted("eth0", 5)
	if all, recent, since := h.Histogram(&c); len(all.Buckets) != 1 || recent.Buckets != nil || !since.IsZero() {
		t.Errorf("without readings: %v, %v since %v", all, recent, since)
	}
	for minute := range 10 {
		c = counted("eth0", uint64(100*(minute+1)))
		c.Histogram[0] = uint64(minute)
		h.Add(noon.Add(time.Duration(minute)*time.Minute), []bpf.Counters{c})
	}
	all, recent, since := h.Histogram(&c)
	if len(all.Buckets) != 1 || all.Buckets[0].Count != 1000 || len(recent.Buckets) != 1 || recent.Buckets[0].Count != 500 || all.Zeros != 9 || recent.Zeros != 5 || !since.Equal(noon.Add(4*time.Minute)) {
		t.Errorf("all %v, recent %v since %v", all, recent, since)
	}
}

func TestLastFlags(t *testing.T) {
	f := NewFlags()
	for i := range MaxFlags + 50 {
		f.Add(&bpf.Event{Flag: bpf.Flag{DeltaNs: uint64(i)}})
	}
	events, total := f.Last()
	if total != MaxFlags+50 || len(events) != MaxFlags || events[0].DeltaNs != MaxFlags+49 || events[MaxFlags-1].DeltaNs != 50 {
		t.Errorf("%d of %d events, from %d to %d", len(events), total, events[0].DeltaNs, events[len(events)-1].DeltaNs)
	}
	if !slices.IsSortedFunc(events, func(a, b bpf.Event) int { return int(b.DeltaNs) - int(a.DeltaNs) }) {
		t.Error("the events are not in order")
	}
}

func BenchmarkAdd(b *testing.B) {
	h := New()
	var counters []bpf.Counters
	for i := range 16 {
		counters = append(counters, counted(fmt.Sprint("eth", i), 1000))
	}
	for i := 0; b.Loop(); i++ {
		h.Add(noon.Add(time.Duration(i)*Interval), counters)
	}
}

// The full history of 16 devices has a bounded size.
func TestMemory(t *testing.T) {
	var before, after runtime.MemStats
	var counters []bpf.Counters
	for i := range 16 {
		c := counted(fmt.Sprint("eth", i), 1)
		for cell := range c.Histogram {
			c.Histogram[cell] = 1 // the worst case
		}
		counters = append(counters, c)
	}
	runtime.GC()
	runtime.ReadMemStats(&before)
	h, f := New(), NewFlags()
	for i := range 2 * Points {
		h.Add(noon.Add(time.Duration(i)*Interval), counters)
		f.Add(&bpf.Event{})
		for k := range counters {
			h.AddScores(noon, counters[k].Device, covert.Scores{})
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	size := float64(after.HeapAlloc-before.HeapAlloc) / (1 << 20)
	t.Logf("the history has %.2f MiB", size)
	if size > 1.75 {
		t.Errorf("the history of 16 devices has %.2f MiB, want at most 1.75", size)
	}
	runtime.KeepAlive(h)
	runtime.KeepAlive(f)
}
