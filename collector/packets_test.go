// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

func TestPackets(t *testing.T) {
	source := &fakeSource{counters: []bpf.Counters{counters("eth0", func(c *bpf.Counters) {
		c.Packets[bpf.FamilyIPv4][bpf.ProtocolTCP][bpf.OutcomeJudged] = 10
		c.Packets[bpf.FamilyIPv4][bpf.ProtocolTCP][bpf.OutcomeNewFlow] = 2
		c.Packets[bpf.FamilyIPv6][bpf.ProtocolICMP][bpf.OutcomeNewFlow] = 1
		c.Packets[bpf.FamilyOther][bpf.ProtocolOther][bpf.OutcomeUnparsed] = 3
		c.Bytes[bpf.FamilyIPv4][bpf.ProtocolTCP] = 1200
		c.Bytes[bpf.FamilyIPv6][bpf.ProtocolICMP] = 86
		c.Bytes[bpf.FamilyOther][bpf.ProtocolOther] = 180
	})}}
	expect(t, newPacketsCollector(source), `
# HELP xdp_audit_bytes_total Total length of the received frames in bytes.
# TYPE xdp_audit_bytes_total counter
xdp_audit_bytes_total{device="eth0",family="ipv4",protocol="icmp"} 0
xdp_audit_bytes_total{device="eth0",family="ipv4",protocol="other"} 0
xdp_audit_bytes_total{device="eth0",family="ipv4",protocol="sctp"} 0
xdp_audit_bytes_total{device="eth0",family="ipv4",protocol="tcp"} 1200
xdp_audit_bytes_total{device="eth0",family="ipv4",protocol="udp"} 0
xdp_audit_bytes_total{device="eth0",family="ipv6",protocol="icmp"} 86
xdp_audit_bytes_total{device="eth0",family="ipv6",protocol="other"} 0
xdp_audit_bytes_total{device="eth0",family="ipv6",protocol="sctp"} 0
xdp_audit_bytes_total{device="eth0",family="ipv6",protocol="tcp"} 0
xdp_audit_bytes_total{device="eth0",family="ipv6",protocol="udp"} 0
xdp_audit_bytes_total{device="eth0",family="other",protocol="other"} 180
# HELP xdp_audit_outcomes_total Total number of packets by their outcome in the audit.
# TYPE xdp_audit_outcomes_total counter
xdp_audit_outcomes_total{device="eth0",outcome="contended"} 0
xdp_audit_outcomes_total{device="eth0",outcome="flagged_early"} 0
xdp_audit_outcomes_total{device="eth0",outcome="flagged_late"} 0
xdp_audit_outcomes_total{device="eth0",outcome="fragment"} 0
xdp_audit_outcomes_total{device="eth0",outcome="idle_gap"} 0
xdp_audit_outcomes_total{device="eth0",outcome="judged"} 10
xdp_audit_outcomes_total{device="eth0",outcome="min_samples"} 0
xdp_audit_outcomes_total{device="eth0",outcome="new_flow"} 3
xdp_audit_outcomes_total{device="eth0",outcome="reordered"} 0
xdp_audit_outcomes_total{device="eth0",outcome="unparsed"} 3
xdp_audit_outcomes_total{device="eth0",outcome="untimed"} 0
# HELP xdp_audit_packets_total Total number of packets received by the audit.
# TYPE xdp_audit_packets_total counter
xdp_audit_packets_total{device="eth0",family="ipv4",protocol="icmp"} 0
xdp_audit_packets_total{device="eth0",family="ipv4",protocol="other"} 0
xdp_audit_packets_total{device="eth0",family="ipv4",protocol="sctp"} 0
xdp_audit_packets_total{device="eth0",family="ipv4",protocol="tcp"} 12
xdp_audit_packets_total{device="eth0",family="ipv4",protocol="udp"} 0
xdp_audit_packets_total{device="eth0",family="ipv6",protocol="icmp"} 1
xdp_audit_packets_total{device="eth0",family="ipv6",protocol="other"} 0
xdp_audit_packets_total{device="eth0",family="ipv6",protocol="sctp"} 0
xdp_audit_packets_total{device="eth0",family="ipv6",protocol="tcp"} 0
xdp_audit_packets_total{device="eth0",family="ipv6",protocol="udp"} 0
xdp_audit_packets_total{device="eth0",family="other",protocol="other"} 3
`)
}
