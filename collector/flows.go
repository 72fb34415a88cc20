// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

var (
	slotsDesc     = newDesc("flow_table_slots", "Number of slots in the flow table, which all devices share.")
	slotsUsedDesc = newDesc("flow_table_slots_used", "Number of slots in the flow table that hold a flow, live or expired.")
	insertsDesc   = newDesc("flow_inserts_total", "Total number of flows inserted into the flow table.", "device")
	evictionsDesc = newDesc("flow_evictions_total",
		"Total number of flows evicted by a new flow of the device: expired (silent for longer than the idle timeout) or live.",
		"device", "reason")
)

var evictionLabels = labelsOf("reason", bpf.NumEvictions)

type flowsSource interface {
	Counters() []bpf.Counters
	Slots() int
	DeviceSlots() bpf.DeviceSlots
}

type flowsCollector struct {
	source flowsSource
}

func newFlowsCollector(source flowsSource) flowsCollector {
	return flowsCollector{source}
}

// Update sends the size and the use of the flow table, its inserts and its evictions. A used
// slot is never freed, so the number of used slots is that of the inserts without an eviction.
func (c flowsCollector) Update(ch chan<- prometheus.Metric) error {
	used := c.source.DeviceSlots().GoneFlows
	counters := c.source.Counters()
	for i := range counters {
		device := deviceLabel(counters[i].Device)
		used += int64(counters[i].Inserts)
		ch <- counter(insertsDesc, float64(counters[i].Inserts), device)
		for reason, n := range counters[i].Evictions {
			used -= int64(n)
			ch <- counter(evictionsDesc, float64(n), device, evictionLabels[reason])
		}
	}
	ch <- gauge(slotsDesc, float64(c.source.Slots()))
	ch <- gauge(slotsUsedDesc, float64(max(0, min(used, int64(c.source.Slots())))))
	return nil
}
