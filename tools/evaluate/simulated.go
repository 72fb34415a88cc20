// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"fmt"
	"slices"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
	"github.com/xdp-audit/xdp_audit_exporter/internal/covert/trial"
)

const (
	tableNothingHidden = "covert: nothing hidden"
	tableSweeps        = "covert: other parameters"
	tableAmbiguous     = "covert: applications like channels"
	tableJittered      = "covert: symbols with jitter"
	tableMemory        = "covert: JitterBug in covers with memory"
	tableNoMemory      = "covert: JitterBug in covers without memory"

	columnWindows = "windows that alarm"
	columnSymbols = "flows with symbols"
	columnPages   = "flows that page"
)

// simulatedWindows measures which windows raise an alarm without the XDP program, which only
// records them: many windows of many kinds of traffic. The windows of some flows are recorded.
func simulatedWindows() []experiment {
	const nothingHidden, ofASweep, ofAChannel, recorded = 3000, 40, 500, 1000
	config := bpf.DefaultConfig()
	config.Watches = mostWatched
	var all []experiment
	add := func(table, row, column string, windows int, bound bound, measure func(*lab, run) (figure, error)) {
		all = append(all, experiment{
			table: table, row: row, column: column, config: config, packets: windows * covert.WindowLength, bound: bound, measure: measure,
		})
	}
	var judged []func(*lab, run) ([]trial.Flow, error)
	for _, f := range slices.Concat(trial.Slow(), trial.Applications()) {
		flows := simulated(f)
		judged = append(judged, flows)
		add(tableNothingHidden, f.Name, columnWindows, nothingHidden, atMost(0.02), figureOf(windowsThatAlarm, flows))
		add(tableNothingHidden, f.Name, columnPages, nothingHidden, bound{}, figureOf(flowsThatPage, flows))
	}
	add(tableNothingHidden, "all of these", columnPages, nothingHidden*len(judged), atMost(1e-3), figureOf(flowsThatPage, judged...))
	add(tableNothingHidden, "all of these, recorded by the XDP program", columnWindows, recorded, atMost(0.02), measureRecorded)
	for _, sweep := range trial.Sweeps() {
		var flows []func(*lab, run) ([]trial.Flow, error)
		for _, f := range sweep.Flows {
			flows = append(flows, simulated(f))
		}
		b, pages := atMost(0.02), atMost(1e-3)
		if sweep.IsChannel {
			b, pages = atLeast(0.99), bound{}
		}
		windows := ofASweep * len(flows)
		row := fmt.Sprintf("%s, %d kinds", sweep.Name, len(flows))
		add(tableSweeps, row, columnWindows, windows, b, figureOf(windowsThatAlarm, flows...))
		add(tableSweeps, row, columnSymbols, windows, bound{}, figureOf(flowsWithSymbols, flows...))
		add(tableSweeps, row, columnPages, windows, pages, figureOf(flowsThatPage, flows...))
	}
	for _, f := range trial.Ambiguous() {
		flows := simulated(f)
		add(tableAmbiguous, f.Name, columnWindows, nothingHidden, bound{}, figureOf(windowsThatAlarm, flows))
		add(tableAmbiguous, f.Name, columnSymbols, nothingHidden, bound{}, figureOf(flowsWithSymbols, flows))
		add(tableAmbiguous, f.Name, columnPages, nothingHidden, atMost(1e-3), figureOf(flowsThatPage, flows))
	}
	for _, v := range trial.Jittered() {
		b := bound{}
		if v.Parameter <= 0.15 {
			b = atLeast(0.99)
		}
		add(tableJittered, v.Of, fmt.Sprint(v.Parameter), ofAChannel, b, figureOf(windowsThatAlarm, simulated(v.Flows)))
	}
	for _, v := range trial.JitterBug(true) {
		add(tableMemory, v.Of, fmt.Sprint(v.Parameter, " ms"), ofAChannel, atLeast(0.95), figureOf(windowsThatAlarm, simulated(v.Flows)))
	}
	for _, v := range trial.JitterBug(false) {
		add(tableNoMemory, v.Of, fmt.Sprint(v.Parameter, " ms"), ofAChannel, bound{}, figureOf(windowsThatAlarm, simulated(v.Flows)))
	}
	return all
}

// parametersOf returns the columns of channels with a parameter, in their order.
func parametersOf(channels []trial.Varied, unit string) []string {
	var columns []string
	for _, v := range channels {
		if column := fmt.Sprint(v.Parameter, unit); !slices.Contains(columns, column) {
			columns = append(columns, column)
		}
	}
	return columns
}

// simulated judges the windows of flows once for all experiments.
func simulated(f trial.Flows) func(*lab, run) ([]trial.Flow, error) {
	return once(func(_ *lab, r run) ([]trial.Flow, error) { return f.Judge(r.packets/covert.WindowLength, r.seed), nil })
}

// figureOf returns the share of the judged flows or windows that count adds up. The parts have as
// many packets each.
func figureOf(count func([]trial.Flow) share, parts ...func(*lab, run) ([]trial.Flow, error)) func(*lab, run) (figure, error) {
	return func(l *lab, r run) (figure, error) {
		r.packets /= len(parts)
		var flows []trial.Flow
		for _, judge := range parts {
			judged, err := judge(l, r)
			if err != nil {
				return figure{}, err
			}
			flows = append(flows, judged...)
		}
		return shareFigure(count(flows)), nil
	}
}

func windowsThatAlarm(flows []trial.Flow) share {
	c := counter{packets: len(flows) * trial.WindowsOfFlow}
	for i, flow := range flows {
		for number, alarms := range flow.InTurn {
			c.add(i*trial.WindowsOfFlow+number, len(alarms) > 0)
		}
	}
	return c.share()
}

func flowsThatPage(flows []trial.Flow) share {
	return shareOf(flows, func(f trial.Flow) bool { return f.Pages })
}

func flowsWithSymbols(flows []trial.Flow) share {
	return shareOf(flows, func(f trial.Flow) bool { return f.Symbols })
}

// shareOf returns the share of trials, such as flows, that are independent of each other.
func shareOf[T any](trials []T, isHit func(T) bool) share {
	s := share{Clustering: 1}
	for _, t := range trials {
		s.Trials++
		if isHit(t) {
			s.Hits++
		}
	}
	return s
}

// measureRecorded measures windows of each kind of flow without a channel that the XDP program
// records, at least one flow of each.
func measureRecorded(l *lab, r run) (figure, error) {
	var parts []func(*lab, run) (alarms, error)
	for _, f := range slices.Concat(trial.Slow(), trial.Applications()) {
		parts = append(parts, func(l *lab, r run) (alarms, error) { return measureWindows(l, r, f) })
	}
	found, err := measureCombined(l, r, parts)
	return shareFigure(found[columnInTurn]), err
}
