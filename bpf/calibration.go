// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"sync/atomic"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// The kernel and the model have the same number of score bins.
var _ = [1]struct{}{}[len(programCalibration{}.Scores[0])-timing.ScoreBins]

// add adds the calibration of one CPU, which has scored `judged` packets. The share of them
// that may become events is computed as the kernel does when it scores a flagged packet.
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
