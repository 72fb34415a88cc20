// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package trial measures how often the tests for covert timing channels alarm on simulated traffic.
package trial

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"

	"gonum.org/v1/gonum/stat/distuv"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

const (
	// WindowsOfFlow is the number of judged windows of a flow.
	WindowsOfFlow = 20
	// TrainingWindows is the number of windows of the cover before them.
	TrainingWindows = 16
)

// Flows describes the flows of a trial.
type Flows struct {
	Name  string
	Cover traffic.Kind // traffic of the past; nil for no past
	Then  traffic.Kind // judged traffic; nil if the cover continues
}

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

// Flow has the alarms of one flow.
type Flow struct {
	ByFirst [WindowsOfFlow][]covert.Test // each window as if it came after those of the past
	InTurn  [WindowsOfFlow][]covert.Test // as the exporter judges: after all windows before
	Pages   bool                         // in turn, it was an alarming flow at some time
	Symbols bool                         // in turn, it had symbols in four windows in a row
}

// Judge judges at least the given number of windows. The seed and the name of the flows
// determine the random numbers.
func (f Flows) Judge(windows int, seed uint64) []Flow {
	flows := make([]Flow, (windows+WindowsOfFlow-1)/WindowsOfFlow)
	var group sync.WaitGroup
	running := make(chan struct{}, runtime.GOMAXPROCS(0))
	for i := range flows {
		group.Go(func() {
			running <- struct{}{}
			defer func() { <-running }()
			flows[i] = f.judgeFlow(traffic.Rand(seed, fmt.Sprint(f.Name, i)))
		})
	}
	group.Wait()
	return flows
}

func (f Flows) judgeFlow(r *rand.Rand) (flow Flow) {
	meter := covert.NewMeter()
	window := make([]uint32, covert.WindowLength)
	// A longer time between packets is not a delta.
	idleNs := uint64(bpf.DefaultConfig().IdleTimeout)
	measure := func(source traffic.Source) covert.Statistics {
		for i := 0; i < len(window); {
			if delta := traffic.Round(source()); delta <= idleNs {
				window[i] = uint32(delta)
				i++
			}
		}
		return meter.Measure(window)
	}
	var source traffic.Source
	var first covert.Past
	if f.Cover != nil {
		source = f.Cover(r)
		for range TrainingWindows {
			meter.Judge(&first, measure(source))
		}
	}
	if f.Then != nil {
		source = f.Then(r)
	}
	past, streak := first, covert.Streak{}
	for i := range WindowsOfFlow {
		statistics, copied := measure(source), first
		flow.ByFirst[i] = meter.Judge(&copied, statistics).Alarms()
		flow.InTurn[i] = meter.Judge(&past, statistics).Alarms()
		streak.Add(flow.InTurn[i])
		flow.Pages = flow.Pages || streak.IsAlarming()
		flow.Symbols = flow.Symbols || streak.HasSymbols()
	}
	return flow
}

// Result has the alarms of a trial, of windows by the past alone.
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

func (r *Rate) add(isAlarm bool) {
	r.Windows++
	if isAlarm {
		r.Alarms++
	}
}
