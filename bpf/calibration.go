// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"sync/atomic"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// The bins of the kernel and of the model are the same.
var _ = [1]struct{}{}[len(programCalibration{}.Scores[0])-timing.ScoreBins]

// add takes in what a CPU knows that has judged so many packets. The kernel looks how many they are when it has to score one.
func (c *Calibration) add(params timing.Params, block *programCalibration, judged uint64) {
	if judged == 0 {
		return
	}
	known := judged - min(judged, atomic.LoadUint64(&block.Forgotten))
	allowed := params.Allowed(known)
	c.Judged += known
	if allowed == 0 {
		c.LearningCPUs++
	}
	for side := range c.EventScores {
		c.EventScores[side] = max(c.EventScores[side], params.EventScore(allowed, atomic.LoadUint32(&block.Cuts[side])))
	}
}
