// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

func TestBaselineOfADevice(t *testing.T) {
	const octave = 1 << 20 // units
	names := []string{
		"xdp_audit_baseline_samples", "xdp_audit_baseline_mean_seconds", "xdp_audit_baseline_stddev_seconds", "xdp_audit_baseline_stddev_octaves",
		"xdp_audit_baseline_frozen", "xdp_audit_baseline_saved_timestamp_seconds",
	}
	for _, test := range []struct {
		name     string
		baseline *bpf.Baseline
		want     string
	}{
		{"flows have baselines of their own", nil, ""},
		{"no sample yet", &bpf.Baseline{Domain: bpf.DomainLinear}, `
# HELP xdp_audit_baseline_frozen Whether packets of the device are scored against a saved baseline, which does not change.
# TYPE xdp_audit_baseline_frozen gauge
xdp_audit_baseline_frozen{device="eth0"} 0
# HELP xdp_audit_baseline_mean_seconds Mean inter-arrival time in the baseline of the device in seconds (geometric mean with --audit.domain=log2); 0 without samples.
# TYPE xdp_audit_baseline_mean_seconds gauge
xdp_audit_baseline_mean_seconds{device="eth0"} 0
# HELP xdp_audit_baseline_samples Number of samples in the baseline of the device; halved at twice the window.
# TYPE xdp_audit_baseline_samples gauge
xdp_audit_baseline_samples{device="eth0"} 0
# HELP xdp_audit_baseline_stddev_seconds Standard deviation of the inter-arrival times in the baseline of the device in seconds; 0 below two samples.
# TYPE xdp_audit_baseline_stddev_seconds gauge
xdp_audit_baseline_stddev_seconds{device="eth0"} 0
`},
		// 101 samples of 1 ms ± 20 µs.
		{"linear", &bpf.Baseline{Domain: bpf.DomainLinear, Samples: 101, MeanQ16: 1_000_000 << 16, M2: bpf.Uint128{Lo: 40_000_000_000}}, `
# HELP xdp_audit_baseline_frozen Whether packets of the device are scored against a saved baseline, which does not change.
# TYPE xdp_audit_baseline_frozen gauge
xdp_audit_baseline_frozen{device="eth0"} 0
# HELP xdp_audit_baseline_mean_seconds Mean inter-arrival time in the baseline of the device in seconds (geometric mean with --audit.domain=log2); 0 without samples.
# TYPE xdp_audit_baseline_mean_seconds gauge
xdp_audit_baseline_mean_seconds{device="eth0"} 0.001
# HELP xdp_audit_baseline_samples Number of samples in the baseline of the device; halved at twice the window.
# TYPE xdp_audit_baseline_samples gauge
xdp_audit_baseline_samples{device="eth0"} 101
# HELP xdp_audit_baseline_stddev_seconds Standard deviation of the inter-arrival times in the baseline of the device in seconds; 0 below two samples.
# TYPE xdp_audit_baseline_stddev_seconds gauge
xdp_audit_baseline_stddev_seconds{device="eth0"} 2e-05
`},
		// 5 samples around 2²⁰ ns, with a deviation of half an octave.
		{"log2", &bpf.Baseline{Domain: bpf.DomainLog2, Samples: 5, MeanQ16: 20 * octave << 16, M2: bpf.Uint128{Lo: octave * octave}}, `
# HELP xdp_audit_baseline_frozen Whether packets of the device are scored against a saved baseline, which does not change.
# TYPE xdp_audit_baseline_frozen gauge
xdp_audit_baseline_frozen{device="eth0"} 0
# HELP xdp_audit_baseline_mean_seconds Mean inter-arrival time in the baseline of the device in seconds (geometric mean with --audit.domain=log2); 0 without samples.
# TYPE xdp_audit_baseline_mean_seconds gauge
xdp_audit_baseline_mean_seconds{device="eth0"} 0.001048576
# HELP xdp_audit_baseline_samples Number of samples in the baseline of the device; halved at twice the window.
# TYPE xdp_audit_baseline_samples gauge
xdp_audit_baseline_samples{device="eth0"} 5
# HELP xdp_audit_baseline_stddev_octaves Standard deviation of the inter-arrival times in the baseline of the device in octaves; 0 below two samples.
# TYPE xdp_audit_baseline_stddev_octaves gauge
xdp_audit_baseline_stddev_octaves{device="eth0"} 0.5
`},
		{"frozen", &bpf.Baseline{
			Domain: bpf.DomainLinear, Samples: 101, MeanQ16: 1_000_000 << 16, M2: bpf.Uint128{Lo: 40_000_000_000}, FrozenSince: time.Unix(1_764_064_800, 5e8),
		}, `
# HELP xdp_audit_baseline_frozen Whether packets of the device are scored against a saved baseline, which does not change.
# TYPE xdp_audit_baseline_frozen gauge
xdp_audit_baseline_frozen{device="eth0"} 1
# HELP xdp_audit_baseline_mean_seconds Mean inter-arrival time in the baseline of the device in seconds (geometric mean with --audit.domain=log2); 0 without samples.
# TYPE xdp_audit_baseline_mean_seconds gauge
xdp_audit_baseline_mean_seconds{device="eth0"} 0.001
# HELP xdp_audit_baseline_samples Number of samples in the baseline of the device; halved at twice the window.
# TYPE xdp_audit_baseline_samples gauge
xdp_audit_baseline_samples{device="eth0"} 101
# HELP xdp_audit_baseline_saved_timestamp_seconds Unix time in seconds at which the saved baseline of the device was written.
# TYPE xdp_audit_baseline_saved_timestamp_seconds gauge
xdp_audit_baseline_saved_timestamp_seconds{device="eth0"} 1.7640648e+09
# HELP xdp_audit_baseline_stddev_seconds Standard deviation of the inter-arrival times in the baseline of the device in seconds; 0 below two samples.
# TYPE xdp_audit_baseline_stddev_seconds gauge
xdp_audit_baseline_stddev_seconds{device="eth0"} 2e-05
`},
	} {
		t.Run(test.name, func(t *testing.T) {
			source := &fakeSource{counters: []bpf.Counters{counters("eth0", func(c *bpf.Counters) { c.Baseline = test.baseline })}}
			g := gatherer(t, registered{t, newTimingCollector(source, timing.NewBuckets())})
			if test.want == "" {
				if n, err := testutil.GatherAndCount(g, names...); err != nil || n != 0 {
					t.Errorf("%d series (%v), want none", n, err)
				}
				return
			}
			if err := testutil.GatherAndCompare(g, strings.NewReader(test.want), names...); err != nil {
				t.Error(err)
			}
		})
	}
}
