// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"fmt"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/fleet"
	"github.com/xdp-audit/xdp_audit_exporter/internal/fleet/trial"
)

const (
	tableUnchanged = "fleets: nothing changes"
	tableOneOf3    = "fleets: one of three is 10 % slower"

	// devicesOfTrial is the number of devices whose windows are shared by all sizes of fleets.
	devicesOfTrial = 100
	// deltasToFind is the number of deltas in the shorter window in which a change must be found.
	deltasToFind = 36_000
)

// fleets measures how often the z of a fleet is large. It needs no program: the deltas of
// devices are put into the cells of the histogram, and compared as by the recording rules.
func fleets() []experiment {
	const windows, changed = 1000, 200
	config := bpf.DefaultConfig() // of no effect
	var all []experiment
	for _, family := range trial.Families() {
		for _, pair := range trial.Pairs() {
			count := once(func(_ *lab, r run) ([]float64, error) {
				return unchanged(family, pair, r.seed, max(1, r.packets/devicesOfTrial/fleet.LeastDeltas)), nil
			})
			for _, size := range []int{3, 10, devicesOfTrial} {
				all = append(all, experiment{
					table: tableUnchanged, row: fmt.Sprintf("%s, %d devices", family.Name, size), column: pair.Name, config: config,
					packets: windows * devicesOfTrial * fleet.LeastDeltas, bound: atMost(1e-3),
					measure: pick(count, func(z []float64) figure {
						large, of := trial.Count(z, size)
						return shareFigure(share{large, of, 1})
					}),
				})
			}
			all = append(all, experiment{
				table: tableOneOf3, row: family.Name, column: pair.Name, config: config,
				packets: changed * 3 * deltasToFind, bound: boundToFind(family),
				measure: func(_ *lab, r run) (figure, error) {
					return findOneOf3(family, pair, r.seed, max(1, r.packets/3/deltasToFind)), nil
				},
			})
		}
	}
	return all
}

// boundToFind returns the bound of a change. Deltas whose logarithms depend on each other have
// fewer independent ones.
func boundToFind(f trial.Family) bound {
	if f.HasMemory {
		return bound{}
	}
	return atLeast(0.9)
}

// unchanged returns the z of all devices, window by window, while nothing changes.
func unchanged(f trial.Family, pair trial.Windows, seed uint64, windows int) (z []float64) {
	t := trial.New(f, pair, devicesOfTrial, fleet.LeastDeltas, seed)
	for range windows {
		z = append(z, t.Next(1)...)
	}
	return z
}

func findOneOf3(f trial.Family, pair trial.Windows, seed uint64, windows int) figure {
	t := trial.New(f, pair, 3, deltasToFind, seed)
	s := share{Clustering: 1}
	for range windows {
		large, of := trial.Count(t.Next(1.1), 3)
		s.Hits, s.Trials = s.Hits+large, s.Trials+of
	}
	return shareFigure(s)
}

// pairNames returns the columns of the tables.
func pairNames() (names []string) {
	for _, pair := range trial.Pairs() {
		names = append(names, pair.Name)
	}
	return names
}
