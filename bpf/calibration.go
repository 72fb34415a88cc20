// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"sync/atomic"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// The kernel and the model have the same number of score bins.
var _ = [1]struct{}{}[len(programCalibration{}.Scores[0])-timing.ScoreBins]

// calibrationSum adds up the calibrations of the CPUs of a device.
type calibrationSum struct {
	judged   uint64
	learning int       // CPUs
	allowed  uint32    // the largest
	cuts     [2]uint32 // the highest of the CPUs that have learnt
}

// add adds the calibration of one CPU, which has scored `judged` packets. The share of them
// that may become events is computed as the kernel does when it scores a flagged packet.
func (s *calibrationSum) add(params timing.Params, block *programCalibration, judged uint64) {
	if judged == 0 {
		return
	}
	known := judged - min(judged, atomic.LoadUint64(&block.Forgotten))
	allowed := params.Allowed(known)
	s.judged += known
	if allowed == 0 {
		s.learning++
		return
	}
	s.allowed = max(s.allowed, allowed)
	for side := range s.cuts {
		s.cuts[side] = max(s.cuts[side], atomic.LoadUint32(&block.Cuts[side]))
	}
}

// result returns the calibration of the device. The score of an event is that of the CPU with the
// highest cut, because a score increases with its cut and is never below the threshold.
func (s *calibrationSum) result(params timing.Params) *Calibration {
	c := &Calibration{Judged: s.judged, LearningCPUs: s.learning}
	for side := range c.EventScores {
		c.EventScores[side] = params.EventScore(s.allowed, s.cuts[side])
	}
	return c
}
