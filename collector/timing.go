// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

var (
	deltaDesc  = newDesc("delta_seconds", "Inter-arrival times of the packets of a flow in seconds.", "device")
	deltasDesc = newDesc("deltas_total", "Total number of measured inter-arrival times.", "device")
	timeDesc   = newDesc("delta_time_seconds_total", "Total of the measured inter-arrival times in seconds.", "device")
	aboveDesc  = newDesc("delta_deviation_above_seconds_total",
		"Total time in seconds by which inter-arrival times exceeded the reference.", "device")
	belowDesc = newDesc("delta_deviation_below_seconds_total",
		"Total time in seconds by which inter-arrival times fell short of the reference.", "device")
	squaredDesc = newDesc("delta_deviation_seconds_squared_total",
		"Sum of the squared deviations of inter-arrival times from the reference, in seconds squared.", "device")
	octavesDesc = newDesc("delta_octaves_total",
		"Total of log2 of the inter-arrival times in nanoseconds, each taken as the middle of its cell, at most 6.25 % wide.", "device")
	referenceDesc = newDesc("delta_reference_seconds",
		"Reference of the deviations in seconds: the first inter-arrival time of the device; 0 before it is measured.", "device")
)

type timingSource interface {
	Counters() []bpf.Counters
}

type timingCollector struct {
	source  timingSource
	buckets *timing.Buckets
}

func newTimingCollector(source timingSource, buckets *timing.Buckets) timingCollector {
	return timingCollector{source, buckets}
}

// Update sends the histogram of deltas, their sums around the reference, and the device
// baselines.
func (c timingCollector) Update(ch chan<- prometheus.Metric) error {
	counters := c.source.Counters()
	for i := range counters {
		device, sums := deviceLabel(counters[i].Device), &counters[i].Sums
		ch <- newDeltaHistogram(&counters[i], c.buckets, device)
		ch <- counter(deltasDesc, float64(counters[i].Packets.Deltas()), device)
		ch <- counter(timeDesc, sums.TotalNs.Float64()/1e9, device)
		ch <- counter(aboveDesc, sums.AboveNs.Float64()/1e9, device)
		ch <- counter(belowDesc, sums.BelowNs.Float64()/1e9, device)
		ch <- counter(squaredDesc, sums.SquaredNs2.Float64()/1e18, device)
		ch <- counter(octavesDesc, c.buckets.Octaves(&counters[i].Histogram), device)
		ch <- gauge(referenceDesc, float64(sums.ReferenceNs)/1e9, device)
		sendBaseline(ch, device, counters[i].Baseline)
	}
	return nil
}

func newDeltaHistogram(counters *bpf.Counters, buckets *timing.Buckets, device *dto.LabelPair) prometheus.Metric {
	cumulative, count := buckets.Classic(&counters.Histogram)
	native, zeros := buckets.Native(&counters.Histogram)
	return newHistogram(deltaDesc, count, counters.Sums.TotalNs.Float64()/1e9, buckets.Bounds(), cumulative, native, zeros, device)
}
