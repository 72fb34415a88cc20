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
	// activityHalfLife is the time after which a sample has half of its weight.
	activityHalfLife = 30 * time.Second
	// minActivity is the activity below which a flow is forgotten: two minutes after its only
	// sample.
	minActivity = 1. / 16
	// maxActiveFlows is the number of remembered flows above which all but the busiest half of
	// it are forgotten.
	maxActiveFlows = 8192
)

// activityDecay is the factor by which activity decreases in one round.
var activityDecay = math.Exp2(-float64(watchInterval) / float64(activityHalfLife))

// flowActivity is the activity of flows: the sum of their samples, weighted by age.
type flowActivity map[flowID]float64

func (b flowActivity) add(id flowID) { b[id]++ }

// decay ages all samples by one round.
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

// busiest returns up to n of the flows for which isWanted is true, the busiest first.
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
