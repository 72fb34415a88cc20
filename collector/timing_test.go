// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"testing"

	dto "github.com/prometheus/client_model/go"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// observed returns the histogram of deltas and their sums around the first, as the kernel keeps
// them.
func observed(c *bpf.Counters, deltas ...uint64) {
	cuts := timing.Cuts()
	c.Sums.ReferenceNs = deltas[0]
	for _, delta := range deltas {
		c.Packets[bpf.FamilyIPv4][bpf.ProtocolTCP][bpf.OutcomeJudged]++
		c.Histogram[timing.Cell(delta, cuts)]++
		distance := delta - deltas[0]
		if delta < deltas[0] {
			distance = deltas[0] - delta
			c.Sums.BelowNs = c.Sums.BelowNs.Add(bpf.Uint128{Lo: distance})
		} else {
			c.Sums.AboveNs = c.Sums.AboveNs.Add(bpf.Uint128{Lo: distance})
		}
		c.Sums.SquaredNs2 = c.Sums.SquaredNs2.Add(bpf.Uint128{Lo: distance * distance})
		c.Sums.TotalNs = c.Sums.TotalNs.Add(bpf.Uint128{Lo: delta})
	}
}

func TestTiming(t *testing.T) {
	source := &fakeSource{counters: []bpf.Counters{
		counters("eth0", func(c *bpf.Counters) {
			// 2⁻²⁰ s is 953.67 ns: the second delta is just above that bound, the third just
			// below it.
			observed(c, 1000, 954, 953, 0, 2_000_000_000)
		}),
		counters("eth1", func(c *bpf.Counters) {
			c.Packets[bpf.FamilyIPv4][bpf.ProtocolTCP][bpf.OutcomeNewFlow] = 9 // has no delta
		}),
	}}
	expect(t, newTimingCollector(source, timing.NewBuckets()), `
# HELP xdp_audit_delta_deviation_above_seconds_total Total time in seconds by which inter-arrival times exceeded the reference.
# TYPE xdp_audit_delta_deviation_above_seconds_total counter
xdp_audit_delta_deviation_above_seconds_total{device="eth0"} 1.999999
xdp_audit_delta_deviation_above_seconds_total{device="eth1"} 0
# HELP xdp_audit_delta_deviation_below_seconds_total Total time in seconds by which inter-arrival times fell short of the reference.
# TYPE xdp_audit_delta_deviation_below_seconds_total counter
xdp_audit_delta_deviation_below_seconds_total{device="eth0"} 1.093e-06
xdp_audit_delta_deviation_below_seconds_total{device="eth1"} 0
# HELP xdp_audit_delta_deviation_seconds_squared_total Sum of the squared deviations of inter-arrival times from the reference, in seconds squared.
# TYPE xdp_audit_delta_deviation_seconds_squared_total counter
xdp_audit_delta_deviation_seconds_squared_total{device="eth0"} 3.9999960000020045
xdp_audit_delta_deviation_seconds_squared_total{device="eth1"} 0
# HELP xdp_audit_delta_octaves_total Total of log2 of the inter-arrival times in nanoseconds, each taken as the middle of its cell, at most 6.25 % wide.
# TYPE xdp_audit_delta_octaves_total counter
xdp_audit_delta_octaves_total{device="eth0"} 60.63327064535348
xdp_audit_delta_octaves_total{device="eth1"} 0
# HELP xdp_audit_delta_reference_seconds Reference of the deviations in seconds: the first inter-arrival time of the device; 0 before it is measured.
# TYPE xdp_audit_delta_reference_seconds gauge
xdp_audit_delta_reference_seconds{device="eth0"} 1e-06
xdp_audit_delta_reference_seconds{device="eth1"} 0
# HELP xdp_audit_delta_seconds Inter-arrival times of the packets of a flow in seconds.
# TYPE xdp_audit_delta_seconds histogram
xdp_audit_delta_seconds_bucket{device="eth0",le="1.1920928955078125e-07"} 1
xdp_audit_delta_seconds_bucket{device="eth0",le="2.384185791015625e-07"} 1
xdp_audit_delta_seconds_bucket{device="eth0",le="4.76837158203125e-07"} 1
xdp_audit_delta_seconds_bucket{device="eth0",le="9.5367431640625e-07"} 2
xdp_audit_delta_seconds_bucket{device="eth0",le="1.9073486328125e-06"} 4
xdp_audit_delta_seconds_bucket{device="eth0",le="3.814697265625e-06"} 4
xdp_audit_delta_seconds_bucket{device="eth0",le="7.62939453125e-06"} 4
xdp_audit_delta_seconds_bucket{device="eth0",le="1.52587890625e-05"} 4
xdp_audit_delta_seconds_bucket{device="eth0",le="3.0517578125e-05"} 4
xdp_audit_delta_seconds_bucket{device="eth0",le="6.103515625e-05"} 4
xdp_audit_delta_seconds_bucket{device="eth0",le="0.0001220703125"} 4
xdp_audit_delta_seconds_bucket{device="eth0",le="0.000244140625"} 4
xdp_audit_delta_seconds_bucket{device="eth0",le="0.00048828125"} 4
xdp_audit_delta_seconds_bucket{device="eth0",le="0.0009765625"} 4
xdp_audit_delta_seconds_bucket{device="eth0",le="0.001953125"} 4
xdp_audit_delta_seconds_bucket{device="eth0",le="0.00390625"} 4
xdp_audit_delta_seconds_bucket{device="eth0",le="0.0078125"} 4
xdp_audit_delta_seconds_bucket{device="eth0",le="0.015625"} 4
xdp_audit_delta_seconds_bucket{device="eth0",le="0.03125"} 4
xdp_audit_delta_seconds_bucket{device="eth0",le="0.0625"} 4
xdp_audit_delta_seconds_bucket{device="eth0",le="0.125"} 4
xdp_audit_delta_seconds_bucket{device="eth0",le="0.25"} 4
xdp_audit_delta_seconds_bucket{device="eth0",le="0.5"} 4
xdp_audit_delta_seconds_bucket{device="eth0",le="1"} 4
xdp_audit_delta_seconds_bucket{device="eth0",le="2"} 5
xdp_audit_delta_seconds_bucket{device="eth0",le="+Inf"} 5
xdp_audit_delta_seconds_sum{device="eth0"} 2.000002907
xdp_audit_delta_seconds_count{device="eth0"} 5
xdp_audit_delta_seconds_bucket{device="eth1",le="1.1920928955078125e-07"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="2.384185791015625e-07"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="4.76837158203125e-07"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="9.5367431640625e-07"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="1.9073486328125e-06"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="3.814697265625e-06"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="7.62939453125e-06"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="1.52587890625e-05"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="3.0517578125e-05"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="6.103515625e-05"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="0.0001220703125"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="0.000244140625"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="0.00048828125"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="0.0009765625"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="0.001953125"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="0.00390625"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="0.0078125"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="0.015625"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="0.03125"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="0.0625"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="0.125"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="0.25"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="0.5"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="1"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="2"} 0
xdp_audit_delta_seconds_bucket{device="eth1",le="+Inf"} 0
xdp_audit_delta_seconds_sum{device="eth1"} 0
xdp_audit_delta_seconds_count{device="eth1"} 0
# HELP xdp_audit_delta_time_seconds_total Total of the measured inter-arrival times in seconds.
# TYPE xdp_audit_delta_time_seconds_total counter
xdp_audit_delta_time_seconds_total{device="eth0"} 2.000002907
xdp_audit_delta_time_seconds_total{device="eth1"} 0
# HELP xdp_audit_deltas_total Total number of measured inter-arrival times.
# TYPE xdp_audit_deltas_total counter
xdp_audit_deltas_total{device="eth0"} 5
xdp_audit_deltas_total{device="eth1"} 0
`)
}

// TestNativeHistogram decodes the native view as a server does: bucket i ends at 2^(i/8)
// seconds.
func TestNativeHistogram(t *testing.T) {
	tests := []struct {
		description string
		deltas      []uint64
		zeros       uint64
		buckets     map[int]uint64 // count by index
		spans       int
	}{
		{description: "nothing was measured", buckets: map[int]uint64{}},
		{"two packets in one nanosecond", []uint64{0}, 1, map[int]uint64{}, 0},
		{"one nanosecond is in the bucket that ends at 2^-29.875 s", []uint64{1}, 0, map[int]uint64{-239: 1}, 1},
		{"one second ends bucket 0", []uint64{1_000_000_000}, 0, map[int]uint64{0: 1}, 1},
		{"a nanosecond more is in bucket 1, next to it", []uint64{1_000_000_000, 1_000_000_001, 1_000_000_001}, 0, map[int]uint64{0: 1, 1: 2}, 1},
		{"buckets apart are two spans", []uint64{250_000_000, 500_000_000, 500_000_000}, 0, map[int]uint64{-16: 1, -8: 2}, 2},
		{"counts that fall", []uint64{500_000_000, 500_000_000, 500_000_001, 0}, 1, map[int]uint64{-8: 2, -7: 1}, 1},
	}
	for _, test := range tests {
		t.Run(test.description, func(t *testing.T) {
			c := counters("eth0", func(c *bpf.Counters) {
				if len(test.deltas) > 0 {
					observed(c, test.deltas...)
				}
			})
			var m dto.Metric
			if err := newDeltaHistogram(&c, timing.NewBuckets(), deviceLabel("eth0")).Write(&m); err != nil {
				t.Fatal(err)
			}
			h := m.Histogram
			if h.GetSchema() != 3 || h.GetZeroThreshold() <= 0 || h.GetZeroThreshold() >= 1e-9 {
				t.Errorf("schema %d with a zero threshold of %v", h.GetSchema(), h.GetZeroThreshold())
			}
			if h.GetSampleCount() != uint64(len(test.deltas)) {
				t.Errorf("%d samples, want %d", h.GetSampleCount(), len(test.deltas))
			}
			if h.GetZeroCount() != test.zeros {
				t.Errorf("%d zeros, want %d", h.GetZeroCount(), test.zeros)
			}
			if len(h.PositiveSpan) != test.spans {
				t.Errorf("%d spans, want %d", len(h.PositiveSpan), test.spans)
			}
			decoded := map[int]uint64{}
			var index, count, position int
			for _, span := range h.PositiveSpan {
				index += int(span.GetOffset())
				for range span.GetLength() {
					count += int(h.PositiveDelta[position])
					decoded[index] = uint64(count)
					index, position = index+1, position+1
				}
			}
			if position != len(h.PositiveDelta) {
				t.Errorf("the spans hold %d of %d buckets", position, len(h.PositiveDelta))
			}
			if len(decoded) != len(test.buckets) {
				t.Errorf("buckets %v, want %v", decoded, test.buckets)
			}
			for i, n := range test.buckets {
				if decoded[i] != n {
					t.Errorf("buckets %v, want %v", decoded, test.buckets)
				}
			}
		})
	}
}
