// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
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

// twoInTurn are too near each other to have a phase.
func twoInTurn(i int) uint32 { return 1_000_000 + 4000*uint32(i%2) }

func steady(int) uint32 { return 1_000_000 }

func TestCovert(t *testing.T) {
	source := &fakeSource{
		counters: []bpf.Counters{{Device: "eth0"}, {Device: "eth1"}},
		watch:    bpf.WatchCounts{Flows: 3, Skipped: 4000},
	}
	expect(t, newCovertCollector(source, nil, time.Now), "")

	c := NewCovert()
	for second := range time.Duration(alarmingWindows) {
		c.Judge(covertWindow(covertFlow("eth0", 1), second*time.Second-3*time.Second, twoInTurn))
	}
	// As many windows alarm, but not in a row.
	for second := range time.Duration(alarmingWindows + 1) {
		delta := twoInTurn
		if second == 1 {
			delta = steady
		}
		c.Judge(covertWindow(covertFlow("eth0", 4), second*time.Second-10*time.Minute, delta))
	}
	c.Judge(covertWindow(covertFlow("eth0", 2), time.Minute, steady))
	c.Judge(covertWindow(covertFlow("eth0", 2), 2*time.Minute, steady))
	c.Judge(covertWindow(covertFlow("gone", 3), 2*time.Minute, twoInTurn))
	const counts = `
# HELP xdp_audit_covert_alarmed_windows_total Windows of deltas of which a test alarmed.
# TYPE xdp_audit_covert_alarmed_windows_total counter
xdp_audit_covert_alarmed_windows_total{device="eth0"} 8
xdp_audit_covert_alarmed_windows_total{device="eth1"} 0
# HELP xdp_audit_covert_alarms_total Windows of deltas of which this test alarmed.
# TYPE xdp_audit_covert_alarms_total counter
xdp_audit_covert_alarms_total{device="eth0",test="autocorrelation"} 0
xdp_audit_covert_alarms_total{device="eth0",test="entropy"} 0
xdp_audit_covert_alarms_total{device="eth0",test="information"} 0
xdp_audit_covert_alarms_total{device="eth0",test="phase"} 0
xdp_audit_covert_alarms_total{device="eth0",test="symbols"} 8
xdp_audit_covert_alarms_total{device="eth1",test="autocorrelation"} 0
xdp_audit_covert_alarms_total{device="eth1",test="entropy"} 0
xdp_audit_covert_alarms_total{device="eth1",test="information"} 0
xdp_audit_covert_alarms_total{device="eth1",test="phase"} 0
xdp_audit_covert_alarms_total{device="eth1",test="symbols"} 0
`
	const rest = `# HELP xdp_audit_covert_skipped_deltas_total Deltas of watched flows that came faster than they were read.
# TYPE xdp_audit_covert_skipped_deltas_total counter
xdp_audit_covert_skipped_deltas_total 4000
# HELP xdp_audit_covert_watched_flows Flows whose deltas are recorded.
# TYPE xdp_audit_covert_watched_flows gauge
xdp_audit_covert_watched_flows 3
# HELP xdp_audit_covert_windows_total Windows of deltas that were judged.
# TYPE xdp_audit_covert_windows_total counter
xdp_audit_covert_windows_total{device="eth0"} 11
xdp_audit_covert_windows_total{device="eth1"} 0
`
	const alarming = `# HELP xdp_audit_covert_alarming_flows Flows of which each of the last four windows alarmed, the last one within ten minutes.
# TYPE xdp_audit_covert_alarming_flows gauge
xdp_audit_covert_alarming_flows{device="eth0"} %d
xdp_audit_covert_alarming_flows{device="eth1"} 0
`
	const scores = `# HELP xdp_audit_covert_score Highest score of a test for covert timing channels among the flows with a window in the last ten minutes, 1 and more is an alarm; 0 without any.
# TYPE xdp_audit_covert_score gauge
xdp_audit_covert_score{device="eth0",test="autocorrelation"} 0
xdp_audit_covert_score{device="eth0",test="entropy"} 0
xdp_audit_covert_score{device="eth0",test="information"} 0
xdp_audit_covert_score{device="eth0",test="phase"} 0
xdp_audit_covert_score{device="eth0",test="symbols"} %s
xdp_audit_covert_score{device="eth1",test="autocorrelation"} 0
xdp_audit_covert_score{device="eth1",test="entropy"} 0
xdp_audit_covert_score{device="eth1",test="information"} 0
xdp_audit_covert_score{device="eth1",test="phase"} 0
xdp_audit_covert_score{device="eth1",test="symbols"} 0
`
	// Four bits of entropy are missing, and the limit is a half.
	at := func(after time.Duration) covertCollector {
		return newCovertCollector(source, c, func() time.Time { return noon.Add(after) })
	}
	expect(t, at(-9*time.Minute), counts+fmt.Sprintf(alarming, 1)+fmt.Sprintf(scores, "8")+rest)
	expect(t, at(10*time.Minute), counts+fmt.Sprintf(alarming, 1)+fmt.Sprintf(scores, "8")+rest)
	expect(t, at(10*time.Minute+1), counts+fmt.Sprintf(alarming, 0)+fmt.Sprintf(scores, "0")+rest)
}

// Of devices that come and go by the thousand, those that went first are forgotten. One that is there never is.
func TestDevicesAreForgotten(t *testing.T) {
	c := NewCovert()
	c.devices["eth0"] = &covertCounts{windows: 3, judged: noon}
	for i := range 2 * mostDevices {
		c.devices[fmt.Sprintf("veth%d", i)] = &covertCounts{windows: 1, judged: noon.Add(time.Duration(i+1) * time.Second)}
	}
	source := &fakeSource{counters: []bpf.Counters{{Device: "eth0"}, {Device: "eth1"}}}
	const name = "xdp_audit_covert_windows_total"
	shown := gatherer(t, registered{t, newCovertCollector(source, c, func() time.Time { return noon })})
	if err := testutil.GatherAndCompare(shown, strings.NewReader(`
# HELP xdp_audit_covert_windows_total Windows of deltas that were judged.
# TYPE xdp_audit_covert_windows_total counter
xdp_audit_covert_windows_total{device="eth0"} 3
xdp_audit_covert_windows_total{device="eth1"} 0
`), name); err != nil {
		t.Error(err)
	}
	if len(c.devices) != mostDevices {
		t.Errorf("%d devices are kept, want %d", len(c.devices), mostDevices)
	}
	for _, name := range []string{"eth0", fmt.Sprintf("veth%d", mostDevices+1), fmt.Sprintf("veth%d", 2*mostDevices-1)} {
		if c.devices[name] == nil {
			t.Errorf("%s is forgotten", name)
		}
	}
	if c.devices[fmt.Sprintf("veth%d", mostDevices)] != nil {
		t.Error("a device is kept that went before others which are not")
	}
}

// Of alarms in a row the first has a verdict, and one in a minute after that, with the number of those between.
func TestVerdictsAreRare(t *testing.T) {
	c := NewCovert()
	var got []string
	for second := 0; second < 150; second += 10 {
		delta := twoInTurn
		if second == 30 {
			delta = steady
		}
		if verdict := c.Judge(covertWindow(covertFlow("eth0", 1), time.Duration(second)*time.Second, delta)); verdict != nil {
			got = append(got, fmt.Sprint(second, verdict.Tests[0], verdict.Earlier, verdict.Alarms))
		}
	}
	if want := []string{"0 symbols 0 1", "60 symbols 6 5", "120 symbols 12 6"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if c.Judge(covertWindow(covertFlow("eth0", 2), time.Second, twoInTurn)) == nil {
		t.Error("another flow has no verdict of its own")
	}
}

// A flow is judged by its own past, and by nothing of another one's.
func TestPastsOfFlows(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func(int) uint32 { return uint32(1e6 * r.ExpFloat64()) }
	correlated := func() func(int) uint32 {
		level := 0.
		return func(int) uint32 {
			level = 0.95*level + 0.05*r.Float64()
			return uint32(1e6 * level)
		}
	}()
	c := NewCovert()
	for range covert.PastLength {
		c.Judge(covertWindow(covertFlow("eth0", 1), 0, random))
		c.Judge(covertWindow(covertFlow("eth0", 2), 0, correlated))
	}
	for port, delta := range map[int]func(int) uint32{1: random, 2: correlated} {
		if verdict := c.Judge(covertWindow(covertFlow("eth0", port), 0, delta)); verdict != nil {
			t.Errorf("flow %d goes on as before, and alarms: %+v", port, verdict)
		}
	}
	for port, delta := range map[int]func(int) uint32{1: correlated, 2: random} {
		verdict := c.Judge(covertWindow(covertFlow("eth0", port), 0, delta))
		if verdict == nil || !slices.Contains(verdict.Tests, covert.Autocorrelation) {
			t.Errorf("flow %d becomes another, and the verdict is %+v", port, verdict)
		}
	}
}

// The flows whose past is kept are bounded: the one without a window for longest is forgotten.
func TestPastsAreBounded(t *testing.T) {
	c := NewCovert()
	window := covertWindow(covertFlow("eth0", 0), 0, steady)
	for port := range mostPasts + 10 {
		window.Flow = covertFlow("eth0", port)
		window.Time = noon.Add(time.Duration(port) * time.Second)
		if port == mostPasts {
			first := *window
			first.Flow = covertFlow("eth0", 0)
			c.Judge(&first)
		}
		c.Judge(window)
	}
	if len(c.pasts) != mostPasts {
		t.Errorf("%d pasts are kept, want %d", len(c.pasts), mostPasts)
	}
	if c.pasts[covertFlow("eth0", 0)] == nil || c.pasts[covertFlow("eth0", 1)] != nil {
		t.Error("not the flow without a window for longest is forgotten")
	}
}

// BenchmarkCovertRound judges a window of each of 64 flows; BenchmarkCovertScrape exports what is known of 4096.
func BenchmarkCovertRound(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	c := NewCovert()
	window := covertWindow(covertFlow("eth0", 0), 0, func(int) uint32 { return uint32(1e6 * r.ExpFloat64()) })
	for b.Loop() {
		for port := range 64 {
			window.Flow = covertFlow("eth0", port)
			c.Judge(window)
		}
	}
}

func BenchmarkCovertScrape(b *testing.B) {
	c := NewCovert()
	window := covertWindow(covertFlow("eth0", 0), 0, twoInTurn)
	for port := range mostPasts {
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

// docs/metrics.md has the number of series. Two of the exporter's four are the collector's duration and success.
func TestCovertSeries(t *testing.T) {
	for devices := range 3 {
		source := &fakeSource{counters: make([]bpf.Counters, devices)}
		for i := range source.counters {
			source.counters[i].Device = fmt.Sprint("eth", i)
		}
		collector := registered{nil, newCovertCollector(source, NewCovert(), time.Now)}
		if got, want := testutil.CollectAndCount(collector), 13*devices+2; got != want {
			t.Errorf("%d devices have %d series, want %d", devices, got, want)
		}
	}
}

func TestCovertScoresAreNotMixedUp(t *testing.T) {
	c := NewCovert()
	c.Judge(covertWindow(covertFlow("eth0", 1), 0, twoInTurn))
	c.Judge(covertWindow(covertFlow("eth1", 1), 0, steady))
	states := c.states(noon)
	if states["eth0"].highest[covert.Symbols] < 1 || states["eth1"].highest[covert.Symbols] != 0 {
		t.Errorf("got %v", states)
	}
	if strings.Contains(fmt.Sprint(states), "NaN") {
		t.Errorf("a test that cannot judge has a score: %v", states)
	}
}
