// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package pages

import (
	"fmt"
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
)

// CovertPage is the content of the page of covert channels.
type CovertPage struct {
	Time          time.Time      `json:"time"`
	WindowLength  int            `json:"window_length"` // inter-arrival times of a window
	WatchedFlows  int            `json:"watched_flows"`
	SkippedDeltas uint64         `json:"skipped_deltas"` // that came faster than they were read
	Devices       []CovertDevice `json:"devices"`
}

// CovertDevice is the state of a device.
type CovertDevice struct {
	Device         string            `json:"device"`
	Windows        uint64            `json:"windows"`
	AlarmedWindows uint64            `json:"alarmed_windows"`
	AlarmingFlows  int               `json:"alarming_flows"`
	SymbolFlows    int               `json:"symbol_flows"`
	Alarms         map[string]uint64 `json:"alarms"` // windows with an alarm, by test
	// Scores are the highest of the flows with a window in the last ten minutes; 1 is an alarm.
	Scores map[string]float64 `json:"scores"`

	Tests []CovertTest `json:"-"`
	Chart *chart       `json:"-"`
}

// CovertTest is a row of the table of a device.
type CovertTest struct {
	Name   string
	Score  float64
	Alarms uint64
}

// Meanings returns the tests with what they alarm on.
func (*CovertPage) Meanings() (meanings [covert.NumTests][2]string) {
	for test := range covert.NumTests {
		meanings[test] = [2]string{test.String(), testMeanings[test]}
	}
	return meanings
}

var testMeanings = [covert.NumTests]string{
	covert.Symbols:         "few values of inter-arrival times with gaps between them, as symbols have",
	covert.Phase:           "packets prefer a phase of a period",
	covert.Entropy:         "the entropy differs from the flow's past",
	covert.Information:     "what an inter-arrival time says about the next differs from the flow's past",
	covert.Autocorrelation: "the correlation of neighbours differs from the flow's past",
}

// mostCharts is the number of devices with a drawing.
const mostCharts = 8

// covert returns the content of the page of covert channels. The parameter device selects a device.
func (s *Site) covert(r *http.Request) (any, error) {
	now := s.Now()
	watched := s.Source.WatchCounts()
	p := &CovertPage{Time: now, WindowLength: covert.WindowLength, WatchedFlows: watched.Flows, SkippedDeltas: watched.Skipped, Devices: []CovertDevice{}}
	counters := s.Source.Counters()
	names := make([]string, len(counters))
	for i := range counters {
		names[i] = counters[i].Device
	}
	only := r.URL.Query().Get("device")
	if only != "" && !slices.Contains(names, only) {
		return nil, errMissing{"There is no such device."}
	}
	charts := 0
	for i, report := range s.Covert.Report(now, names) {
		if only != "" && names[i] != only {
			continue
		}
		d := CovertDevice{
			Device: names[i], Windows: report.Windows, AlarmedWindows: report.AlarmedWindows,
			AlarmingFlows: report.AlarmingFlows, SymbolFlows: report.SymbolFlows,
			Alarms: map[string]uint64{}, Scores: map[string]float64{},
		}
		for test := range covert.NumTests {
			d.Alarms[test.String()], d.Scores[test.String()] = report.Alarms[test], finite(report.Scores[test])
			d.Tests = append(d.Tests, CovertTest{test.String(), finite(report.Scores[test]), report.Alarms[test]})
		}
		if !isAPI(r) && charts < mostCharts {
			charts++
			d.Chart = s.drawCovert(names[i], now)
		}
		p.Devices = append(p.Devices, d)
	}
	return p, nil
}

// drawCovert draws the scores of the tests of a device over the last ten minutes.
func (s *Site) drawCovert(name string, now time.Time) *chart {
	c := newChart("Scores of the tests on "+name, 240)
	c.YName = "score"
	c.timeAxis()
	var steps [covert.NumTests][sparkSteps]float64 // highest scores
	most := 0.
	for test := range steps {
		for i := range steps[test] {
			steps[test][i] = math.NaN()
		}
	}
	for _, at := range s.History.Scores(name) {
		i := sparkSteps - 1 - int(now.Sub(at.Time)/(span/sparkSteps))
		for test, v := range at.Scores {
			if i < 0 || i >= sparkSteps || math.IsNaN(v) {
				continue
			}
			if step := &steps[test][i]; math.IsNaN(*step) || v > *step {
				*step = v
			}
			most = max(most, v)
		}
	}
	if most == 0 {
		c.Empty = "No window has been scored in the last 10 minutes."
		return c
	}
	c.y = axis{least: 0, most: max(1.2, most*1.05), from: c.Bottom, to: c.Top}
	c.YTicks = c.y.linear(4, digits)
	c.Levels = []mark{{At: c.y.at(1), Text: "alarm"}}
	for test := range covert.NumTests {
		path := line(steps[test][:], func(i int, v float64) (x, y float64) {
			return c.x.at((float64(i+1)/sparkSteps - 1) * span.Seconds()), c.y.at(v)
		})
		c.Lines = append(c.Lines, curve{Path: path, Color: colors[test].name, Fill: colors[test].fill})
		c.legend(int(test), test.String())
	}
	c.Label = fmt.Sprintf("Highest scores of the five tests on %s over the last 10 minutes: at most %s; 1 is an alarm", name, digits(most))
	return c
}
