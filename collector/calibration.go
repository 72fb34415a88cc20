// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

var calibrationFlagsDesc = newDesc("calibration_flags_total",
	"Total number of flagged packets by what the calibration decided; without those that the limit of the event rate refused.",
	"device", "decision")

// sendCalibration sends what was decided on the flagged packets of a device.
func sendCalibration(ch chan<- prometheus.Metric, device string, decisions *[bpf.NumDecisions]uint64) {
	for d := range bpf.NumDecisions {
		ch <- counter(calibrationFlagsDesc, float64(decisions[d]), device, d.String())
	}
}
