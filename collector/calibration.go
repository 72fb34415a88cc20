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
		"Number of scored packets in the calibration of the device; halved to forget old packets.", "device")
	calibrationLearningDesc = newDesc("calibration_learning_cpus",
		"Number of CPUs with too few scored packets of the device for a calibration; every flag on them may become an event.", "device")
	calibrationScoreDesc = newDesc("calibration_event_tscore",
		"Smallest absolute t-score of an event, on the CPU where it is largest; +Inf if no score is rare enough.", "device", "direction")
)

// sendCalibration sends the calibration of a device, and nothing without one.
func sendCalibration(ch chan<- prometheus.Metric, device string, calibration *bpf.Calibration) {
	if calibration == nil {
		return
	}
	ch <- gauge(calibrationPacketsDesc, float64(calibration.Judged), device)
	ch <- gauge(calibrationLearningDesc, float64(calibration.LearningCPUs), device)
	ch <- gauge(calibrationScoreDesc, calibration.EventScores[timing.SideEarly], device, "early")
	ch <- gauge(calibrationScoreDesc, calibration.EventScores[timing.SideLate], device, "late")
}
