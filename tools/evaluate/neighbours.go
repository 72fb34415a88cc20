// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

const (
	tableNeighbours = "events next to other flows"

	columnLeaks = "leaks"
	columnLeast = "+8σ"
	columnMost  = "+1000σ"

	victimNs      = 1e6 // mean and deviation of the deltas of the victim
	victimSigmaNs = 20e3
)

// leakSizes are the lengths of the victim's leaks in standard deviations.
var leakSizes = []float64{8, 12, 20, 100, 1000}

// leakShare is the share of the victim's packets that leak.
const leakShare = 2.5e-5

// company is the other flows on the device of a victim.
type company struct {
	name   string
	config bpf.Config
	start  func(r run) []traffic.Planted // nil for no flows
}

// alone is a company of no flows.
const alone = "none"

func companies() []company {
	of := func(name string, kind traffic.Kind) company {
		return company{name, bpf.DefaultConfig(), func(r run) []traffic.Planted {
			return []traffic.Planted{traffic.Delay{}.Plant(kind, traffic.Rand(r.seed, name))}
		}}
	}
	crowd := company{"500 new flows, 1,000 events a second", bpf.DefaultConfig(), newFlows}
	crowd.config.EventRate = 1000
	return []company{
		{name: alone, config: bpf.DefaultConfig()},
		of("attacker with 0.3 % of the packets", trainer(3e-3)),
		of("attacker with 0.2 % of the packets", trainer(2e-3)),
		of("attacker with 178 packets", spoiler(178)),
		of("exponential", traffic.Exponential(1e6)),
		of("lognormal, σ = 1.5", traffic.Lognormal(3.25e5, 1.5)),
		of("bursts and pauses", traffic.OnOff(20, 2e4, 2e7)),
		of("Pareto, shape 1.1", traffic.Pareto(1e5, 1.1)),
		of("ticks of 1 ms, one in 50 missed", traffic.MissedTicks(1e6, 0.02)),
		crowd,
	}
}

// trainer is an attacker who sends regular packets until the baseline knows them, and then every
// 32nd late by 20,000 standard deviations. It pauses to have that share of the packets on the
// device of a victim.
func trainer(share float64) traffic.Kind {
	const period = 33 // out of step with the late packets, so that pauses hide few of them
	const spentNs = period*1e7 + period/32.*1e8
	regular := traffic.Constant(1e7, 5e3)
	trained := traffic.Shift(regular, 2*int(bpf.DefaultConfig().MinSamples), traffic.EveryNth(regular, 32, 1e8))
	return traffic.EveryNth(trained, period, period*victimNs*(1-share)/share-spentNs)
}

// never is longer than any experiment.
const never = 1e17

// spoiler is an attacker who sends that many packets: as many as a baseline needs, and then only
// packets that are late by 20,000 standard deviations.
func spoiler(packets int) traffic.Kind {
	regular := traffic.Constant(1e7, 5e3)
	late := traffic.Shift(regular, int(bpf.DefaultConfig().MinSamples), traffic.Constant(1.1e8, 5e3))
	return traffic.EveryNth(late, packets, never)
}

// newFlows are attackers who begin one after another, as long as the victim sends.
func newFlows(r run) []traffic.Planted {
	const flows = 500
	var all []traffic.Planted
	for i := range flows {
		begin := float64(r.packets) * victimNs * float64(i+1) / flows
		kind := traffic.Shift(traffic.Constant(begin, 0), 1, spoiler(150))
		all = append(all, traffic.Delay{}.Plant(kind, traffic.Rand(r.seed, fmt.Sprint("new flow ", i))))
	}
	return all
}

// neighbours measures which leaks of a victim become events, of those that become events if it
// is alone on its device. The row of the victim alone has the share of all its leaks.
func neighbours() []experiment {
	reference := once(func(l *lab, r run) ([]victimLeak, error) {
		return measureLeaks(l, run{seed: r.seed, config: bpf.DefaultConfig(), packets: r.packets}, company{})
	})
	var all []experiment
	for _, c := range companies() {
		measure := reference
		if c.name != alone {
			measure = once(func(l *lab, r run) ([]victimLeak, error) { return measureLeaks(l, r, c) })
		}
		add := func(column string, b bound, isAsked func(victimLeak) bool) {
			all = append(all, experiment{
				table: tableNeighbours, row: c.name, column: column, config: c.config, packets: 4_000_000, bound: b,
				measure: func(l *lab, r run) (figure, error) {
					without, err := reference(l, r)
					if err != nil {
						return figure{}, err
					}
					with, err := measure(l, r)
					if err != nil {
						return figure{}, err
					}
					found := counter{packets: r.packets}
					for i, one := range with {
						if isAsked(one) && (without[i].isEvent || c.name == alone) {
							found.add(one.number, one.isEvent)
						}
					}
					return shareFigure(found.share()), nil
				},
			})
		}
		add(columnLeaks, atLeast(0.95), func(victimLeak) bool { return true })
		add(columnLeast, bound{}, func(one victimLeak) bool { return one.size == 0 })
		add(columnMost, bound{}, func(one victimLeak) bool { return one.size == len(leakSizes)-1 })
	}
	return all
}

// victimLeak is a packet of the victim that is late on purpose.
type victimLeak struct {
	number  int
	size    int // in leakSizes
	isEvent bool
}

// leaking is a flow with leaks of several sizes.
type leaking struct {
	sizes []int // of the leaks, in their order
}

func (v *leaking) plant(kind traffic.Kind, r *rand.Rand) traffic.Planted {
	source := kind(r)
	return func() (float64, bool) {
		delta := source()
		if r.Float64() >= leakShare {
			return delta, false
		}
		size := r.IntN(len(leakSizes))
		v.sizes = append(v.sizes, size)
		return delta + leakSizes[size]*victimSigmaNs, true
	}
}

// measureLeaks returns the judged leaks of a victim among other flows. It returns an error if there
// is an event rate and the others, which are new, take more than half of it.
func measureLeaks(l *lab, r run, c company) (leaks []victimLeak, err error) {
	err = l.alone(r.config, func(a *audited) error {
		var v leaking
		flows := []traffic.Planted{v.plant(traffic.Constant(victimNs, victimSigmaNs), traffic.Rand(r.seed, "victim"))}
		if c.start != nil {
			flows = append(flows, c.start(r)...)
		}
		begin, planted, ofOthers := time.Now(), 0, 0
		err := a.flows(r.packets, flows, func(p *packet) {
			isSent := p.isEvent && p.fate != bpf.FateRateLimit
			switch {
			case p.flow > 0 && isSent:
				ofOthers++
			case p.flow == 0 && p.isPlanted:
				size := v.sizes[planted]
				planted++
				if p.isJudged {
					leaks = append(leaks, victimLeak{p.number, size, isSent})
				}
			}
		})
		most := float64(r.config.EventRate) * (1 + time.Since(begin).Seconds()) / 2
		if err == nil && r.config.EventRate != bpf.DefaultConfig().EventRate && float64(ofOthers) > most {
			err = fmt.Errorf("%d events of the other flows were sent, more than %.0f, half of the event rate", ofOthers, most)
		}
		return err
	})
	return leaks, err
}
