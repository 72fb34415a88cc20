// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"math"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

const (
	tableShifts   = "shifts"
	tableRestarts = "restarts"

	columnFlags     = "flags"
	columnFlagsLog2 = "flags, log2"
	columnDeviation = "s off by"
	columnMean      = "mean off by"
	columnRestarts  = "restarts per packet"
)

// shift is a change of the level of a flow.
type shift struct {
	name              string
	beforeNs, afterNs float64
	deviationNs       float64
}

// levelShifts measures how many packets are flagged until a new level is learnt, and how
// accurately it is learnt.
func levelShifts() []experiment {
	const most = 200 // flags
	var all []experiment
	for _, s := range []shift{
		{"1 ms to 3 ms, ± 20 µs", 1e6, 3e6, 20e3},
		{"1 ms to 333 µs, ± 20 µs", 1e6, 1e6 / 3, 20e3},
		{"1 ms to 3 ms, ± 1 µs", 1e6, 3e6, 1e3},
		{"1 ms to 333 µs, ± 1 µs", 1e6, 1e6 / 3, 1e3},
		{"1 ms to 3 ms, ± 150 µs", 1e6, 3e6, 150e3},
		{"100 ms to 300 ms, ± 2 ms", 1e8, 3e8, 2e6},
	} {
		of := func(column string, config bpf.Config, b bound, measure func(*lab, run, shift) (figure, error)) experiment {
			return experiment{
				table: tableShifts, row: s.name, column: column, config: config, packets: packetsAfterShift, bound: b,
				measure: func(l *lab, r run) (figure, error) { return measure(l, r, s) },
			}
		}
		all = append(all,
			of(columnFlags, bpf.DefaultConfig(), atMost(most), measureFlagsAfterShift),
			of(columnFlagsLog2, log2Config(), atMost(most), measureFlagsAfterShift),
			of(columnDeviation, bpf.DefaultConfig(), atMost(10), measureDeviationAfterShift),
			of(columnMean, bpf.DefaultConfig(), atMost(1), measureMeanAfterShift),
		)
	}
	return all
}

const packetsAfterShift = 100_000

// shifts returns all experiments on shifts of the level.
func shifts() []experiment { return append(levelShifts(), slowShift()) }

// flow sends a flow whose level shifts after that many deltas and passes the packets after the
// shift to observe. It returns the baseline at the end.
func (s shift) flow(a *audited, r run, before int, observe func(*packet)) (timing.State, error) {
	kind := traffic.Shift(traffic.Constant(s.beforeNs, s.deviationNs), before, traffic.Constant(s.afterNs, s.deviationNs))
	err := a.flow(before+packetsAfterShift, traffic.Delay{}.Plant(kind, traffic.Rand(r.seed, s.name)), func(p *packet) {
		if p.number > before {
			observe(p)
		}
	})
	return a.replayer.last(0), err
}

// phases returns lengths of the time before a shift. How fast a baseline learns depends on its
// samples, which are between one window and two.
func phases(window uint32) []int {
	var all []int
	for i := range 8 {
		all = append(all, int(window)*(9+i)/8)
	}
	return all
}

// measureFlagsAfterShift counts the packets flagged after a shift at the worst time.
func measureFlagsAfterShift(l *lab, r run, s shift) (figure, error) {
	a, err := l.audit(r.config)
	if err != nil {
		return figure{}, err
	}
	most := 0
	for _, before := range phases(r.config.Window) {
		flags := 0
		_, err := s.flow(a, r, before, func(p *packet) {
			if p.isFlagged {
				flags++
			}
		})
		if err != nil {
			return figure{}, err
		}
		most = max(most, flags)
	}
	return figure{Value: float64(most)}, nil
}

// measureDeviationAfterShift measures how far the deviation is from that of the traffic 1,000
// packets after a shift at the worst time, in percent.
func measureDeviationAfterShift(l *lab, r run, s shift) (figure, error) {
	const after = 1000
	a, err := l.audit(r.config)
	if err != nil {
		return figure{}, err
	}
	worst := 0.0
	for _, before := range phases(r.config.Window) {
		_, err := s.flow(a, r, before, func(p *packet) {
			if p.number == before+after {
				worst = max(worst, math.Abs(math.Sqrt(a.params().Variance(p.before))/s.deviationNs-1))
			}
		})
		if err != nil {
			return figure{}, err
		}
	}
	return figure{Value: 100 * worst, Unit: "%"}, nil
}

// measureMeanAfterShift measures how far the final mean is from the new level, in percent of
// the level.
func measureMeanAfterShift(l *lab, r run, s shift) (figure, error) {
	a, err := l.audit(r.config)
	if err != nil {
		return figure{}, err
	}
	worst := 0.0
	for _, before := range phases(r.config.Window) {
		state, err := s.flow(a, r, before, func(*packet) {})
		if err != nil {
			return figure{}, err
		}
		worst = max(worst, math.Abs(r.config.Domain.MeanNs(state)/s.afterNs-1))
	}
	return figure{Value: 100 * worst, Unit: "%"}, nil
}

// slowShift measures whether a flow that was constant for a long time still learns: how far its
// mean is from a shift of half a standard deviation after 200,000 packets. The mean varies
// around the learnt level by the deviation over the root of the window, 0.1 ns. The figure is
// therefore the average over the second half of the packets.
func slowShift() experiment {
	const level, deviation, by, learning = 1e6, 10, 5, 200_000
	return experiment{
		table: tableShifts, row: "5 ns, ± 10 ns", column: columnMean, config: bpf.DefaultConfig(), packets: 100_000_000, bound: atMost(0.25),
		measure: func(l *lab, r run) (figure, error) {
			a, err := l.audit(r.config)
			if err != nil {
				return figure{}, err
			}
			kind := traffic.Shift(traffic.Constant(level, deviation), r.packets, traffic.Constant(level+by, deviation))
			sum, n := 0.0, 0
			err = a.flow(r.packets+learning, traffic.Delay{}.Plant(kind, traffic.Rand(r.seed, "slow shift")), func(p *packet) {
				if p.number > r.packets+learning/2 {
					sum += r.config.Domain.MeanNs(p.before) - level
					n++
				}
			})
			return figure{Value: math.Abs(sum/float64(n) - by), Unit: "ns"}, err
		},
	}
}

// restarts measures how many baselines restart while the traffic does not change. The level of the
// last two kinds is nearly that of the packet before, so it may stay outside for 64 packets.
func restarts() []experiment {
	kinds := append(families(),
		family{name: "Weibull, shape 0.5", kind: traffic.Weibull(1e5, 0.5)},
		family{name: "gamma, shape 0.5", kind: traffic.Gamma(1e5, 0.5)},
		family{name: "hyperexponential, 1 and 30 ms", kind: traffic.Mixture(0.1, traffic.Exponential(3e7), traffic.Exponential(1e6))},
		family{name: "ticks of 4 ms, 2 % missed", kind: traffic.MissedTicks(4e6, 0.02)},
		family{name: "1 and 3 ms, one in ten", kind: traffic.Mixture(0.1, traffic.Constant(3e6, 20e3), traffic.Constant(1e6, 20e3))},
		family{name: "AR(1), ρ = 0.99, 1 ms ± 20 µs", kind: traffic.AR1(1e6, 20e3, 0.99)},
		family{name: "AR(1), ρ = 0.999, 1 ms ± 20 µs", kind: traffic.AR1(1e6, 20e3, 0.999)},
	)
	var all []experiment
	for i, f := range kinds {
		most := atMost(1e-7)
		if i >= len(kinds)-2 {
			most = atMost(1e-6)
		}
		all = append(all, experiment{
			table: tableRestarts, row: f.name, column: columnRestarts, config: bpf.DefaultConfig(), packets: 5_000_000, bound: most,
			measure: func(l *lab, r run) (figure, error) { return measureRestarts(l, r, f) },
		})
	}
	return all
}

func measureRestarts(l *lab, r run, f family) (figure, error) {
	a, err := l.audit(r.config)
	if err != nil {
		return figure{}, err
	}
	before := a.audit.Counters()[0].Restarts
	err = a.flow(r.packets, f.start(r.seed), func(*packet) {})
	restarts := a.audit.Counters()[0].Restarts - before
	return shareFigure(share{Hits: restarts, Trials: uint64(r.packets), Clustering: 1}), err
}
