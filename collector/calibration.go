// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

var (
	calibrationPacketsDesc = newDesc("calibration_packets",
		"Judged packets that the calibration of a device was learnt from, which forgets by halving them.", "device")
	calibrationLearningDesc = newDesc("calibration_learning_cpus",
		"CPUs that have judged too few packets of a device to tell which flags are rare, so that every flag may become an event.", "device")
	calibrationScoreDesc = newDesc("calibration_event_tscore",
		"|t| from which on packets become events, on the CPU where it is highest; +Inf where none is rare enough.", "device", "direction")
)

// sendCalibration sends what is known of the scores of a device, if it is calibrated.
func sendCalibration(ch chan<- prometheus.Metric, device string, calibration *bpf.Calibration) {
	if calibration == nil {
		return
	}
	ch <- gauge(calibrationPacketsDesc, float64(calibration.Judged), device)
	ch <- gauge(calibrationLearningDesc, float64(calibration.LearningCPUs), device)
	ch <- gauge(calibrationScoreDesc, calibration.EventScores[timing.SideEarly], device, "early")
	ch <- gauge(calibrationScoreDesc, calibration.EventScores[timing.SideLate], device, "late")
}
