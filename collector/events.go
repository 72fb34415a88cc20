// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

var (
	eventsDesc = newDesc("events_total", "Total number of perf events received.", "device")
	fatesDesc  = newDesc("event_fates_total",
		"Total number of flagged packets by the fate of their perf event, counted in the kernel.", "device", "fate")
	lostDesc = newDesc("event_records_lost_total",
		"Total number of perf events that the kernel reported lost; event_fates_total also counts them, as ring_full.")
	malformedDesc = newDesc("event_records_malformed_total", "Total number of perf events that could not be decoded.")
)

var fateLabels = labelsOf("fate", bpf.NumFates)

type eventsSource interface {
	Counters() []bpf.Counters
	EventCounts() bpf.EventCounts
}

type eventsCollector struct {
	source eventsSource
}

func newEventsCollector(source eventsSource) eventsCollector {
	return eventsCollector{source}
}

// Update sends the fates of perf events, the received events, and what the calibration decided on
// flagged packets.
func (c eventsCollector) Update(ch chan<- prometheus.Metric) error {
	counters, events := c.source.Counters(), c.source.EventCounts()
	for i := range counters {
		device := deviceLabel(counters[i].Device)
		ch <- counter(eventsDesc, float64(events.Received[counters[i].Device]), device)
		for fate := range bpf.NumFates {
			ch <- counter(fatesDesc, float64(counters[i].Fates[fate]), device, fateLabels[fate])
		}
		sendCalibration(ch, device, &counters[i].Decisions)
	}
	ch <- counter(lostDesc, float64(events.Lost))
	ch <- counter(malformedDesc, float64(events.Malformed))
	return nil
}
