// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"errors"
	"math"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

const (
	tableFalseFlags = "false flags"

	columnPlain = "plain"
)

// family is a kind of traffic in which nothing is planted.
type family struct {
	name         string
	kind         traffic.Kind
	linear, log2 bound // bounds of the flagged share
	settling     int   // packets before the counted ones
	isSlow       bool  // a million packets take a day, and most events are of those of each hour
}

func families() []family {
	const logNormal = 1.2e-4
	return []family{
		{name: "constant, 1 ms ± 20 µs", kind: traffic.Constant(1e6, 20e3), linear: between(4e-5, 1e-4)},
		{name: "exponential, mean 100 µs", kind: traffic.Exponential(1e5), linear: atMost(2e-2)},
		{name: "lognormal, σ = 0.5", kind: traffic.Lognormal(1e5, 0.5), log2: atMost(logNormal)},
		{name: "lognormal, σ = 1", kind: traffic.Lognormal(1e5, 1), log2: atMost(logNormal)},
		{name: "lognormal, σ = 1.5", kind: traffic.Lognormal(1e5, 1.5), linear: atMost(7e-2), log2: atMost(logNormal), settling: 1_000_000},
		{name: "Pareto, shape 2.5", kind: traffic.Pareto(1e4, 2.5)},
		{name: "Pareto, shape 1.5", kind: traffic.Pareto(1e4, 1.5)},
		{name: "Pareto, shape 1.1", kind: traffic.Pareto(1e4, 1.1), linear: atMost(8.3e-2), settling: 1_000_000},
		{name: "Pareto, shape 1.1, from 10 ms on", kind: traffic.Pareto(1e7, 1.1), linear: atMost(8e-2), isSlow: true, settling: 1_000_000},
		// With two kinds of deltas, clipping narrows the baseline for about fifty windows.
		{name: "bursts and pauses", kind: traffic.OnOff(20, 1e4, 1e7), settling: 1_000_000},
		{name: "AR(1), ρ = 0.9, 1 ms ± 20 µs", kind: traffic.AR1(1e6, 20e3, 0.9)},
	}
}

// falseFlags measures the fraction of flagged packets when nothing is planted.
func falseFlags() []experiment {
	const packets = 4_000_000
	var all []experiment
	for _, f := range families() {
		of := func(column string, config bpf.Config, b bound, measure func(*lab, run) (figure, error)) experiment {
			return experiment{table: tableFalseFlags, row: f.name, column: column, config: config, packets: packets, bound: b, measure: measure}
		}
		flagged := func(l *lab, r run) (figure, error) { return measureFalseFlags(l, r, f) }
		plain := func(_ *lab, r run) (figure, error) { return measurePlain(r, f), nil }
		all = append(all,
			of(string(bpf.DomainLinear), bpf.DefaultConfig(), f.linear, flagged),
			of(string(bpf.DomainLog2), log2Config(), f.log2, flagged),
			of(columnPlain, bpf.DefaultConfig(), bound{}, plain),
		)
	}
	return all
}

func log2Config() bpf.Config {
	config := bpf.DefaultConfig()
	config.Domain = bpf.DomainLog2
	return config
}

// start starts the flow of a family. The flow is the same in every domain.
func (f family) start(seed uint64) traffic.Planted {
	return traffic.Delay{}.Plant(f.kind, traffic.Rand(seed, f.name))
}

func measureFalseFlags(l *lab, r run, f family) (figure, error) {
	a, err := l.audit(r.config)
	if err != nil {
		return figure{}, err
	}
	c := counter{packets: r.packets}
	s := scores{threshold: r.config.Threshold}
	err = a.flow(f.settling+r.packets, f.start(r.seed), func(p *packet) {
		if p.isJudged && p.number > f.settling {
			c.add(p.number-f.settling, p.isFlagged)
			s.add(p, a.score(p))
		}
	})
	found := shareFigure(c.share())
	found.Scores = &s
	return found, errors.Join(err, s.check())
}

// plainBaseline is a mean and a variance in float64 that include every sample without clipping.
type plainBaseline struct {
	n, mean, m2 float64
}

func (b *plainBaseline) score(x float64) float64 {
	return (x - b.mean) / math.Sqrt(max(b.m2/(b.n-1), 1.0/12)*(1+1/b.n))
}

func (b *plainBaseline) add(x, window float64) {
	b.n++
	d := x - b.mean
	b.mean += d / b.n
	b.m2 += d * (x - b.mean)
	if b.n == 2*window {
		b.n /= 2
		b.m2 /= 2
	}
}

// measurePlain measures what the audit would flag without clipping. It does not use the kernel.
func measurePlain(r run, f family) figure {
	c := counter{packets: r.packets}
	var b plainBaseline
	next := f.start(r.seed)
	for number := range f.settling + r.packets {
		delta, _ := next()
		x := float64(traffic.Round(delta))
		if x > float64(r.config.IdleTimeout) {
			continue
		}
		if b.n >= float64(r.config.MinSamples) && number >= f.settling {
			c.add(number-f.settling, math.Abs(b.score(x)) >= r.config.Threshold)
		}
		b.add(x, float64(r.config.Window))
	}
	return shareFigure(c.share())
}
