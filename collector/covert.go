// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
)

var (
	covertScoreDesc = newDesc("covert_score",
		"Highest score of a test for covert timing channels among the flows with a window in the last ten minutes, 1 and more is an alarm; 0 without any.",
		"device", "test")
	covertAlarmingDesc = newDesc("covert_alarming_flows",
		"Flows of which each of the last four windows alarmed, the last one within ten minutes.", "device")
	covertWindowsDesc = newDesc("covert_windows_total", "Windows of deltas that were judged.", "device")
	covertAlarmedDesc = newDesc("covert_alarmed_windows_total", "Windows of deltas of which a test alarmed.", "device")
	covertAlarmsDesc  = newDesc("covert_alarms_total", "Windows of deltas of which this test alarmed.", "device", "test")
	covertFlowsDesc   = newDesc("covert_watched_flows", "Flows whose deltas are recorded.")
	covertSkippedDesc = newDesc("covert_skipped_deltas_total", "Deltas of watched flows that came faster than they were read.")
)

const (
	// CovertWindow is the number of deltas in the windows that [Covert.Judge] takes.
	CovertWindow = covert.WindowLength

	// scoreAge is how long a score is among those of which the highest is exported.
	scoreAge = 10 * time.Minute
	// alarmingWindows is how many windows of a flow must alarm in a row until it is among the alarming flows. By chance the
	// four do in less than one of 6 million cases: at most 2 % of windows alarm so.
	alarmingWindows = 4
	// recordInterval is the least time between two records of a flow.
	recordInterval = time.Minute
	// mostPasts is the number of flows whose past is kept; then that of the flow without a window for longest is not.
	mostPasts = 4096
	// mostDevices is the number of devices of which counts are kept, as many as can be audited at a time.
	mostDevices = 4096
)

// Covert judges windows of deltas by the past of their flows, and keeps what is exported of it. Its methods are safe for
// concurrent use.
type Covert struct {
	mu      sync.Mutex
	meter   *covert.Meter
	pasts   map[bpf.Flow]*covertPast
	devices map[string]*covertCounts
}

// covertPast is what is kept of a flow.
type covertPast struct {
	past     covert.Past
	scores   covert.Scores // of the last window
	judged   time.Time     // when that was read
	recorded time.Time     // when a verdict was last to be recorded
	alarms   int           // windows since then of which a test alarmed
	inTurn   int           // windows up to the last one of which a test alarmed each time
}

// covertCounts are those of windows of a device.
type covertCounts struct {
	windows, alarmed uint64
	alarms           [covert.NumTests]uint64
	judged           time.Time // when the last window was read
}

// NewCovert returns a Covert without a past.
func NewCovert() *Covert {
	return &Covert{meter: covert.NewMeter(), pasts: map[bpf.Flow]*covertPast{}, devices: map[string]*covertCounts{}}
}

// Judge judges a window of [CovertWindow] deltas. It returns a verdict if that is to be recorded: the first alarm of a flow,
// and another no sooner than a minute later; otherwise nil.
func (c *Covert) Judge(window *bpf.Window) *covert.Verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	flow := c.past(window.Flow)
	earlier := flow.past.Windows()
	flow.scores = c.meter.Judge(&flow.past, c.meter.Measure(window.DeltasNs))
	flow.judged = window.Time
	tests := flow.scores.Alarms()

	counts := c.devices[window.Device]
	if counts == nil {
		counts = &covertCounts{}
		c.devices[window.Device] = counts
	}
	counts.windows++
	counts.judged = window.Time
	if len(tests) == 0 {
		flow.inTurn = 0
		return nil
	}
	flow.inTurn++
	counts.alarmed++
	for _, test := range tests {
		counts.alarms[test]++
	}
	flow.alarms++
	if window.Time.Sub(flow.recorded) < recordInterval {
		return nil
	}
	verdict := &covert.Verdict{Tests: tests, Scores: flow.scores, Earlier: earlier, Alarms: flow.alarms}
	flow.recorded, flow.alarms = window.Time, 0
	return verdict
}

// past returns what is kept of a flow, and makes room for it.
func (c *Covert) past(flow bpf.Flow) *covertPast {
	if past := c.pasts[flow]; past != nil {
		return past
	}
	if len(c.pasts) >= mostPasts {
		oldest := slices.MinFunc(slices.Collect(maps.Keys(c.pasts)), func(a, b bpf.Flow) int {
			return cmp.Compare(c.pasts[a].judged.UnixNano(), c.pasts[b].judged.UnixNano())
		})
		delete(c.pasts, oldest)
	}
	past := &covertPast{}
	c.pasts[flow] = past
	return past
}

// forget leaves no more devices than are to be kept, but for those that are shown: the counts of such a device must not fall.
// Those without a window for longest go first.
func (c *Covert) forget(shown []bpf.Counters) {
	tooMany := len(c.devices) - mostDevices
	if tooMany <= 0 {
		return
	}
	gone := maps.Clone(c.devices)
	for i := range shown {
		delete(gone, shown[i].Device)
	}
	oldest := slices.SortedFunc(maps.Keys(gone), func(a, b string) int { return gone[a].judged.Compare(gone[b].judged) })
	for _, device := range oldest[:min(tooMany, len(oldest))] {
		delete(c.devices, device)
	}
}

// covertState is that of the flows of a device whose last window is not too old.
type covertState struct {
	highest  covert.Scores // of each test
	alarming int           // flows that alarm in each window
}

// states returns the state of each device with such flows.
func (c *Covert) states(now time.Time) map[string]covertState {
	states := map[string]covertState{}
	for flow, past := range c.pasts {
		if now.Sub(past.judged) > scoreAge {
			continue
		}
		state := states[flow.Device]
		for test, score := range past.scores {
			if score > state.highest[test] { // not NaN
				state.highest[test] = score
			}
		}
		if past.inTurn >= alarmingWindows {
			state.alarming++
		}
		states[flow.Device] = state
	}
	return states
}

type covertSource interface {
	Counters() []bpf.Counters
	WatchCounts() bpf.WatchCounts
}

type covertCollector struct {
	source covertSource
	covert *Covert
	now    func() time.Time
}

// newCovertCollector takes nil when no windows are judged.
func newCovertCollector(source covertSource, judged *Covert, now func() time.Time) covertCollector {
	return covertCollector{source, judged, now}
}

// Update sends what was judged, and nothing if nothing is.
func (c covertCollector) Update(ch chan<- prometheus.Metric) error {
	if c.covert == nil {
		return nil
	}
	watched := c.source.WatchCounts()
	ch <- gauge(covertFlowsDesc, float64(watched.Flows))
	ch <- counter(covertSkippedDesc, float64(watched.Skipped))

	c.covert.mu.Lock()
	defer c.covert.mu.Unlock()
	states := c.covert.states(c.now())
	counters := c.source.Counters()
	c.covert.forget(counters)
	for i := range counters {
		device := counters[i].Device
		var counts covertCounts
		if judged := c.covert.devices[device]; judged != nil {
			counts = *judged
		}
		state := states[device]
		ch <- gauge(covertAlarmingDesc, float64(state.alarming), device)
		ch <- counter(covertWindowsDesc, float64(counts.windows), device)
		ch <- counter(covertAlarmedDesc, float64(counts.alarmed), device)
		for test := range covert.NumTests {
			ch <- counter(covertAlarmsDesc, float64(counts.alarms[test]), device, test.String())
			ch <- gauge(covertScoreDesc, state.highest[test], device, test.String())
		}
	}
	return nil
}
