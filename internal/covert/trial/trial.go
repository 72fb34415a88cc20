// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package trial measures how often the tests for covert timing channels alarm on simulated traffic.
package trial

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"

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
