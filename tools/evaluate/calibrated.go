// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"fmt"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

const (
	tableCalibrated = "calibrated events"
	tableRare       = "calibrated detection"

	columnFlagged = "flagged"
	columnEvents  = "events"

	// learning is the number of packets that a device learns from before packets are counted.
	learning = 500_000
)

// calibrated measures which packets become events at the default fraction, after a device has
// learnt which scores are rare.
func calibrated() []experiment {
	var all []experiment
	add := func(table, row string, packets int, columns []string, bound bound, measure func(*lab, run) (calibration, error)) {
		measure = once(measure)
		for _, column := range columns {
			e := experiment{table: table, row: row, column: column, config: bpf.DefaultConfig(), packets: packets}
			if column == columnEvents {
				e.bound = bound
			}
			e.measure = func(l *lab, r run) (figure, error) {
				found, err := measure(l, r)
				return found[column], err
			}
			all = append(all, e)
		}
	}
	for _, f := range families() {
		add(tableCalibrated, f.name, 1_000_000, []string{columnFlagged, columnEvents}, between(1e-5, 2.5e-4),
			func(l *lab, r run) (calibration, error) {
				return measureCalibration(l, r, max(learning, f.settling), f.start(r.seed), func(*packet) bool { return true })
			})
	}
	const deviation = 20e3
	for _, v := range []struct {
		row     string
		share   float64
		packets int
		bound   bound
	}{
		{"one packet in 100,000", 1e-5, 10_000_000, atLeast(0.99)},
		{"one packet in 100", 1e-2, 1_000_000, bound{}},
	} {
		add(tableRare, v.row, v.packets, []string{columnFlagged, columnEvents}, v.bound, func(l *lab, r run) (calibration, error) {
			late := traffic.Delay{Share: v.share, Ns: 8 * deviation}.Plant(traffic.Constant(1e6, deviation), traffic.Rand(r.seed, tableRare+v.row))
			return measureCalibration(l, r, learning, late, func(p *packet) bool { return p.isPlanted })
		})
	}
	return all
}

// calibration has the measured figures by column.
type calibration map[string]figure

// measureCalibration lets a new device learn from that many packets of a flow. It then measures
// which of the following packets that isAsked selects are flagged and become events.
func measureCalibration(l *lab, r run, learning int, next traffic.Planted, isAsked func(*packet) bool) (calibration, error) {
	flagged, events := counter{packets: r.packets}, counter{packets: r.packets}
	var found calibration
	err := l.alone(r.config, func(a *audited) error {
		made := uint64(0)
		err := a.flow(learning+r.packets, next, func(p *packet) {
			if p.isEvent {
				made++
			}
			if p.isJudged && p.number > learning && isAsked(p) {
				flagged.add(p.number-learning, p.isFlagged)
				events.add(p.number-learning, p.isEvent)
			}
		})
		if err != nil {
			return err
		}
		counters := a.audit.Counters()[0]
		for fate := range bpf.NumFates {
			if fate != bpf.FateSuppressed {
				made -= counters.Fates[fate]
			}
		}
		if made != 0 {
			return fmt.Errorf("%d packets became events but are missing from the fates %v", int64(made), counters.Fates)
		}
		found = calibration{columnFlagged: shareFigure(flagged.share()), columnEvents: shareFigure(events.share())}
		return nil
	})
	return found, err
}

// once shares one measurement among several experiments. Each experiment takes one figure of
// it.
func once[T any](measure func(*lab, run) (T, error)) func(*lab, run) (T, error) {
	var found T
	var err error
	isDone := false
	return func(l *lab, r run) (T, error) {
		if !isDone {
			found, err = measure(l, r)
			isDone = true
		}
		return found, err
	}
}
