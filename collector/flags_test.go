// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

func TestFlags(t *testing.T) {
	// 101 samples of mean 1000 ns with a variance of 100 ns²: the standard error of a
	// prediction is 10·√(1+1/101) ns.
	flag := &bpf.Flag{
		KtimeNs: 2_500_999_999, DeltaNs: 900, Samples: 101, MeanQ16: 1000 << 16, M2: bpf.Uint128{Lo: 10_000}, LenBytes: 1514,
	}
	source := &fakeSource{counters: []bpf.Counters{
		counters("eth0", func(c *bpf.Counters) {
			c.Packets[bpf.FamilyIPv4][bpf.ProtocolUDP][bpf.OutcomeFlaggedEarly] = 5
			c.Packets[bpf.FamilyIPv6][bpf.ProtocolUDP][bpf.OutcomeFlaggedLate] = 7
			c.LastFlag = flag
			c.Restarts = 3
		}),
		counters("eth1", func(*bpf.Counters) {}),
	}}
	wallTime := func(f bpf.Flag) time.Time { return time.Unix(1_800_000_000, int64(f.KtimeNs)) }
	expect(t, newFlagsCollector(source, nil, wallTime), `
# HELP xdp_audit_baseline_restarts_total Total number of baselines that restarted at the level of a run of flagged packets in one direction.
# TYPE xdp_audit_baseline_restarts_total counter
xdp_audit_baseline_restarts_total{device="eth0"} 3
xdp_audit_baseline_restarts_total{device="eth1"} 0
# HELP xdp_audit_last_delta_seconds Inter-arrival time of the last flagged packet in seconds; 0 before the first flagged packet.
# TYPE xdp_audit_last_delta_seconds gauge
xdp_audit_last_delta_seconds{device="eth0"} 9e-07
xdp_audit_last_delta_seconds{device="eth1"} 0
# HELP xdp_audit_last_flag_timestamp_seconds Unix time of the last flagged packet in seconds, with millisecond resolution; 0 before the first flagged packet.
# TYPE xdp_audit_last_flag_timestamp_seconds gauge
xdp_audit_last_flag_timestamp_seconds{device="eth0"} 1.8000000025e+09
xdp_audit_last_flag_timestamp_seconds{device="eth1"} 0
# HELP xdp_audit_last_packet_bytes Frame length of the last flagged packet in bytes; 0 before the first flagged packet.
# TYPE xdp_audit_last_packet_bytes gauge
xdp_audit_last_packet_bytes{device="eth0"} 1514
xdp_audit_last_packet_bytes{device="eth1"} 0
# HELP xdp_audit_last_tscore Absolute t-score of the last flagged packet; 0 before the first flagged packet.
# TYPE xdp_audit_last_tscore gauge
xdp_audit_last_tscore{device="eth0"} 9.95085965347403
xdp_audit_last_tscore{device="eth1"} 0
# HELP xdp_audit_leak_flags_total Total number of packets whose absolute t-score reached the threshold.
# TYPE xdp_audit_leak_flags_total counter
xdp_audit_leak_flags_total{device="eth0",direction="early"} 5
xdp_audit_leak_flags_total{device="eth0",direction="late"} 7
xdp_audit_leak_flags_total{device="eth1",direction="early"} 0
xdp_audit_leak_flags_total{device="eth1",direction="late"} 0
`)
}
