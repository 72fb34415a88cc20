// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
)

var (
	covertScoreDesc = newDesc("covert_score",
		"Highest score of the test for covert timing channels among the flows with a window in the last ten minutes; 1 or more is an alarm; 0 without such a flow.",
		"device", "test")
	covertAlarmingDesc = newDesc("covert_alarming_flows",
		"Number of flows with an alarm of a test other than symbols in each of their last four windows, the last one within ten minutes.", "device")
	covertSymbolDesc = newDesc("covert_symbol_flows",
		"Number of flows with symbols, as a channel or an application with few delays has, in each of their last four windows, the last one within ten minutes.", "device")
	covertWindowsDesc = newDesc("covert_windows_total", "Total number of judged windows of inter-arrival times.", "device")
	covertAlarmedDesc = newDesc("covert_alarmed_windows_total", "Total number of windows in which at least one test alarmed.", "device")
	covertAlarmsDesc  = newDesc("covert_alarms_total", "Total number of windows in which the test alarmed.", "device", "test")
	covertFlowsDesc   = newDesc("covert_watched_flows", "Number of flows whose inter-arrival times are recorded.")
	covertSkippedDesc = newDesc("covert_skipped_deltas_total", "Total number of inter-arrival times of watched flows that arrived faster than they were read.")
)

var testLabels = labelsOf("test", covert.NumTests)

// CovertWindow is the number of deltas in the windows that [Covert.Judge] takes.
const CovertWindow = covert.WindowLength

// The types of the judge of covert timing channels.
type (
	// Covert judges windows of deltas by the earlier windows of their flows, and counts the
	// alarms of each device. Its methods are safe for concurrent use.
	Covert = covert.Judge
	// CovertVerdict describes a window with an alarm.
	CovertVerdict = covert.Verdict
	// CovertTest is a test for covert timing channels.
	CovertTest = covert.Test
	// CovertScores are the scores of a window by test: 1 or more is an alarm, NaN is a test
	// that cannot judge the window.
	CovertScores = covert.Scores
	// CovertReport is the state of one device.
	CovertReport = covert.DeviceReport
)

// NewCovert returns a [Covert] without any history.
func NewCovert() *Covert { return covert.NewJudge() }

type covertSource interface {
	Counters() []bpf.Counters
	WatchCounts() bpf.WatchCounts
}

type covertCollector struct {
	source covertSource
	covert *Covert
	now    func() time.Time
}

// newCovertCollector takes a nil judge if no windows are judged.
func newCovertCollector(source covertSource, judge *Covert, now func() time.Time) covertCollector {
	return covertCollector{source, judge, now}
}

// Update sends the state of each device, and nothing without a judge.
func (c covertCollector) Update(ch chan<- prometheus.Metric) error {
	if c.covert == nil {
		return nil
	}
	watched := c.source.WatchCounts()
	ch <- gauge(covertFlowsDesc, float64(watched.Flows))
	ch <- counter(covertSkippedDesc, float64(watched.Skipped))

	counters := c.source.Counters()
	devices := make([]string, len(counters))
	for i := range counters {
		devices[i] = counters[i].Device
	}
	for i, report := range c.covert.Report(c.now(), devices) {
		device := deviceLabel(devices[i])
		ch <- gauge(covertAlarmingDesc, float64(report.AlarmingFlows), device)
		ch <- gauge(covertSymbolDesc, float64(report.SymbolFlows), device)
		ch <- counter(covertWindowsDesc, float64(report.Windows), device)
		ch <- counter(covertAlarmedDesc, float64(report.AlarmedWindows), device)
		for test := range covert.NumTests {
			ch <- counter(covertAlarmsDesc, float64(report.Alarms[test]), device, testLabels[test])
			ch <- gauge(covertScoreDesc, report.Scores[test], device, testLabels[test])
		}
	}
	return nil
}
