// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"
)

const (
	// busyHalfLife is the time in which a sample loses half of its weight.
	busyHalfLife = 30 * time.Second
	// leastWeight is that at which a flow is forgotten: of one sample, after two minutes.
	leastWeight = 1. / 16
	// mostBusy is the number of flows above which the least busy half is forgotten.
	mostBusy = 8192
)

// forgetting is what a weight keeps in a round.
var forgetting = math.Exp2(-float64(watchInterval) / float64(busyHalfLife))

// busyFlows are the weights of flows: their samples, the older the less.
type busyFlows map[flowID]float64

func (b busyFlows) add(id flowID) { b[id]++ }

// forget lets time pass.
func (b busyFlows) forget() {
	for id := range b {
		b[id] *= forgetting
	}
	maps.DeleteFunc(b, func(_ flowID, weight float64) bool { return weight < leastWeight })
	if len(b) > mostBusy {
		keep := b.busiest(mostBusy/2, func(flowID) bool { return true })
		kept := make(busyFlows, len(keep))
		for _, id := range keep {
			kept[id] = b[id]
		}
		maps.DeleteFunc(b, func(id flowID, _ float64) bool { return kept[id] == 0 })
	}
}

// busiest returns up to n flows of those that are wanted, the busiest first.
func (b busyFlows) busiest(n int, isWanted func(flowID) bool) []flowID {
	var ids []flowID
	for id := range b {
		if isWanted(id) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(x, y flowID) int {
		return cmp.Or(cmp.Compare(b[y], b[x]), cmp.Compare(x.place, y.place), cmp.Compare(x.tag, y.tag))
	})
	return ids[:min(n, len(ids))]
}
