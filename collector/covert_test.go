// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func covertFlow(device string, port int) bpf.Flow {
	return bpf.Flow{
		Device: device, Source: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(port)),
		Destination: netip.MustParseAddrPort("198.51.100.7:443"), Protocol: bpf.ProtocolUDP,
	}
}

// covertWindow returns a window of a flow at a time after noon.
func covertWindow(flow bpf.Flow, after time.Duration, delta func(i int) uint32) *bpf.Window {
	window := &bpf.Window{Flow: flow, Time: noon.Add(after)}
	for i := range CovertWindow {
		window.DeltasNs = append(window.DeltasNs, delta(i))
	}
	return window
}

// twoSymbols returns two deltas in a random order.
func twoSymbols(i int) uint32 { return 1_000_000 + 1_000_000*random(i, 2) }

// manyTicks returns multiples of 10 ms in a random order, too many for symbols.
func manyTicks(i int) uint32 { return 10_000_000 * (10 + random(i, 80)) }

func random(i int, n uint32) uint32 { return rand.New(rand.NewPCG(1, uint64(i))).Uint32N(n) }

func steady(int) uint32 { return 1_000_000 }

func TestCovert(t *testing.T) {
	source := &fakeSource{
		counters: []bpf.Counters{{Device: "eth0"}, {Device: "eth1"}},
		watch:    bpf.WatchCounts{Flows: 3, Skipped: 4000},
	}
	expect(t, newCovertCollector(source, nil, time.Now), "")

	c := NewCovert()
	for second := range time.Duration(4) {
		c.Judge(covertWindow(covertFlow("eth0", 1), second*time.Second-3*time.Second, twoSymbols))
	}
	// As many windows alarm, but not in a row.
	for second := range time.Duration(5) {
		delta := twoSymbols
		if second == 1 {
			delta = steady
		}
		c.Judge(covertWindow(covertFlow("eth0", 4), second*time.Second-10*time.Minute, delta))
	}
	for second := range time.Duration(4) {
		c.Judge(covertWindow(covertFlow("eth0", 5), second*time.Second-3*time.Second, manyTicks))
	}
	c.Judge(covertWindow(covertFlow("eth0", 2), time.Minute, steady))
	c.Judge(covertWindow(covertFlow("eth0", 2), 2*time.Minute, steady))
	c.Judge(covertWindow(covertFlow("gone", 3), 2*time.Minute, twoSymbols))
	const counts = `
# HELP xdp_audit_covert_alarmed_windows_total Total number of windows in which at least one test alarmed.
# TYPE xdp_audit_covert_alarmed_windows_total counter
xdp_audit_covert_alarmed_windows_total{device="eth0"} 12
xdp_audit_covert_alarmed_windows_total{device="eth1"} 0
# HELP xdp_audit_covert_alarms_total Total number of windows in which the test alarmed.
# TYPE xdp_audit_covert_alarms_total counter
xdp_audit_covert_alarms_total{device="eth0",test="autocorrelation"} 0
xdp_audit_covert_alarms_total{device="eth0",test="entropy"} 0
xdp_audit_covert_alarms_total{device="eth0",test="information"} 0
xdp_audit_covert_alarms_total{device="eth0",test="phase"} 4
xdp_audit_covert_alarms_total{device="eth0",test="symbols"} 8
xdp_audit_covert_alarms_total{device="eth1",test="autocorrelation"} 0
xdp_audit_covert_alarms_total{device="eth1",test="entropy"} 0
xdp_audit_covert_alarms_total{device="eth1",test="information"} 0
xdp_audit_covert_alarms_total{device="eth1",test="phase"} 0
xdp_audit_covert_alarms_total{device="eth1",test="symbols"} 0
`
	const rest = `# HELP xdp_audit_covert_skipped_deltas_total Total number of inter-arrival times of watched flows that arrived faster than they were read.
# TYPE xdp_audit_covert_skipped_deltas_total counter
xdp_audit_covert_skipped_deltas_total 4000
# HELP xdp_audit_covert_watched_flows Number of flows whose inter-arrival times are recorded.
# TYPE xdp_audit_covert_watched_flows gauge
xdp_audit_covert_watched_flows 3
# HELP xdp_audit_covert_windows_total Total number of judged windows of inter-arrival times.
# TYPE xdp_audit_covert_windows_total counter
xdp_audit_covert_windows_total{device="eth0"} 15
xdp_audit_covert_windows_total{device="eth1"} 0
`
	const alarming = `# HELP xdp_audit_covert_alarming_flows Number of flows with an alarm of a test other than symbols in each of their last four windows, the last one within ten minutes.
# TYPE xdp_audit_covert_alarming_flows gauge
xdp_audit_covert_alarming_flows{device="eth0"} %d
xdp_audit_covert_alarming_flows{device="eth1"} 0
`
	const scores = `# HELP xdp_audit_covert_score Highest score of the test for covert timing channels among the flows with a window in the last ten minutes; 1 or more is an alarm; 0 without such a flow.
# TYPE xdp_audit_covert_score gauge
xdp_audit_covert_score{device="eth0",test="autocorrelation"} 0
xdp_audit_covert_score{device="eth0",test="entropy"} 0
xdp_audit_covert_score{device="eth0",test="information"} 0
xdp_audit_covert_score{device="eth0",test="phase"} %v
xdp_audit_covert_score{device="eth0",test="symbols"} %v
xdp_audit_covert_score{device="eth1",test="autocorrelation"} 0
xdp_audit_covert_score{device="eth1",test="entropy"} 0
xdp_audit_covert_score{device="eth1",test="information"} 0
xdp_audit_covert_score{device="eth1",test="phase"} 0
xdp_audit_covert_score{device="eth1",test="symbols"} 0
`
	const symbols = `# HELP xdp_audit_covert_symbol_flows Number of flows with symbols, as a channel or an application with few delays has, in each of their last four windows, the last one within ten minutes.
# TYPE xdp_audit_covert_symbol_flows gauge
xdp_audit_covert_symbol_flows{device="eth0"} %d
xdp_audit_covert_symbol_flows{device="eth1"} 0
`
	found := c.Report(noon, []string{"eth0"})[0].Scores
	if found[covert.Symbols] < 2 || found[covert.Phase] < 2 {
		t.Fatalf("the scores are %v", found)
	}
	all := func(flows int, scoreOfPhase, scoreOfSymbols float64) string {
		return counts + fmt.Sprintf(alarming, flows) + fmt.Sprintf(symbols, flows) + fmt.Sprintf(scores, scoreOfPhase, scoreOfSymbols) + rest
	}
	at := func(after time.Duration) covertCollector {
		return newCovertCollector(source, c, func() time.Time { return noon.Add(after) })
	}
	expect(t, at(-9*time.Minute), all(1, found[covert.Phase], found[covert.Symbols]))
	expect(t, at(10*time.Minute), all(1, found[covert.Phase], found[covert.Symbols]))
	expect(t, at(10*time.Minute+1), all(0, 0, 0))
}

// BenchmarkCovertScrape exports the state of 4096 flows.
func BenchmarkCovertScrape(b *testing.B) {
	c := NewCovert()
	window := covertWindow(covertFlow("eth0", 0), 0, twoSymbols)
	for port := range 4096 {
		window.Flow = covertFlow("eth0", port)
		c.Judge(window)
	}
	source := &fakeSource{counters: []bpf.Counters{{Device: "eth0"}}}
	collector := registered{nil, newCovertCollector(source, c, func() time.Time { return noon })}
	for b.Loop() {
		if n := testutil.CollectAndCount(collector); n < 10 {
			b.Fatal(n)
		}
	}
}

// docs/metrics.md has the number of series. The exporter adds two series for the duration and
// the success of the collector.
func TestCovertSeries(t *testing.T) {
	for devices := range 3 {
		source := &fakeSource{counters: make([]bpf.Counters, devices)}
		for i := range source.counters {
			source.counters[i].Device = fmt.Sprint("eth", i)
		}
		collector := registered{nil, newCovertCollector(source, NewCovert(), time.Now)}
		if got, want := testutil.CollectAndCount(collector), 14*devices+2; got != want {
			t.Errorf("%d devices have %d series, want %d", devices, got, want)
		}
	}
}
