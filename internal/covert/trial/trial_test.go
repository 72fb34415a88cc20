// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package trial

import (
	"math"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

const (
	seed         = 1
	mostAlarms   = 0.02 // share of the windows of legitimate traffic
	legitimate   = 1000 // windows
	ofAChannel   = 500
	confidence   = 0.95
	milliseconds = 1e6
)

// cover is correlated traffic such as channels hide in: a median of 100 ms, two in three deltas within a factor of 1.8.
func cover(rho float64) traffic.Kind { return traffic.LogAR1(100*milliseconds, 0.6, rho) }

// run is Flows.Run in parallel with others.
func run(t *testing.T, flows Flows, windows int, check func(Result)) {
	t.Helper()
	t.Run(flows.Name, func(t *testing.T) {
		t.Parallel()
		result := flows.Run(windows, seed)
		t.Logf("%s: %v of %d windows alarm: %v", flows.Name, result.Combined, result.Combined.Windows, result.ByTest)
		check(result)
	})
}

func TestLegitimateTrafficHardlyAlarms(t *testing.T) {
	for _, flows := range []Flows{
		{"constant", traffic.Constant(1*milliseconds, 20e3), nil},
		{"exponential", traffic.Exponential(100e3), nil},
		{"lognormal, σ 0.5", traffic.Lognormal(100e3, 0.5), nil},
		{"lognormal, σ 1.5", traffic.Lognormal(100e3, 1.5), nil},
		{"Pareto, shape 1.5", traffic.Pareto(10e3, 1.5), nil},
		{"Pareto, shape 2.5", traffic.Pareto(10e3, 2.5), nil},
		{"bursts of 20", traffic.OnOff(20, 10e3, 10*milliseconds), nil},
		{"bursts of 5", traffic.OnOff(5, 10e3, 1*milliseconds), nil},
		{"correlated logarithms, ρ 0.3", cover(0.3), nil},
		{"correlated logarithms, ρ 0.9", cover(0.9), nil},
		{"correlated, ρ 0.9", traffic.AR1(1*milliseconds, 20e3, 0.9), nil},
	} {
		run(t, flows, legitimate, func(r Result) {
			if _, high := r.Combined.Interval(confidence); r.Combined.Share() > mostAlarms || high > 2*mostAlarms {
				t.Errorf("%s: %v of the windows alarm, want at most %v", flows.Name, r.Combined, mostAlarms)
			}
		})
	}
}

func TestChannelsAlarm(t *testing.T) {
	for _, test := range []struct {
		flows Flows
		want  float64 // share of the windows that alarm, at least
		by    covert.Test
	}{
		{Flows{"two symbols, 1 % jitter", cover(0.6), traffic.TwoSymbols(50*milliseconds, 100*milliseconds, 0.01)}, 0.99, covert.Symbols},
		{Flows{"two symbols, 10 % jitter", cover(0.6), traffic.TwoSymbols(50*milliseconds, 100*milliseconds, 0.1)}, 0.99, covert.Symbols},
		{Flows{"two symbols, without a past", nil, traffic.TwoSymbols(50*milliseconds, 100*milliseconds, 0.05)}, 0.99, covert.Symbols},
		{Flows{"ticks, without a past", nil, traffic.Ticks(10*milliseconds, 200e3)}, 0.99, covert.Symbols},
		{Flows{"replayed cover, ρ 0.3", cover(0.3), traffic.ReplayedCover(cover(0.3), covert.WindowLength)}, 0.9, covert.Autocorrelation},
		{Flows{"replayed cover, ρ 0.9", cover(0.9), traffic.ReplayedCover(cover(0.9), covert.WindowLength)}, 0.9, covert.Information},
		{Flows{"model-based, ρ 0.3", cover(0.3), traffic.ModelBased(cover(0.3), covert.WindowLength)}, 0.9, covert.Autocorrelation},
		{Flows{"model-based, ρ 0.9", cover(0.9), traffic.ModelBased(cover(0.9), covert.WindowLength)}, 0.9, covert.Information},
		{Flows{"phase of 20 ms, ρ 0.3", cover(0.3), traffic.Phase(cover(0.3), 20*milliseconds, 500e3)}, 0.9, covert.Phase},
		{Flows{"phase of 20 ms, ρ 0.9", cover(0.9), traffic.Phase(cover(0.9), 20*milliseconds, 500e3)}, 0.9, covert.Phase},
		{Flows{"phase of 20 ms, without a past", nil, traffic.Phase(cover(0.9), 20*milliseconds, 500e3)}, 0.9, covert.Phase},
	} {
		run(t, test.flows, ofAChannel, func(r Result) {
			if r.Combined.Share() < test.want {
				t.Errorf("%s: %v of the windows alarm, want at least %v", test.flows.Name, r.Combined, test.want)
			}
			if by := r.ByTest[test.by]; by.Share() < 0.9 {
				t.Errorf("%s: by %v %v of the windows alarm, want at least 0.9", test.flows.Name, test.by, by)
			}
		})
	}
}

// Channels at the edge of what the tests see.
func TestChannelsThatAlarmAtTimes(t *testing.T) {
	slow := traffic.LogAR1(200*milliseconds, 0.6, 0.9)
	for _, test := range []struct {
		flows       Flows
		least, most float64 // share of the windows that alarm
	}{
		{Flows{"replayed weak", cover(0.1), traffic.ReplayedCover(cover(0.1), covert.WindowLength)}, 0.4, 0.85},
		{Flows{"model weak", cover(0.1), traffic.ModelBased(cover(0.1), covert.WindowLength)}, 0.4, 0.85},
		{Flows{"phase", slow, traffic.Phase(slow, 20*milliseconds, 2*milliseconds)}, 0.6, 0.95},
		{Flows{"phase, jitter 4 ms", slow, traffic.Phase(slow, 20*milliseconds, 4*milliseconds)}, 0, 0.1},
	} {
		run(t, test.flows, ofAChannel, func(r Result) {
			if share := r.Combined.Share(); share < test.least || share > test.most {
				t.Errorf("%s: %v of the windows alarm, want %v to %v", test.flows.Name, r.Combined, test.least, test.most)
			}
		})
	}
}

// What the tests cannot see, as docs/statistics.md says.
func TestBlindness(t *testing.T) {
	independent := traffic.Lognormal(100*milliseconds, 0.6)
	for _, flows := range []Flows{
		{"replayed cover without correlation", independent, traffic.ReplayedCover(independent, covert.WindowLength)},
		{"model-based, of a cover without correlation", independent, traffic.ModelBased(independent, covert.WindowLength)},
		{"model-based, without a past", nil, traffic.ModelBased(cover(0.9), covert.WindowLength)},
		{"two symbols as near as their jitter, without a past", nil, traffic.TwoSymbols(50*milliseconds, 60*milliseconds, 0.1)},
	} {
		run(t, flows, ofAChannel, func(r Result) {
			if r.Combined.Share() > 0.1 {
				t.Errorf("%s: %v of the windows alarm: it is not as blind as it is said to be", flows.Name, r.Combined)
			}
		})
	}
}

func TestInterval(t *testing.T) {
	for _, test := range []struct {
		rate      Rate
		low, high float64
	}{
		// 1 − 0.025^(1/n), and the reverse.
		{Rate{0, 10}, 0, 1 - math.Pow(0.025, 0.1)},
		{Rate{10, 10}, math.Pow(0.025, 0.1), 1},
		// Clopper and Pearson's example of 1934, as R's binom.test gives it.
		{Rate{5, 10}, 0.1870860, 0.8129140},
	} {
		low, high := test.rate.Interval(0.95)
		if math.Abs(low-test.low) > 1e-6 || math.Abs(high-test.high) > 1e-6 {
			t.Errorf("%+v: got %v to %v, want %v to %v", test.rate, low, high, test.low, test.high)
		}
	}
}

// The same seed gives the same result, and another does not.
func TestRunIsReproducible(t *testing.T) {
	flows := Flows{Name: "weak", Cover: cover(0.1), Then: traffic.ModelBased(cover(0.1), covert.WindowLength)}
	first := flows.Run(100, 1)
	if second := flows.Run(100, 1); first != second {
		t.Errorf("got %v, then %v", first, second)
	}
	if other := flows.Run(100, 2); first == other {
		t.Error("another seed gives the same")
	}
}
