// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"math"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
	"github.com/xdp-audit/xdp_audit_exporter/internal/leak/trial"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

const (
	tableLeakNone     = "leak: no difference"
	tableLeakFound    = "leak: differences"
	tableLeakInterval = "leak: the interval misses the effect"
	tableLeakLabels   = "leak: data that are refused"

	columnEver20   = "e-value ever 20"
	columnEver1e5  = "e-value ever 100,000"
	columnRandom   = "random"
	columnBlocks   = "blocks"
	columnOfChecks = "refused"

	// pairsOfNone is the number of pairs of an assessment without a difference.
	pairsOfNone = 2000
)

// leaks measures the verdicts on simulated assessments. They need no program.
func leaks() []experiment {
	var all []experiment
	add := func(e experiment) {
		e.config = bpf.DefaultConfig() // of no effect
		all = append(all, e)
	}
	leakNone(add)
	leakFound(add)
	leakInterval(add)
	leakLabels(add)
	return all
}

// leakSeeds returns the seeds of the assessments of a run, of that many responses each.
func leakSeeds(r run, responses int) (seeds []uint64) {
	for i := range max(1, r.packets/responses) {
		seeds = append(seeds, r.seed<<32+uint64(i))
	}
	return seeds
}

// leakRuns measures the fraction of assessments with that many responses for which is returns true.
func leakRuns(r run, responses int, is func(seed uint64) bool) figure {
	return shareFigure(shareOf(leakSeeds(r, responses), is))
}

// responsesOf returns about how many responses have that many pairs.
func responsesOf(order leak.Order, pairs int) int {
	return 2 * pairs * pairs / trial.PairsOf(order, pairs)
}

// leakNone measures how often the evidence is ever high at any pair, although nothing differs.
func leakNone(add func(experiment)) {
	const runs = 400
	for i, c := range trial.Clients() {
		for k, s := range trial.Services() {
			if i > 1 && k == 0 {
				continue // the easiest one
			}
			t := trial.New(c, s, nil)
			responses := responsesOf(c.Order, pairsOfNone)
			highest := once(func(_ *lab, r run) ([]float64, error) {
				var all []float64
				for _, seed := range leakSeeds(r, responses) {
					all = append(all, t.Run(seed, pairsOfNone, nil).EvidenceLog10())
				}
				return all, nil
			})
			for _, column := range []struct {
				name  string
				log10 float64
				bound bound
			}{{columnEver20, math.Log10(20), atMost(0.05)}, {columnEver1e5, 5, atMost(1e-5)}} {
				add(experiment{
					table: tableLeakNone, row: t.String(), column: column.name, packets: runs * responses, bound: column.bound,
					measure: pick(highest, func(all []float64) figure {
						return shareFigure(shareOf(all, func(log10 float64) bool { return log10 >= column.log10 }))
					}),
				})
			}
		}
	}
}

// byOrder adds an experiment for each order of labels, on one connection.
func byOrder(add func(experiment), table, row string, runs, pairs func(leak.Order) int, b bound, is func(c trial.Client, seed uint64) bool) {
	for i, column := range []string{columnRandom, columnBlocks} {
		c := trial.Clients()[i]
		responses := responsesOf(c.Order, pairs(c.Order))
		add(experiment{
			table: table, row: row, column: column, packets: runs(c.Order) * responses, bound: b,
			measure: func(_ *lab, r run) (figure, error) {
				return leakRuns(r, responses, func(seed uint64) bool { return is(c, seed) }), nil
			},
		})
	}
}

// always returns a number for every order.
func always(n int) func(leak.Order) int { return func(leak.Order) int { return n } }

// leakFound measures how often differences are found within a number of pairs.
func leakFound(add func(experiment)) {
	noise := trial.Service{Name: "normal", Kind: traffic.Constant(200e3, 10e3)}
	for _, d := range []struct {
		name  string
		by    float64
		pairs int
	}{{"1 µs slower, σ = 10 µs, 16,000 pairs", 1e3, 16_000}, {"10 µs slower, σ = 10 µs, 600 pairs", 10e3, 600}, {"100 µs slower, σ = 10 µs, 120 pairs", 100e3, 120}} {
		byOrder(add, tableLeakFound, d.name, always(100), always(d.pairs), atLeast(0.9), func(c trial.Client, seed uint64) bool {
			t := trial.New(c, noise, trial.Longer(d.by))
			return t.Run(seed, d.pairs, trial.IsFound(5)).EvidenceLog10() >= 5
		})
	}
	byOrder(add, tableLeakFound, "variance +20 %, 30,000 responses a class", always(40),
		func(order leak.Order) int { return trial.PairsOf(order, 30_000) }, atLeast(0.9), func(c trial.Client, seed uint64) bool {
			t := trial.New(c, noise, trial.Wider(200e3, 1.2))
			return t.Run(seed, trial.PairsOf(c.Order, 30_000), trial.IsFound(5)).EvidenceLog10() >= 5
		})
	slower := func(c trial.Client, seed uint64, stop func(*leak.Judge) bool) *leak.Judge {
		t := trial.New(c, noise, trial.Sometimes(0.03, 1e6))
		return t.Run(seed, 3000, stop)
	}
	byOrder(add, tableLeakFound, "1 ms slower in 3 %, 3,000 pairs: `leak`", always(100), always(3000), atLeast(0.9),
		func(c trial.Client, seed uint64) bool {
			return slower(c, seed, nil).Report().Verdict == leak.Leak
		})
	byOrder(add, tableLeakFound, "1 ms slower in 3 %, 3,000 pairs: ever `none`", always(100), always(3000), atMost(1e-5),
		func(c trial.Client, seed uint64) bool {
			isNone := false
			slower(c, seed, func(j *leak.Judge) bool {
				isNone = isNone || j.Pairs()%100 == 0 && j.Report().Verdict == leak.None
				return false
			})
			return isNone
		})
	byOrder(add, tableLeakFound, "0.3 µs slower, σ = 2 µs, 30,000 pairs: `none`", always(20), always(30_000), atLeast(0.9),
		func(c trial.Client, seed uint64) bool {
			t := trial.New(c, trial.Service{Name: "normal", Kind: traffic.Constant(200e3, 2e3)}, trial.Longer(300))
			return t.Run(seed, 30_000, nil).Report().Verdict == leak.None
		})
}

// leakInterval measures how often a constant effect is outside of the interval at the end.
func leakInterval(add func(experiment)) {
	const pairs, effect = 1000, 10e3
	for _, s := range trial.Noises() {
		byOrder(add, tableLeakInterval, s.Name, always(200), always(pairs), atMost(0.05), func(c trial.Client, seed uint64) bool {
			t := trial.New(c, s, trial.Longer(effect))
			r := t.Run(seed, pairs, nil).Report()
			return r.LowNs > effect || r.HighNs < effect
		})
	}
}

// leakLabels measures how often the checks of labels refuse data.
func leakLabels(add func(experiment)) {
	isRefused := func(c trial.Client, pairs int) func(seed uint64) bool {
		return func(seed uint64) bool {
			t := trial.New(c, trial.Services()[0], nil)
			return t.Run(seed, pairs, nil).Report().Verdict == leak.Invalid
		}
	}
	for _, c := range trial.Clients() {
		if !c.IsValid() {
			continue
		}
		const pairs, runs = 1000, 250
		responses := responsesOf(c.Order, pairs)
		add(experiment{
			table: tableLeakLabels, row: "valid: " + c.Name, column: columnOfChecks, packets: runs * responses, bound: atMost(4e-3),
			measure: func(_ *lab, r run) (figure, error) { return leakRuns(r, responses, isRefused(c, pairs)), nil },
		})
	}
	for _, order := range []leak.Order{leak.Random, leak.Blocks} {
		const pairs, runs, length = 3, 100, 200
		c := trial.Client{Name: "runs of 200", Order: order, Connections: 1, Run: length}
		add(experiment{
			table: tableLeakLabels, row: "runs of 200 instead of " + order.String(), column: columnOfChecks, packets: runs * length * pairs, bound: atLeast(1),
			measure: func(_ *lab, r run) (figure, error) { return leakRuns(r, length*pairs, isRefused(c, pairs)), nil },
		})
	}
}
