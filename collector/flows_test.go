// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

func TestFlows(t *testing.T) {
	source := &fakeSource{slots: 65536, devices: bpf.DeviceSlots{GoneFlows: -2}, counters: []bpf.Counters{counters("eth0", func(c *bpf.Counters) {
		c.Inserts = 100
		c.Evictions = [bpf.NumEvictions]uint64{30, 8}
	})}}
	expect(t, newFlowsCollector(source), `
# HELP xdp_audit_flow_evictions_total Total number of flows evicted by a new flow of the device: expired (silent for longer than the idle timeout) or live.
# TYPE xdp_audit_flow_evictions_total counter
xdp_audit_flow_evictions_total{device="eth0",reason="expired"} 30
xdp_audit_flow_evictions_total{device="eth0",reason="live"} 8
# HELP xdp_audit_flow_inserts_total Total number of flows inserted into the flow table.
# TYPE xdp_audit_flow_inserts_total counter
xdp_audit_flow_inserts_total{device="eth0"} 100
# HELP xdp_audit_flow_table_slots Number of slots in the flow table, which all devices share.
# TYPE xdp_audit_flow_table_slots gauge
xdp_audit_flow_table_slots 65536
# HELP xdp_audit_flow_table_slots_used Number of slots in the flow table that hold a flow, live or expired.
# TYPE xdp_audit_flow_table_slots_used gauge
xdp_audit_flow_table_slots_used 60
`)
}
