// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package covert

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

const (
	// scoreMaxAge is the age at which the score of a window no longer counts for the highest
	// score of its device.
	scoreMaxAge = 10 * time.Minute
	// alarmingWindows is the number of consecutive windows with an alarm that make a flow an
	// alarming one. Alarms of consecutive windows of a flow are not independent, because they
	// are judged by the same past: docs/statistics.md has the measured share of such flows.
	alarmingWindows = 4
	// verdictInterval is the minimum time between two verdicts on a flow.
	verdictInterval = time.Minute
	// maxFlows is the number of flows whose history is kept. A new flow replaces the one with
	// the oldest last window.
	maxFlows = 4096
	// maxDevices is the number of devices whose counts are kept. It equals the maximum number
	// of audited devices.
	maxDevices = 4096
)

// Judge judges windows of deltas by the earlier windows of their flows, and counts the alarms
// of each device. Its methods are safe for concurrent use.
type Judge struct {
	mu      sync.Mutex
	meter   *Meter
	flows   map[bpf.Flow]*flowHistory
	devices map[string]*deviceCounts
}

// flowHistory is the history of one flow.
type flowHistory struct {
	past         Past
	scores       Scores    // of the last window
	lastWindow   time.Time // time of the last window
	lastVerdict  time.Time
	alarmedSince int // windows with an alarm since the last verdict
	streak       Streak
}

// Streak counts the consecutive windows of a flow with an alarm, back from the last window.
type Streak struct {
	symbols int // with an alarm of Symbols
	others  int // with an alarm of another test
}

// Add adds a window with the tests that alarmed.
func (s *Streak) Add(alarms []Test) {
	if slices.Contains(alarms, Symbols) {
		s.symbols++
	} else {
		s.symbols = 0
	}
	if slices.ContainsFunc(alarms, func(t Test) bool { return t != Symbols }) {
		s.others++
	} else {
		s.others = 0
	}
}

// IsAlarming returns true if each of the last four windows alarmed by a test other than Symbols.
// The symbols of an application with few delays are like those of a channel.
func (s *Streak) IsAlarming() bool { return s.others >= alarmingWindows }

// HasSymbols returns true if each of the last four windows alarmed by Symbols.
func (s *Streak) HasSymbols() bool { return s.symbols >= alarmingWindows }

// deviceCounts are the counts of one device. They never decrease while the device is audited.
type deviceCounts struct {
	windows, alarmed uint64
	alarms           [NumTests]uint64
	lastWindow       time.Time
}

// NewJudge returns a Judge without any history.
func NewJudge() *Judge {
	return &Judge{meter: NewMeter(), flows: map[bpf.Flow]*flowHistory{}, devices: map[string]*deviceCounts{}}
}

// Judge judges a window of [WindowLength] deltas. It returns a verdict for the first window of
// a flow with an alarm, and for later ones at most once a minute; otherwise nil.
func (j *Judge) Judge(window *bpf.Window) *Verdict {
	j.mu.Lock()
	defer j.mu.Unlock()
	flow := j.history(window.Flow)
	earlier := flow.past.Windows()
	flow.scores = j.meter.Judge(&flow.past, j.meter.Measure(window.DeltasNs))
	flow.lastWindow = window.Time
	tests := flow.scores.Alarms()

	counts := j.devices[window.Device]
	if counts == nil {
		counts = &deviceCounts{}
		j.devices[window.Device] = counts
	}
	counts.windows++
	counts.lastWindow = window.Time
	flow.streak.Add(tests)
	if len(tests) == 0 {
		return nil
	}
	flow.alarmedSince++
	counts.alarmed++
	for _, test := range tests {
		counts.alarms[test]++
	}
	if window.Time.Sub(flow.lastVerdict) < verdictInterval {
		return nil
	}
	verdict := &Verdict{Tests: tests, Scores: flow.scores, Earlier: earlier, Alarms: flow.alarmedSince}
	flow.lastVerdict, flow.alarmedSince = window.Time, 0
	return verdict
}

// history returns the history of a flow. If there are too many flows, a new one replaces the
// one with the oldest last window.
func (j *Judge) history(flow bpf.Flow) *flowHistory {
	if history := j.flows[flow]; history != nil {
		return history
	}
	if len(j.flows) >= maxFlows {
		oldest := slices.MinFunc(slices.Collect(maps.Keys(j.flows)), func(a, b bpf.Flow) int {
			return j.flows[a].lastWindow.Compare(j.flows[b].lastWindow)
		})
		delete(j.flows, oldest)
	}
	history := &flowHistory{}
	j.flows[flow] = history
	return history
}

// DeviceReport is the state of one device.
type DeviceReport struct {
	Windows        uint64           // windows judged
	AlarmedWindows uint64           // windows with an alarm of any test
	Alarms         [NumTests]uint64 // windows with an alarm, by test
	Scores         Scores           // highest score of each test in recent windows; 0 without any
	AlarmingFlows  int              // flows of which Streak.IsAlarming
	SymbolFlows    int              // flows of which Streak.HasSymbols
}

// Report returns the state of each of the audited devices, in their order. Of devices that are
// no longer audited it drops those with the oldest last window, so that the memory stays
// bounded.
func (j *Judge) Report(now time.Time, devices []string) []DeviceReport {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.dropDevices(devices)
	current := j.currentFlows(now)
	reports := make([]DeviceReport, len(devices))
	for i, device := range devices {
		reports[i] = current[device]
		if counts := j.devices[device]; counts != nil {
			reports[i].Windows, reports[i].AlarmedWindows, reports[i].Alarms = counts.windows, counts.alarmed, counts.alarms
		}
	}
	return reports
}

// dropDevices drops the counts of devices until maxDevices remain. It keeps the audited
// devices, whose counts must not decrease.
func (j *Judge) dropDevices(audited []string) {
	excess := len(j.devices) - maxDevices
	if excess <= 0 {
		return
	}
	gone := maps.Clone(j.devices)
	for _, device := range audited {
		delete(gone, device)
	}
	oldest := slices.SortedFunc(maps.Keys(gone), func(a, b string) int { return gone[a].lastWindow.Compare(gone[b].lastWindow) })
	for _, device := range oldest[:min(excess, len(oldest))] {
		delete(j.devices, device)
	}
}

// currentFlows returns the scores and the alarming flows of each device with a recent window.
func (j *Judge) currentFlows(now time.Time) map[string]DeviceReport {
	reports := map[string]DeviceReport{}
	for flow, history := range j.flows {
		if now.Sub(history.lastWindow) > scoreMaxAge {
			continue
		}
		report := reports[flow.Device]
		for test, score := range history.scores {
			if score > report.Scores[test] { // false for NaN, the score of a test that cannot judge
				report.Scores[test] = score
			}
		}
		if history.streak.IsAlarming() {
			report.AlarmingFlows++
		}
		if history.streak.HasSymbols() {
			report.SymbolFlows++
		}
		reports[flow.Device] = report
	}
	return reports
}
