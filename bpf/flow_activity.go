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
	// activityHalfLife is the time in which a sample loses half of its weight.
	activityHalfLife = 30 * time.Second
	// minActivity is that at which a flow is forgotten: of one sample, after two minutes.
	minActivity = 1. / 16
	// maxActiveFlows is the number of flows above which the least busy half is forgotten.
	maxActiveFlows = 8192
)

// activityDecay is what a weight keeps in a round.
var activityDecay = math.Exp2(-float64(watchInterval) / float64(activityHalfLife))

// flowActivity are the weights of flows: their samples, the older the less.
type flowActivity map[flowID]float64

func (b flowActivity) add(id flowID) { b[id]++ }

// forget lets time pass.
func (b flowActivity) decay() {
	for id := range b {
		b[id] *= activityDecay
	}
	maps.DeleteFunc(b, func(_ flowID, weight float64) bool { return weight < minActivity })
	if len(b) > maxActiveFlows {
		keep := b.busiest(maxActiveFlows/2, func(flowID) bool { return true })
		kept := make(flowActivity, len(keep))
		for _, id := range keep {
			kept[id] = b[id]
		}
		maps.DeleteFunc(b, func(id flowID, _ float64) bool { return kept[id] == 0 })
	}
}

// busiest returns up to n flows of those that are wanted, the busiest first.
func (b flowActivity) busiest(n int, isWanted func(flowID) bool) []flowID {
	var ids []flowID
	for id := range b {
		if isWanted(id) {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(x, y flowID) int {
		return cmp.Or(cmp.Compare(b[y], b[x]), cmp.Compare(x.slotIndex, y.slotIndex), cmp.Compare(x.tag, y.tag))
	})
	return ids[:min(n, len(ids))]
}
