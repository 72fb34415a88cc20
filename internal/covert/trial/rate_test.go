// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package trial

import (
	"fmt"
	"slices"

	"gonum.org/v1/gonum/stat/distuv"

	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
)

// Rate is a number of windows, or of flows, and the number of those with an alarm.
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

func (r *Rate) add(isAlarm bool) {
	r.Windows++
	if isAlarm {
		r.Alarms++
	}
}

// Result has the alarms of a trial: of windows by the past alone, unless it says in turn.
type Result struct {
	Combined Rate // of any test
	InTurn   Rate // of any test, in turn
	ByTest   [covert.NumTests]Rate
	Pages    Rate // of flows
}

// Run judges at least the given number of windows and adds up the alarms.
func (f Flows) Run(windows int, seed uint64) Result {
	var result Result
	for _, flow := range f.Judge(windows, seed) {
		for i := range WindowsOfFlow {
			result.Combined.add(len(flow.ByFirst[i]) > 0)
			result.InTurn.add(len(flow.InTurn[i]) > 0)
			for test := range result.ByTest {
				result.ByTest[test].add(slices.Contains(flow.ByFirst[i], covert.Test(test)))
			}
		}
		result.Pages.add(flow.Pages)
	}
	return result
}
