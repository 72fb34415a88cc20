// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

var (
	leakFlagsDesc     = newDesc("leak_flags_total", "Total number of packets whose absolute t-score reached the threshold.", "device", "direction")
	restartsDesc      = newDesc("baseline_restarts_total", "Total number of baselines that restarted at the level of a run of flagged packets in one direction.", "device")
	lastScoreDesc     = newDesc("last_tscore", "Absolute t-score of the last flagged packet; 0 before the first flagged packet.", "device")
	lastDeltaDesc     = newDesc("last_delta_seconds", "Inter-arrival time of the last flagged packet in seconds; 0 before the first flagged packet.", "device")
	lastPacketDesc    = newDesc("last_packet_bytes", "Frame length of the last flagged packet in bytes; 0 before the first flagged packet.", "device")
	lastTimestampDesc = newDesc("last_flag_timestamp_seconds",
		"Unix time of the last flagged packet in seconds, with millisecond resolution; 0 before the first flagged packet.", "device")
)

var earlyLabel, lateLabel = label("direction", "early"), label("direction", "late")

type flagsSource interface {
	Counters() []bpf.Counters
}

type flagsCollector struct {
	source   flagsSource
	excess   *Excess
	wallTime func(bpf.Flag) time.Time
}

// newFlagsCollector takes a function that converts the time of a flag, which the kernel reads
// from CLOCK_MONOTONIC. With a nil Excess there are no scores of an excess.
func newFlagsCollector(source flagsSource, excess *Excess, wallTime func(bpf.Flag) time.Time) flagsCollector {
	return flagsCollector{source, excess, wallTime}
}

// Update sends the number of flagged packets by direction, the score of an excess, the number of
// restarted baselines, and the last flagged packet.
func (c flagsCollector) Update(ch chan<- prometheus.Metric) error {
	counters := c.source.Counters()
	for i := range counters {
		device, packets := deviceLabel(counters[i].Device), &counters[i].Packets
		ch <- counter(leakFlagsDesc, float64(packets.Outcome(bpf.OutcomeFlaggedEarly)), device, earlyLabel)
		ch <- counter(leakFlagsDesc, float64(packets.Outcome(bpf.OutcomeFlaggedLate)), device, lateLabel)
		c.excess.send(ch, device)
		ch <- counter(restartsDesc, float64(counters[i].Restarts), device)

		var score, delta, length, timestamp float64
		if flag := counters[i].LastFlag; flag != nil {
			score = math.Abs(flag.Score())
			delta = float64(flag.DeltaNs) / 1e9
			length = float64(flag.LenBytes)
			// A finer resolution would show the noise between the two clocks.
			timestamp = float64(c.wallTime(*flag).UnixMilli()) / 1e3
		}
		ch <- gauge(lastScoreDesc, score, device)
		ch <- gauge(lastDeltaDesc, delta, device)
		ch <- gauge(lastPacketDesc, length, device)
		ch <- gauge(lastTimestampDesc, timestamp, device)
	}
	return nil
}
