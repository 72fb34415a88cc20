// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package trial

import (
	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

const milliseconds = 1e6

// cover is correlated traffic in which channels hide: a median of 100 ms, two thirds of the
// deltas within a factor of 1.8.
func cover(rho float64) traffic.Kind { return traffic.LogAR1(100*milliseconds, 0.6, rho) }

// Legitimate returns flows without a message.
func Legitimate() []Flows {
	return []Flows{
		{"constant, 1 ms ± 20 µs", traffic.Constant(1*milliseconds, 20e3), nil},
		{"exponential, mean 100 µs", traffic.Exponential(100e3), nil},
		{"lognormal, σ = 0.5", traffic.Lognormal(100e3, 0.5), nil},
		{"lognormal, σ = 1.5", traffic.Lognormal(100e3, 1.5), nil},
		{"Pareto, shape 1.5", traffic.Pareto(10e3, 1.5), nil},
		{"Pareto, shape 2.5", traffic.Pareto(10e3, 2.5), nil},
		{"bursts of 20, pauses of 10 ms", traffic.OnOff(20, 10e3, 10*milliseconds), nil},
		{"bursts of 5, pauses of 1 ms", traffic.OnOff(5, 10e3, 1*milliseconds), nil},
		{"correlated logarithms, ρ = 0.3", cover(0.3), nil},
		{"correlated logarithms, ρ = 0.9", cover(0.9), nil},
		{"AR(1), ρ = 0.9, 1 ms ± 20 µs", traffic.AR1(1*milliseconds, 20e3, 0.9), nil},
	}
}

// Channel is a channel that a single test detects.
type Channel struct {
	Flows
	By covert.Test
}

// Symbols returns channels with few distinct deltas.
func Symbols() []Channel {
	return []Channel{
		{Flows{"two symbols, jitter 1 %", cover(0.6), traffic.TwoSymbols(50*milliseconds, 100*milliseconds, 0.01)}, covert.Symbols},
		{Flows{"two symbols, jitter 10 %", cover(0.6), traffic.TwoSymbols(50*milliseconds, 100*milliseconds, 0.1)}, covert.Symbols},
		{Flows{"two symbols, jitter 5 %, without a past", nil, traffic.TwoSymbols(50*milliseconds, 100*milliseconds, 0.05)}, covert.Symbols},
		{Flows{"a packet or none in 10 ms, jitter 0.2 ms, without a past", nil, traffic.Ticks(10*milliseconds, 200e3)}, covert.Symbols},
	}
}

// Disguised returns channels whose deltas are distributed like those of a correlated cover.
func Disguised() []Channel {
	return []Channel{
		{Flows{"replayed cover, ρ = 0.3", cover(0.3), traffic.ReplayedCover(cover(0.3), covert.WindowLength)}, covert.Autocorrelation},
		{Flows{"replayed cover, ρ = 0.9", cover(0.9), traffic.ReplayedCover(cover(0.9), covert.WindowLength)}, covert.Information},
		{Flows{"model-based, ρ = 0.3", cover(0.3), traffic.ModelBased(cover(0.3), covert.WindowLength)}, covert.Autocorrelation},
		{Flows{"model-based, ρ = 0.9", cover(0.9), traffic.ModelBased(cover(0.9), covert.WindowLength)}, covert.Information},
		{Flows{"phase of 20 ms, jitter 0.5 ms, ρ = 0.3", cover(0.3), traffic.Phase(cover(0.3), 20*milliseconds, 500e3)}, covert.Phase},
		{Flows{"phase of 20 ms, jitter 0.5 ms, ρ = 0.9", cover(0.9), traffic.Phase(cover(0.9), 20*milliseconds, 500e3)}, covert.Phase},
		{Flows{"phase of 20 ms, jitter 0.5 ms, without a past", nil, traffic.Phase(cover(0.9), 20*milliseconds, 500e3)}, covert.Phase},
	}
}

// Faint returns channels that the tests barely detect.
func Faint() []Flows {
	slow := traffic.LogAR1(200*milliseconds, 0.6, 0.9)
	return []Flows{
		{"replayed cover, ρ = 0.1", cover(0.1), traffic.ReplayedCover(cover(0.1), covert.WindowLength)},
		{"model-based, ρ = 0.1", cover(0.1), traffic.ModelBased(cover(0.1), covert.WindowLength)},
		{"phase of 20 ms, jitter 2 ms, median 200 ms", slow, traffic.Phase(slow, 20*milliseconds, 2*milliseconds)},
		{"phase of 20 ms, jitter 4 ms, median 200 ms", slow, traffic.Phase(slow, 20*milliseconds, 4*milliseconds)},
	}
}

// Unseen returns channels that the tests do not detect.
func Unseen() []Flows {
	independent := traffic.Lognormal(100*milliseconds, 0.6)
	return []Flows{
		{"replayed cover, ρ = 0", independent, traffic.ReplayedCover(independent, covert.WindowLength)},
		{"model-based, ρ = 0", independent, traffic.ModelBased(independent, covert.WindowLength)},
		{"model-based, without a past", nil, traffic.ModelBased(cover(0.9), covert.WindowLength)},
		{"two symbols, a factor of 1.2 apart, jitter 10 %, without a past", nil, traffic.TwoSymbols(50*milliseconds, 60*milliseconds, 0.1)},
	}
}
