// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"math"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

func TestCalibration(t *testing.T) {
	source := &fakeSource{counters: []bpf.Counters{
		counters("eth0", func(c *bpf.Counters) {
			c.Calibration = &bpf.Calibration{Judged: 5_000_000, LearningCPUs: 1, EventScores: [2]float64{math.Inf(1), 9.5}}
		}),
		counters("eth1", func(*bpf.Counters) {}), // is not calibrated
	}}
	err := testutil.GatherAndCompare(gatherer(t, registered{t, newEventsCollector(source)}), strings.NewReader(`
# HELP xdp_audit_calibration_event_tscore Smallest absolute t-score of an event, on the CPU where it is largest; +Inf if no score is rare enough.
# TYPE xdp_audit_calibration_event_tscore gauge
xdp_audit_calibration_event_tscore{device="eth0",direction="early"} +Inf
xdp_audit_calibration_event_tscore{device="eth0",direction="late"} 9.5
# HELP xdp_audit_calibration_learning_cpus Number of CPUs with too few scored packets of the device for a calibration; every flag on them may become an event.
# TYPE xdp_audit_calibration_learning_cpus gauge
xdp_audit_calibration_learning_cpus{device="eth0"} 1
# HELP xdp_audit_calibration_packets Number of scored packets in the calibration of the device; halved to forget old packets.
# TYPE xdp_audit_calibration_packets gauge
xdp_audit_calibration_packets{device="eth0"} 5e+06
`), "xdp_audit_calibration_event_tscore", "xdp_audit_calibration_learning_cpus", "xdp_audit_calibration_packets")
	if err != nil {
		t.Error(err)
	}
}
