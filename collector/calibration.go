// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

var calibrationFlagsDesc = newDesc("calibration_flags_total",
	"Total number of flagged packets by what the calibration decided; without those that the limit of the event rate refused.",
	"decision", "device")

var decisionLabels = labelsOf("decision", bpf.NumDecisions)

// sendCalibration sends what was decided on the flagged packets of a device.
func sendCalibration(ch chan<- prometheus.Metric, device *dto.LabelPair, decisions *[bpf.NumDecisions]uint64) {
	for d := range bpf.NumDecisions {
		ch <- counter(calibrationFlagsDesc, float64(decisions[d]), decisionLabels[d], device)
	}
}
