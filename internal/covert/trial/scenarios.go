// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package trial

import (
	"fmt"

	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

const (
	microseconds = 1e3
	milliseconds = 1e6
)

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

// Slow returns smooth flows without a message, with deltas that all tests judge.
func Slow() []Flows {
	return []Flows{
		{"Weibull, shape 0.5, mean 100 ms", traffic.Weibull(50*milliseconds, 0.5), nil},
		{"gamma, shape 0.5, mean 100 ms", traffic.Gamma(100*milliseconds, 0.5), nil},
		{"lognormal, σ = 2, median 50 ms", traffic.Lognormal(50*milliseconds, 2), nil},
		{"hyperexponential, 1 ms and 30 ms", hyperexponential(1*milliseconds, 30*milliseconds), nil},
		{"hyperexponential, 10 ms and 300 ms", hyperexponential(10*milliseconds, 300*milliseconds), nil},
		{"exponential, mean 100 ms", traffic.Exponential(100 * milliseconds), nil},
		{"lognormal, σ = 1.5, median 50 ms", traffic.Lognormal(50*milliseconds, 1.5), nil},
		{"Pareto, shape 1.1, from 20 ms", traffic.Pareto(20*milliseconds, 1.1), nil},
		{"bursts of 5, pauses of 100 ms", traffic.OnOff(5, 1*milliseconds, 100*milliseconds), nil},
	}
}

func hyperexponential(shortNs, longNs float64) traffic.Kind {
	return traffic.Mixture(0.5, traffic.Exponential(shortNs), traffic.Exponential(longNs))
}

// Applications returns flows without a message, whose deltas are not smooth.
func Applications() []Flows {
	voip := func(periodNs, silenceNs, noiseNs float64) traffic.Kind {
		return traffic.Late(traffic.VoIP(periodNs, 1200*milliseconds, silenceNs, noiseNs), 0.3*milliseconds)
	}
	ssh := func(roundTripNs float64) traffic.Kind {
		return traffic.SSHKeys(150*milliseconds, 0.6, roundTripNs, roundTripNs/20)
	}
	ticks := func(meanNs, tickNs float64) traffic.Kind {
		return traffic.Polled(traffic.Exponential(meanNs), tickNs, 300)
	}
	plain := traffic.Constant(2*milliseconds, 10e3)
	return []Flows{
		{"VoIP, 20 ms, silences of 0.3 s", voip(20*milliseconds, 300*milliseconds, 0), nil},
		{"VoIP, 20 ms, silences of 1.8 s", voip(20*milliseconds, 1800*milliseconds, 0), nil},
		{"VoIP, 20 ms, noise each 160 ms", voip(20*milliseconds, 1800*milliseconds, 160*milliseconds), nil},
		{"VoIP, 30 ms, noise each 160 ms", voip(30*milliseconds, 1800*milliseconds, 160*milliseconds), nil},
		{"SSH keys and ACKs, round trip 0.3 ms", ssh(0.3 * milliseconds), nil},
		{"SSH keys and ACKs, round trip 5 ms", ssh(5 * milliseconds), nil},
		{"SSH keys and ACKs, round trip 40 ms", ssh(40 * milliseconds), nil},
		{"SSH keys and ACKs, round trip 80 ms", ssh(80 * milliseconds), nil},
		{"ticks of 10 µs, mean 0.1 ms", ticks(100*microseconds, 10*microseconds), nil},
		{"ticks of 10 µs, mean 2 ms", ticks(2*milliseconds, 10*microseconds), nil},
		{"ticks of 50 µs, mean 0.1 ms", ticks(100*microseconds, 50*microseconds), nil},
		{"ticks of 50 µs, mean 2 ms", ticks(2*milliseconds, 50*microseconds), nil},
		{"ticks of 50 µs, mean 20 ms", ticks(20*milliseconds, 50*microseconds), nil},
		{"ticks of 250 µs, mean 2 ms", ticks(2*milliseconds, 250*microseconds), nil},
		{"2 ms, on a busy host", traffic.BusyHost(plain, 2*milliseconds, 1*milliseconds, 3e3), nil},
		{"2 ms, on a busy host, ticks of 50 µs",
			traffic.Polled(traffic.BusyHost(plain, 400*microseconds, 200*microseconds, 3e3), 50*microseconds, 300), nil},
	}
}

// Ambiguous returns flows of applications with few delays in an order that looks random. Nothing
// but knowledge of the application tells them from a channel.
func Ambiguous() []Flows {
	frames := func(intervalNs, lateNs float64) traffic.Kind {
		return traffic.Late(traffic.Frames(intervalNs, 1, 3, 1*milliseconds), lateNs)
	}
	closeFrames := func(intervalNs float64) traffic.Kind {
		return traffic.Late(traffic.Frames(intervalNs, 1, 3, 20e3), 20e3)
	}
	return []Flows{
		{"request/response, 1 to 3 packets each 20 ms, 20 µs apart", closeFrames(20 * milliseconds), nil},
		{"request/response, 1 to 3 packets each 20 ms, 1 ms apart", frames(20*milliseconds, 0.5*milliseconds), nil},
		{"video, 1 to 3 packets, 24 times a second, 20 µs apart", closeFrames(1000. / 24 * milliseconds), nil},
		{"video, 1 to 3 packets, 24 times a second, 1 ms apart", frames(1000./24*milliseconds, 0.5*milliseconds), nil},
		{"timers of 10 ms and 25 ms", traffic.Late(traffic.Timers(10*milliseconds, 25*milliseconds), 0.2*milliseconds), nil},
		{"10 ms or 25 ms at random, jitter 1 %", traffic.TwoSymbols(10*milliseconds, 25*milliseconds, 0.01), nil},
	}
}

// Channel is a channel that a single test detects.
type Channel struct {
	Flows
	By covert.Test
}

// Symbols returns channels with few distinct deltas.
func Symbols() []Channel {
	channels := []Channel{
		{Flows{"two symbols, jitter 1 %", cover(0.6), traffic.TwoSymbols(50*milliseconds, 100*milliseconds, 0.01)}, covert.Symbols},
		{Flows{"two symbols, jitter 10 %", cover(0.6), traffic.TwoSymbols(50*milliseconds, 100*milliseconds, 0.1)}, covert.Symbols},
		{Flows{"two symbols, jitter 5 %, without a past", nil, traffic.TwoSymbols(50*milliseconds, 100*milliseconds, 0.05)}, covert.Symbols},
		{Flows{"a packet or none in 10 ms, jitter 0.2 ms, without a past", nil, traffic.Ticks(10*milliseconds, 200e3)}, covert.Symbols},
		{Flows{"a packet or none in 40 ms, jitter 4 ms, without a past", nil, traffic.Ticks(40*milliseconds, 4*milliseconds)}, covert.Symbols},
		{Flows{"two symbols, 1 ms apart, jitter 0.1 ms, without a past", nil, equidistant(2, 2*milliseconds, 1*milliseconds, 0.1)}, covert.Symbols},
	}
	for _, n := range []int{4, 8} {
		channels = append(channels, Channel{
			Flows{fmt.Sprintf("%d symbols, 10 ms apart, jitter 1.5 ms, without a past", n), nil, equidistant(n, 20*milliseconds, 10*milliseconds, 0.15)},
			covert.Symbols,
		})
	}
	return channels
}

// equidistant returns symbols at equal distances, with normal jitter that is a fraction of the
// distance.
func equidistant(n int, leastNs, distanceNs, jitter float64) traffic.Kind {
	kind := traffic.Constant(leastNs, jitter*distanceNs)
	for i := 1.; i < float64(n); i++ {
		kind = traffic.Mixture(i/(i+1), kind, traffic.Constant(leastNs+i*distanceNs, jitter*distanceNs))
	}
	return kind
}

// text is a message that is not encrypted.
const text = "The package travels along the coast road and turns north at the second bridge. Ask for the man " +
	"with the grey coat; he knows which door is open after nine, and where the keys of the archive are kept. " +
	"Copy the ledger of 1987 first, then the letters. Do not write down any names! If nobody answers the telephone " +
	"by Thursday, go back to the hotel (room 412) and burn what you have. The others wait near the old station, " +
	"about half an hour on foot, until the last train to Vienna has left. They will not wait for a second night. "

// Plain returns channels that send a text without encryption, in 2 to 8 symbols.
func Plain() []Flows {
	var all []Flows
	for bits := 1; bits <= 3; bits++ {
		all = append(all, Flows{fmt.Sprintf("text in %d symbols", 1<<bits), nil,
			traffic.Message(text, bits, 40*milliseconds, 20*milliseconds, 1*milliseconds)})
	}
	return all
}

// Varied is a channel with a parameter.
type Varied struct {
	Flows
	Of        string  // without the parameter
	Parameter float64 // in ms, or a fraction
}

// Jittered returns symbols with more and more jitter, as a fraction of their distance.
func Jittered() []Varied {
	var all []Varied
	for _, n := range []int{2, 4, 8} {
		for _, jitter := range []float64{0.15, 0.175, 0.2, 0.25} {
			of := fmt.Sprintf("%d symbols", n)
			kind := equidistant(n, 20*milliseconds, 10*milliseconds, jitter)
			all = append(all, Varied{Flows{fmt.Sprintf("%s, jitter %v", of, jitter), nil, kind}, of, jitter})
		}
	}
	return all
}

// Disguised returns channels whose deltas are distributed like those of a correlated cover.
func Disguised() []Channel {
	slow := traffic.LogAR1(200*milliseconds, 0.6, 0.9)
	return []Channel{
		{Flows{"replayed cover, ρ = 0.3", cover(0.3), traffic.ReplayedCover(cover(0.3), covert.WindowLength)}, covert.Autocorrelation},
		{Flows{"replayed cover, ρ = 0.9", cover(0.9), traffic.ReplayedCover(cover(0.9), covert.WindowLength)}, covert.Information},
		{Flows{"model-based, ρ = 0.3", cover(0.3), traffic.ModelBased(cover(0.3), covert.WindowLength)}, covert.Autocorrelation},
		{Flows{"model-based, ρ = 0.9", cover(0.9), traffic.ModelBased(cover(0.9), covert.WindowLength)}, covert.Information},
		{Flows{"phase of 20 ms, jitter 0.5 ms, ρ = 0.3", cover(0.3), traffic.Phase(cover(0.3), 20*milliseconds, 500e3)}, covert.Phase},
		{Flows{"phase of 20 ms, jitter 0.5 ms, ρ = 0.9", cover(0.9), traffic.Phase(cover(0.9), 20*milliseconds, 500e3)}, covert.Phase},
		{Flows{"phase of 20 ms, jitter 0.5 ms, without a past", nil, traffic.Phase(cover(0.9), 20*milliseconds, 500e3)}, covert.Phase},
		{Flows{"phase of 20 ms, jitter 2 ms, median 200 ms", slow, traffic.Phase(slow, 20*milliseconds, 2*milliseconds)}, covert.Phase},
	}
}

// JitterBug returns channels in the phase, with windows of 11 ms and more, 1 ms of jitter and
// without a past, in covers with memory or in others.
func JitterBug(hasMemory bool) []Varied {
	covers := []Flows{
		{"exponential, mean 100 ms", traffic.Exponential(100 * milliseconds), nil},
		{"exponential, mean 30 ms", traffic.Exponential(30 * milliseconds), nil},
		{"lognormal, σ = 0.6", cover(0), nil},
		{"lognormal, σ = 2, median 50 ms", traffic.Lognormal(50*milliseconds, 2), nil},
		{"Weibull, shape 0.5, mean 100 ms", traffic.Weibull(50*milliseconds, 0.5), nil},
		{"Pareto, shape 1.1, from 20 ms", traffic.Pareto(20*milliseconds, 1.1), nil},
	}
	if hasMemory {
		covers = []Flows{
			{"ρ = 0.3", cover(0.3), nil},
			{"ρ = 0.9", cover(0.9), nil},
			{"ρ = 0.9, median 50 ms", traffic.LogAR1(50*milliseconds, 0.6, 0.9), nil},
			{"ρ = 0.9, median 200 ms", traffic.LogAR1(200*milliseconds, 0.6, 0.9), nil},
			{"SSH keys and ACKs, round trip 40 ms", traffic.SSHKeys(150*milliseconds, 0.6, 40*milliseconds, 2*milliseconds), nil},
		}
	}
	var all []Varied
	for _, c := range covers {
		for _, window := range []float64{11, 15, 20, 26} {
			kind := traffic.Phase(c.Cover, window*milliseconds, 1*milliseconds)
			all = append(all, Varied{Flows{fmt.Sprintf("phase of %v ms in %s", window, c.Name), nil, kind}, c.Name, window})
		}
	}
	return all
}

// Faint returns channels that the tests barely detect.
func Faint() []Flows {
	slow := traffic.LogAR1(200*milliseconds, 0.6, 0.9)
	return []Flows{
		{"replayed cover, ρ = 0.1", cover(0.1), traffic.ReplayedCover(cover(0.1), covert.WindowLength)},
		{"model-based, ρ = 0.1", cover(0.1), traffic.ModelBased(cover(0.1), covert.WindowLength)},
		{"phase of 20 ms, jitter 3.5 ms, median 200 ms", slow, traffic.Phase(slow, 20*milliseconds, 3.5*milliseconds)},
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
		{"two symbols, 0.4 ms apart, jitter 0.02 ms, without a past", nil, equidistant(2, 2*milliseconds, 400e3, 0.05)},
	}
}
