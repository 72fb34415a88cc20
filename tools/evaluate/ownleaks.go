// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"fmt"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

const (
	tableOwnLeaks = "events of common leaks"
	tableFirst    = "first flags of a flow"

	columnHourly = "events in the worst hour"
)

// ownLeaks measures how many leaks of a flow become events if the flow itself makes them common.
func ownLeaks() []experiment {
	var all []experiment
	for _, v := range []struct {
		name    string
		scale   float64 // of the victim's deltas
		hours   int
		portion string
		share   float64
	}{
		{"1,000 packets a second", 1, 3, "10,000", 1e-4},
		{"1,000 packets a second", 1, 3, "1,000", 1e-3},
		{"1,000 packets a second", 1, 3, "100", 1e-2},
		{"1,000 packets a second", 1, 3, "10", 1e-1},
		{"10 packets a second", 100, 20, "1,000", 1e-3},
		{"10 packets a second", 100, 20, "100", 1e-2},
		{"10 packets a second", 100, 20, "10", 1e-1},
	} {
		row := fmt.Sprintf("%s, one in %s late by 8σ", v.name, v.portion)
		measure := once(func(l *lab, r run) (calibration, error) {
			late := traffic.Delay{Share: v.share, Ns: 8 * victimSigmaNs * v.scale}
			return measureHours(l, r, late.Plant(traffic.Constant(victimNs*v.scale, victimSigmaNs*v.scale), traffic.Rand(r.seed, row)))
		})
		for _, column := range []string{columnFlagged, columnEvents, columnHourly} {
			b := bound{}
			if column == columnHourly {
				b = atLeast(bucket)
			}
			all = append(all, experiment{
				table: tableOwnLeaks, row: row, column: column, config: bpf.DefaultConfig(), bound: b,
				packets: v.hours * int(float64(time.Hour)/victimNs/v.scale),
				measure: pick(measure, func(found calibration) figure { return found[column] }),
			})
		}
	}
	return all
}

// measureHours measures which delayed packets of a flow are flagged and become events, and how
// many become events in the hour with the fewest. A shorter flow has a part of an hour.
func measureHours(l *lab, r run, next traffic.Planted) (calibration, error) {
	flagged, events := counter{packets: r.packets}, counter{packets: r.packets}
	var hours []float64
	endNs := uint64(0)
	err := l.alone(r.config, func(a *audited) error {
		return a.flow(r.packets, next, func(p *packet) {
			endNs = p.atNs
			hour := int(p.atNs / uint64(time.Hour))
			for len(hours) <= hour {
				hours = append(hours, 0)
			}
			if !p.isPlanted || !p.isJudged {
				return
			}
			flagged.add(p.number, p.isFlagged)
			events.add(p.number, p.isEvent)
			if p.isEvent {
				hours[hour]++
			}
		})
	})
	if err != nil {
		return nil, err
	}
	worst := hours[0]
	if len(hours) == 1 {
		worst *= float64(time.Hour) / float64(endNs)
	}
	for _, n := range hours[:len(hours)-1] {
		worst = min(worst, n)
	}
	return calibration{
		columnFlagged: shareFigure(flagged.share()), columnEvents: shareFigure(events.share()), columnHourly: {Value: worst, Unit: "events"},
	}, nil
}

// firstFlags measures whether the first flags of new flows become events on a device that knows
// unusual packets: from an attacker and from a flow whose packets are often flagged.
func firstFlags() []experiment {
	const meanNs = 1e7
	kinds := []family{
		{name: "constant, one packet in 100 late by 20σ", kind: traffic.Constant(meanNs, meanNs/50)},
		{name: "exponential", kind: traffic.Exponential(meanNs)},
		{name: "lognormal, σ = 1.5", kind: traffic.Lognormal(meanNs/3, 1.5)},
		{name: "bursts and pauses", kind: traffic.OnOff(20, meanNs/50, meanNs*20)},
		{name: "Pareto, shape 1.1", kind: traffic.Pareto(meanNs/10, 1.1)},
	}
	measure := once(func(l *lab, r run) ([]counter, error) { return measureFirstFlags(l, r, kinds) })
	var all []experiment
	for i, k := range kinds {
		all = append(all, experiment{
			table: tableFirst, row: k.name, column: columnEvents, config: bpf.DefaultConfig(), packets: 1_000_000, bound: atLeast(1),
			measure: pick(measure, func(found []counter) figure { return shareFigure(found[i].share()) }),
		})
	}
	return all
}

// flowsOfKind is the number of flows of each kind that begin together.
const flowsOfKind = 10

// measureFirstFlags sends flows of these kinds to a device on which two others have sent for a
// quarter of the time, and counts which of the first flags of each become events.
func measureFirstFlags(l *lab, r run, kinds []family) ([]counter, error) {
	flows := []traffic.Planted{
		traffic.Delay{}.Plant(traffic.Exponential(victimNs), traffic.Rand(r.seed, "noise")),
		traffic.Delay{}.Plant(trainer(1e-2), traffic.Rand(r.seed, "trainer")),
	}
	others := len(flows)
	begin := float64(r.packets) * victimNs / 4
	for i := range len(kinds) * flowsOfKind {
		late := traffic.Delay{}
		kind := kinds[i/flowsOfKind]
		if i < flowsOfKind {
			late = traffic.Delay{Share: 1e-2, Ns: 4e6}
		}
		flows = append(flows, late.Plant(traffic.Shift(traffic.Constant(begin, 0), 1, kind.kind), traffic.Rand(r.seed, fmt.Sprint(kind.name, i))))
	}
	found := make([]counter, len(kinds))
	for i := range found {
		found[i].packets = bucket * flowsOfKind
	}
	flags := make([]int, len(flows))
	err := l.alone(r.config, func(a *audited) error {
		return a.flows(r.packets, flows, func(p *packet) {
			if p.flow < others || !p.isFlagged || flags[p.flow] == bucket || p.atNs > uint64(begin)+uint64(time.Hour) {
				return
			}
			kind, flow := (p.flow-others)/flowsOfKind, (p.flow-others)%flowsOfKind
			found[kind].add(flow*bucket+flags[p.flow], p.isEvent)
			flags[p.flow]++
		})
	})
	return found, err
}
