// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

func TestEvents(t *testing.T) {
	source := &fakeSource{
		counters: []bpf.Counters{
			counters("eth0", func(c *bpf.Counters) {
				c.Fates = [bpf.NumFates]uint64{10, 20, 3, 4, 5, 6, 7}
				c.Decisions = [bpf.NumDecisions]uint64{8, 9, 3, 2}
			}),
			counters("eth1", func(*bpf.Counters) {}),
		},
		events: bpf.EventCounts{Received: map[string]uint64{"eth0": 9}, Lost: 3, Malformed: 1},
	}
	expect(t, newEventsCollector(source), `
# HELP xdp_audit_calibration_flags_total Total number of flagged packets by what the calibration decided; without those that the limit of the event rate refused.
# TYPE xdp_audit_calibration_flags_total counter
xdp_audit_calibration_flags_total{decision="common",device="eth0"} 3
xdp_audit_calibration_flags_total{decision="common",device="eth1"} 0
xdp_audit_calibration_flags_total{decision="earned",device="eth0"} 8
xdp_audit_calibration_flags_total{decision="earned",device="eth1"} 0
xdp_audit_calibration_flags_total{decision="no_token",device="eth0"} 2
xdp_audit_calibration_flags_total{decision="no_token",device="eth1"} 0
xdp_audit_calibration_flags_total{decision="unearned",device="eth0"} 9
xdp_audit_calibration_flags_total{decision="unearned",device="eth1"} 0
# HELP xdp_audit_event_fates_total Total number of flagged packets by the fate of their perf event, counted in the kernel.
# TYPE xdp_audit_event_fates_total counter
xdp_audit_event_fates_total{device="eth0",fate="no_reader"} 4
xdp_audit_event_fates_total{device="eth0",fate="other"} 6
xdp_audit_event_fates_total{device="eth0",fate="rate_limit"} 20
xdp_audit_event_fates_total{device="eth0",fate="reader_gap"} 7
xdp_audit_event_fates_total{device="eth0",fate="ring_full"} 3
xdp_audit_event_fates_total{device="eth0",fate="sent"} 10
xdp_audit_event_fates_total{device="eth0",fate="suppressed"} 5
xdp_audit_event_fates_total{device="eth1",fate="no_reader"} 0
xdp_audit_event_fates_total{device="eth1",fate="other"} 0
xdp_audit_event_fates_total{device="eth1",fate="rate_limit"} 0
xdp_audit_event_fates_total{device="eth1",fate="reader_gap"} 0
xdp_audit_event_fates_total{device="eth1",fate="ring_full"} 0
xdp_audit_event_fates_total{device="eth1",fate="sent"} 0
xdp_audit_event_fates_total{device="eth1",fate="suppressed"} 0
# HELP xdp_audit_event_records_lost_total Total number of perf events that the kernel reported lost; event_fates_total also counts them, as ring_full.
# TYPE xdp_audit_event_records_lost_total counter
xdp_audit_event_records_lost_total 3
# HELP xdp_audit_event_records_malformed_total Total number of perf events that could not be decoded.
# TYPE xdp_audit_event_records_malformed_total counter
xdp_audit_event_records_malformed_total 1
# HELP xdp_audit_events_total Total number of perf events received.
# TYPE xdp_audit_events_total counter
xdp_audit_events_total{device="eth0"} 9
xdp_audit_events_total{device="eth1"} 0
`)
}
