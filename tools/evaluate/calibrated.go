// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"math"
	"slices"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

const (
	tableCalibrated = "calibrated events"
	tableRare       = "calibrated detection"

	columnFlagged    = "flagged"
	columnEvents     = "events"
	columnWorstBlock = "worst block"

	// learning is the number of packets of a flow before packets are counted.
	learning = 500_000
	// mostEvents is the upper bound of the fraction of packets that become events.
	mostEvents = 2.5e-4
	// blockLength is the length of a block of packets.
	blockLength = 100_000
	// bucket is the number of events that a flow may have at once, and in an hour, of flags that
	// are not rare.
	bucket = 8
)

// moreFamilies are kinds of traffic whose scores have atoms, two scales, or tails that no mean
// describes.
func moreFamilies() []family {
	const sigma = 1e3
	return []family{
		{name: "lognormal, σ = 2", kind: traffic.Lognormal(1e5, 2)},
		{name: "Weibull, shape 0.5", kind: traffic.Weibull(1e5, 0.5)},
		{name: "gamma, shape 0.5", kind: traffic.Gamma(1e5, 0.5)},
		{name: "hyperexponential, means of 1 and 30 ms", kind: traffic.Mixture(0.5, traffic.Exponential(1e6), traffic.Exponential(3e7))},
		{name: "exponential, in ticks of 50 µs", kind: traffic.Polled(traffic.Exponential(1e5), 5e4, 0)},
		{name: "exponential, polled every 10 µs", kind: traffic.Polled(traffic.Exponential(1e5), 1e4, 200)},
		// Events go on after millions of packets with the same scores.
		{name: "ticks of 4 ms, one in 50 missed", kind: traffic.MissedTicks(4e6, 0.02), settling: 19_000_000},
		{name: "5 % late by 5σ, rising to 500,000σ", kind: traffic.Rising(traffic.Constant(1e6, sigma), 0.05, 5*sigma, 5e5*sigma, 1_500_000)},
	}
}

// quietFamilies are kinds of traffic in which hardly any packet is flagged.
func quietFamilies() []family {
	return []family{
		{name: "bimodal, 1 and 3 ms ± 20 µs", kind: traffic.Mixture(0.9, traffic.Constant(1e6, 20e3), traffic.Constant(3e6, 20e3))},
		{name: "AR(1), ρ = 0.999, 1 ms ± 20 µs", kind: traffic.AR1(1e6, 20e3, 0.999)},
	}
}

// calibrated measures which packets become events at the default fraction.
func calibrated() []experiment {
	var all []experiment
	add := func(table, row string, packets int, bounds map[string]bound, measure func(*lab, run) (calibration, error)) {
		measure = once(measure)
		for _, column := range []string{columnFlagged, columnEvents, columnWorstBlock} {
			b, isAsked := bounds[column]
			if !isAsked {
				continue
			}
			all = append(all, experiment{
				table: table, row: row, column: column, config: bpf.DefaultConfig(), packets: packets, bound: b,
				measure: pick(measure, func(found calibration) figure { return found[column] }),
			})
		}
	}
	family := func(f family, events bound) {
		bounds := map[string]bound{columnFlagged: {}, columnEvents: events, columnWorstBlock: atMost(mostEvents * blockLength)}
		add(tableCalibrated, f.name, 1_000_000, bounds, func(l *lab, r run) (calibration, error) {
			return measureCalibration(l, r, max(learning, f.settling), f.start(r.seed), func(*packet) bool { return true })
		})
	}
	for _, f := range slices.Concat(families(), moreFamilies()) {
		if f.isSlow {
			family(f, atLeast(1e-5))
			continue
		}
		family(f, between(1e-5, mostEvents))
	}
	for _, f := range quietFamilies() {
		family(f, atMost(mostEvents))
	}
	for _, v := range []struct {
		row     string
		kind    traffic.Kind
		delay   traffic.Delay
		packets int
		bound   bound
	}{
		{"constant, one packet in 100,000 late by 8σ", traffic.Constant(1e6, 20e3), traffic.Delay{Share: 1e-5, Ns: 8 * 20e3}, 10_000_000, atLeast(0.99)},
		{"constant, one packet in 100 late by 8σ", traffic.Constant(1e6, 20e3), traffic.Delay{Share: 1e-2, Ns: 8 * 20e3}, 1_000_000, bound{}},
		{"exponential, one packet in 50,000 late by 20σ", traffic.Exponential(1e5), traffic.Delay{Share: 2e-5, Ns: 20e5}, 10_000_000, atLeast(0.95)},
		{"exponential, one packet in 50,000 late by 100σ", traffic.Exponential(1e5), traffic.Delay{Share: 2e-5, Ns: 100e5}, 10_000_000, atLeast(0.95)},
		{"lognormal, σ = 1.5, one packet in 50,000 late by 100σ", traffic.Lognormal(1e5, 1.5), traffic.Delay{Share: 2e-5, Ns: 9e7}, 10_000_000, atLeast(0.95)},
	} {
		add(tableRare, v.row, v.packets, map[string]bound{columnFlagged: {}, columnEvents: v.bound}, func(l *lab, r run) (calibration, error) {
			late := v.delay.Plant(v.kind, traffic.Rand(r.seed, tableRare+v.row))
			return measureCalibration(l, r, learning, late, func(p *packet) bool { return p.isPlanted })
		})
	}
	return all
}

// calibration has the measured figures by column.
type calibration map[string]figure

// measureCalibration sends a flow to a new device. After that many packets it measures which of
// the packets that isAsked selects are flagged and become events. The worst block is of all
// packets.
func measureCalibration(l *lab, r run, learning int, next traffic.Planted, isAsked func(*packet) bool) (calibration, error) {
	flagged, events := counter{packets: r.packets}, counter{packets: r.packets}
	var blocks eventBlocks
	err := l.alone(r.config, func(a *audited) error {
		return a.flow(learning+r.packets, next, func(p *packet) {
			blocks.add(p)
			if p.isJudged && p.number > learning && isAsked(p) {
				flagged.add(p.number-learning, p.isFlagged)
				events.add(p.number-learning, p.isEvent)
			}
		})
	})
	return calibration{
		columnFlagged: shareFigure(flagged.share()), columnEvents: shareFigure(events.share()),
		columnWorstBlock: {Value: math.Ceil(max(0, blocks.worst)), Unit: "of " + grouped(blockLength)},
	}, err
}

// eventBlocks finds the block of consecutive packets of a flow with the most events.
type eventBlocks struct {
	last  []packet // the events of the block that ends now
	worst float64  // events of the worst block beyond the bucket
}

func (b *eventBlocks) add(p *packet) {
	if !p.isEvent {
		return
	}
	b.last = append(b.last, *p)
	for b.last[0].number <= p.number-blockLength {
		b.last = b.last[1:]
	}
	hours := float64(p.atNs-b.last[0].atNs) / float64(time.Hour)
	b.worst = max(b.worst, float64(len(b.last))-bucket*(1+hours))
}
