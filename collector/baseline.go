// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

var (
	baselineSamplesDesc = newDesc("baseline_samples", "Number of samples in the baseline of the device; halved at twice the window.", "device")
	baselineMeanDesc    = newDesc("baseline_mean_seconds",
		"Mean inter-arrival time in the baseline of the device in seconds (geometric mean with --audit.domain=log2); 0 without samples.", "device")
	baselineStddevDesc = newDesc("baseline_stddev_seconds",
		"Standard deviation of the inter-arrival times in the baseline of the device in seconds; 0 below two samples.", "device")
	baselineOctavesDesc = newDesc("baseline_stddev_octaves",
		"Standard deviation of the inter-arrival times in the baseline of the device in octaves; 0 below two samples.", "device")
	baselineFrozenDesc = newDesc("baseline_frozen", "Whether packets of the device are scored against a saved baseline, which does not change.", "device")
	baselineSavedDesc  = newDesc("baseline_saved_timestamp_seconds", "Unix time in seconds at which the saved baseline of the device was written.", "device")
)

// sendBaseline sends the baseline of a device, and nothing without one.
func sendBaseline(ch chan<- prometheus.Metric, device *dto.LabelPair, baseline *bpf.Baseline) {
	if baseline == nil {
		return
	}
	ch <- gauge(baselineSamplesDesc, float64(baseline.Samples), device)
	ch <- gauge(baselineMeanDesc, baseline.MeanNs()/1e9, device)
	if baseline.Domain == bpf.DomainLog2 {
		ch <- gauge(baselineOctavesDesc, baseline.StandardDeviation(), device)
	} else {
		ch <- gauge(baselineStddevDesc, baseline.StandardDeviation()/1e9, device)
	}
	frozen := 0.0
	if !baseline.FrozenSince.IsZero() {
		frozen = 1
		ch <- gauge(baselineSavedDesc, float64(baseline.FrozenSince.Unix()), device)
	}
	ch <- gauge(baselineFrozenDesc, frozen, device)
}
