// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package trial measures how often the tests for covert timing channels alarm on simulated traffic.
package trial

import (
	"fmt"

	"gonum.org/v1/gonum/stat/distuv"

	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

const (
	// windowsOfFlow is the number of judged windows of a flow. All are judged against the same
	// past.
	windowsOfFlow = 20
	// TrainingWindows is the length of that past.
	TrainingWindows = 16
)

// Flows describes the flows of a trial.
type Flows struct {
	Name  string
	Cover traffic.Kind // traffic of the past; nil for no past
	Then  traffic.Kind // judged traffic; nil if the cover continues
}

// Rate is a number of windows and the number of those with an alarm.
type Rate struct{ Alarms, Windows int }

// Share returns the fraction of windows with an alarm.
func (r Rate) Share() float64 { return float64(r.Alarms) / float64(r.Windows) }

// Interval returns the Clopper-Pearson interval of the rate for a confidence such as 0.95, as
// if the windows were independent.
func (r Rate) Interval(confidence float64) (low, high float64) {
	tail := (1 - confidence) / 2
	k, n := float64(r.Alarms), float64(r.Windows)
	low, high = 0, 1
	if r.Alarms > 0 {
		low = distuv.Beta{Alpha: k, Beta: n - k + 1}.Quantile(tail)
	}
	if r.Alarms < r.Windows {
		high = distuv.Beta{Alpha: k + 1, Beta: n - k}.Quantile(1 - tail)
	}
	return low, high
}

// String returns the share and its interval for a confidence of 0.95.
func (r Rate) String() string {
	low, high := r.Interval(0.95)
	return fmt.Sprintf("%.4f (%.4f–%.4f)", r.Share(), low, high)
}

// Result has the alarms of a trial.
type Result struct {
	Combined Rate // of any test
	ByTest   [covert.NumTests]Rate
}

// Run judges at least the given number of windows. The seed and the name of the flows determine
// the random numbers.
func (f Flows) Run(windows int, seed uint64) Result {
	var result Result
	meter := covert.NewMeter()
	window := make([]uint32, covert.WindowLength)
	measure := func(source traffic.Source) covert.Statistics {
		for i := range window {
			window[i] = uint32(min(traffic.Round(source()), 1<<31))
		}
		return meter.Measure(window)
	}
	for flow := 0; result.Combined.Windows < windows; flow++ {
		r := traffic.Rand(seed, fmt.Sprint(f.Name, flow))
		var source traffic.Source
		var past covert.Past
		if f.Cover != nil {
			source = f.Cover(r)
			for range TrainingWindows {
				meter.Judge(&past, measure(source))
			}
		}
		if f.Then != nil {
			source = f.Then(r)
		}
		for range windowsOfFlow {
			copied := past
			result.add(meter.Judge(&copied, measure(source)))
		}
	}
	return result
}

func (r *Result) add(scores covert.Scores) {
	alarms := scores.Alarms()
	r.Combined.Windows++
	if len(alarms) > 0 {
		r.Combined.Alarms++
	}
	for test := range r.ByTest {
		r.ByTest[test].Windows++
	}
	for _, test := range alarms {
		r.ByTest[test].Alarms++
	}
}
