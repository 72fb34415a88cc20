// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"fmt"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

const tableRuns = "leaks in runs"

// runLeak is what is measured of packets that are late in runs.
type runLeak struct {
	found    share
	restarts share // per packet
}

// leaksInRuns measures how many packets are flagged of those that are late in runs of consecutive
// packets, and how often a baseline restarts at the level of a run. A restart takes 102 packets, or
// two shorter runs with few packets in between.
func leaksInRuns() []experiment {
	const deviation = 20e3
	most, never := atLeast(0.99), atMost(1e-6)
	var all []experiment
	for _, leak := range []struct {
		share                   float64
		length                  int
		eight, twenty, restarts bound
	}{
		{1e-3, 5, most, most, never},
		{1e-3, 20, most, most, never},
		{1e-3, 50, most, most, never},
		{1e-3, 90, most, most, never},
		{1e-3, 200, bound{}, bound{}, bound{}},
		{1e-2, 5, most, most, never},
		{1e-2, 20, most, most, never},
		{1e-2, 50, most, most, never},
		{1e-2, 90, most, most, never},
		{1e-2, 200, bound{}, bound{}, bound{}},
		{1e-1, 5, most, most, never},
		{1e-1, 20, most, most, never},
		{1e-1, 50, atLeast(0.95), most, atMost(5e-6)},
		{1e-1, 90, atLeast(0.7), most, atMost(2e-5)},
		{1e-1, 200, bound{}, bound{}, bound{}},
	} {
		row := fmt.Sprintf("%v %% of the packets, in runs of %d", 100*leak.share, leak.length)
		for _, late := range []struct {
			k     float64
			found bound
		}{{8, leak.eight}, {20, leak.twenty}} {
			column := fmt.Sprintf("+%vσ", late.k)
			measure := once(func(l *lab, r run) (runLeak, error) {
				planted := traffic.Delay{Share: leak.share, Ns: late.k * deviation, Run: leak.length}.
					Plant(traffic.Constant(1e6, deviation), traffic.Rand(r.seed, row+", "+column))
				return measureLeakInRuns(l, r, planted)
			})
			of := func(column string, b bound, of func(runLeak) share) experiment {
				return experiment{
					table: tableRuns, row: row, column: column, config: bpf.DefaultConfig(), packets: 1_000_000, bound: b,
					measure: pick(measure, func(m runLeak) figure { return shareFigure(of(m)) }),
				}
			}
			all = append(all,
				of(column, late.found, func(m runLeak) share { return m.found }),
				of("restarts, "+column, leak.restarts, func(m runLeak) share { return m.restarts }))
		}
	}
	return all
}

func measureLeakInRuns(l *lab, r run, planted traffic.Planted) (m runLeak, err error) {
	const settling = 200_000
	a, err := l.audit(r.config)
	if err != nil {
		return m, err
	}
	before := a.audit.Counters()[0].Restarts
	m.found, err = a.found(r, planted, settling)
	m.restarts = share{Hits: a.audit.Counters()[0].Restarts - before, Trials: uint64(settling + r.packets), Clustering: 1}
	return m, err
}
