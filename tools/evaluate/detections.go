// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"errors"
	"fmt"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

const tableDetection = "detection"

// delayedShare is the fraction of packets that are late.
const delayedShare = 0.01

// victim is traffic in which delays are planted.
type victim struct {
	name      string
	kind      traffic.Kind
	sigma     float64 // ns
	config    bpf.Config
	alone     bool // only the packet is late, not the packets after it
	successor bool // measure the packet after the late one
	bounds    map[float64]bound
}

func victims() []victim {
	constant, exponential := traffic.Constant(1e6, 20e3), traffic.Exponential(1e5)
	alone := victim{kind: constant, sigma: 20e3, config: bpf.DefaultConfig(), alone: true}
	late, successor := alone, alone
	late.name = "constant, only that packet late"
	successor.name, successor.successor = "constant, the packet after it", true
	return []victim{
		{name: "constant, 1 ms ± 20 µs", kind: constant, sigma: 20e3, config: bpf.DefaultConfig(),
			bounds: map[float64]bound{5: atLeast(0.65), 8: atLeast(0.99)}},
		{name: "exponential, mean 100 µs", kind: exponential, sigma: 1e5, config: bpf.DefaultConfig()},
		{name: "constant, log2", kind: constant, sigma: 20e3, config: log2Config()},
		{name: "exponential, log2", kind: exponential, sigma: 1e5, config: log2Config()},
		late, successor,
	}
}

// detections measures the fraction of packets flagged among those that are late by k standard
// deviations.
func detections() []experiment {
	var all []experiment
	for _, v := range victims() {
		for _, k := range []float64{3, 5, 8, 20} {
			all = append(all, experiment{
				table: tableDetection, row: v.name, column: fmt.Sprintf("+%vσ", k), config: v.config, packets: 1_000_000, bound: v.bounds[k],
				measure: func(l *lab, r run) (figure, error) { return measureDetection(l, r, v, k) },
			})
		}
	}
	return all
}

func measureDetection(l *lab, r run, v victim, k float64) (figure, error) {
	a, err := l.audit(r.config)
	if err != nil {
		return figure{}, err
	}
	c := counter{packets: r.packets}
	s := scores{threshold: r.config.Threshold}
	planted := traffic.Delay{Share: delayedShare, Ns: k * v.sigma, Alone: v.alone}.
		Plant(v.kind, traffic.Rand(r.seed, fmt.Sprintf("%s, %v", v.name, k)))
	isSuccessor := false
	err = a.flow(r.packets, planted, func(p *packet) {
		isAsked := p.isPlanted
		if v.successor {
			isAsked = isSuccessor && !p.isPlanted
		}
		isSuccessor = p.isPlanted
		if !p.isJudged {
			return
		}
		if isAsked {
			c.add(p.number, p.isFlagged)
		}
		s.add(p, a.score(p))
	})
	found := shareFigure(c.share())
	found.Scores = &s
	return found, errors.Join(err, s.check())
}
