// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"errors"
	"fmt"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

const tableCommon = "common leaks"

// settling returns the number of packets before the counted ones. A baseline that began among late
// packets takes half a million to tell one in five from the others.
func settling(share float64) int {
	if share < 0.2 {
		return 1_000_000
	}
	return 5_000_000
}

// commonLeaks measures the fraction of packets flagged among those that are late by k standard
// deviations, when many are late.
func commonLeaks() []experiment {
	const deviation = 20e3
	four := bpf.DefaultConfig()
	four.Clip = 4
	var all []experiment
	for _, leak := range []struct {
		share  float64
		config bpf.Config
		name   string
		bounds map[float64]bound
	}{
		{0.05, bpf.DefaultConfig(), "", map[float64]bound{8: atLeast(0.99), 20: atLeast(0.99), 1000: atLeast(0.99)}},
		{0.1, bpf.DefaultConfig(), "", map[float64]bound{8: atLeast(0.95), 20: atLeast(0.99), 1000: atLeast(0.99)}},
		{0.2, bpf.DefaultConfig(), "", map[float64]bound{20: atLeast(0.99), 1000: atLeast(0.99)}},
		{0.25, bpf.DefaultConfig(), "", nil},
		{0.1, log2Config(), ", log2", nil},
		{0.05, four, ", `--audit.clip=4`", nil},
		{0.1, four, ", `--audit.clip=4`", nil},
	} {
		for _, k := range []float64{8, 20, 1000} {
			row := fmt.Sprintf("%v %% of the packets%s", 100*leak.share, leak.name)
			all = append(all, experiment{
				table: tableCommon, row: row, column: fmt.Sprintf("+%vσ", k), config: leak.config, packets: 1_000_000, bound: leak.bounds[k],
				measure: func(l *lab, r run) (figure, error) {
					planted := traffic.Delay{Share: leak.share, Ns: k * deviation}.
						Plant(traffic.Constant(1e6, deviation), traffic.Rand(r.seed, fmt.Sprintf("%s, %v", row, k)))
					return measureCommonLeak(l, r, planted, settling(leak.share))
				},
			})
		}
	}
	return all
}

func measureCommonLeak(l *lab, r run, planted traffic.Planted, settling int) (figure, error) {
	a, err := l.audit(r.config)
	if err != nil {
		return figure{}, err
	}
	found, err := a.found(r, planted, settling)
	return shareFigure(found), err
}

// found returns the fraction of planted packets that are flagged, of those judged after settling.
func (a *audited) found(r run, planted traffic.Planted, settling int) (share, error) {
	c := counter{packets: r.packets}
	s := scores{threshold: r.config.Threshold}
	err := a.flow(settling+r.packets, planted, func(p *packet) {
		if !p.isJudged || p.number <= settling {
			return
		}
		if p.isPlanted {
			c.add(p.number-settling, p.isFlagged)
		}
		s.add(p, a.score(p))
	})
	return c.share(), errors.Join(err, s.check())
}
