// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package traffic makes up the timing of packets: flows of known distributions, and what may be planted in them. All of it
// is drawn from a generator that the caller seeds, so that the same seed gives the same packets. Nothing here reads a clock.
package traffic

import (
	"hash/fnv"
	"math"
	"math/rand/v2"
)

// Source gives the deltas of a flow, one with each call: the times from packet to packet in nanoseconds, not rounded and
// never negative.
type Source func() float64

// Kind is a kind of traffic: it begins a flow whose random numbers come from r.
type Kind func(r *rand.Rand) Source

// Rand returns the generator of the stream of that name. Streams of different names or seeds have nothing in common.
func Rand(seed uint64, name string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(name))
	return rand.New(rand.NewPCG(seed, h.Sum64())) //nolint:gosec // to be the same again is the purpose
}

// Constant returns traffic at a steady pace: normal deltas.
func Constant(meanNs, deviationNs float64) Kind {
	return func(r *rand.Rand) Source {
		return func() float64 { return max(0, meanNs+deviationNs*r.NormFloat64()) }
	}
}

// Exponential returns packets that come independently of each other: a Poisson process. Standard deviation and mean are the
// same.
func Exponential(meanNs float64) Kind {
	return func(r *rand.Rand) Source {
		return func() float64 { return meanNs * r.ExpFloat64() }
	}
}

// Lognormal returns deltas whose natural logarithm is normal with standard deviation sigma.
func Lognormal(medianNs, sigma float64) Kind {
	return func(r *rand.Rand) Source {
		return func() float64 { return medianNs * math.Exp(sigma*r.NormFloat64()) }
	}
}

// Pareto returns deltas with the tail P(Δ > x) = (leastNs/x)^shape. They have no mean for a shape up to 1, and no variance
// up to 2.
func Pareto(leastNs, shape float64) Kind {
	return func(r *rand.Rand) Source {
		return func() float64 { return leastNs * math.Pow(1-r.Float64(), -1/shape) }
	}
}

// OnOff returns bursts and pauses. After every delta a pause begins with probability 1/length: a burst has that many
// deltas on average. Deltas in a burst and pauses are exponential.
func OnOff(length, deltaNs, pauseNs float64) Kind {
	return func(r *rand.Rand) Source {
		isPause := false
		return func() float64 {
			mean := deltaNs
			if isPause {
				mean = pauseNs
			}
			isPause = !isPause && r.Float64() < 1/length
			return mean * r.ExpFloat64()
		}
	}
}

// AR1 returns normal deltas, of which neighbours have the correlation rho, and those k apart rhoᵏ.
func AR1(meanNs, deviationNs, rho float64) Kind {
	return func(r *rand.Rand) Source {
		z := correlated(r, rho)
		return func() float64 { return max(0, meanNs+deviationNs*z()) }
	}
}

// LogAR1 returns deltas whose natural logarithm is that of AR1, with standard deviation sigma.
func LogAR1(medianNs, sigma, rho float64) Kind {
	return func(r *rand.Rand) Source {
		z := correlated(r, rho)
		return func() float64 { return medianNs * math.Exp(sigma*z()) }
	}
}

// correlated returns a stationary autoregressive process of order 1 with mean 0 and variance 1.
func correlated(r *rand.Rand, rho float64) func() float64 {
	z := r.NormFloat64()
	innovation := math.Sqrt(1 - rho*rho)
	return func() float64 {
		now := z
		z = rho*z + innovation*r.NormFloat64()
		return now
	}
}

// Shift returns traffic that is of one kind for so many packets, and of another from then on.
func Shift(before Kind, packets int, after Kind) Kind {
	return func(r *rand.Rand) Source {
		first, then := before(r), after(r)
		n := 0
		return func() float64 {
			if n < packets {
				n++
				return first()
			}
			return then()
		}
	}
}

// Delay is a delay of some packets.
type Delay struct {
	Share float64 // of the packets, each drawn by itself
	Ns    float64
	// The packets after a late one come when they would have come anyway: the delta of its successor is shorter by as
	// much. Otherwise the whole schedule moves with it, and no other delta changes.
	Alone bool
}

// Planted gives the deltas of a flow, and which of the packets are late on purpose.
type Planted func() (deltaNs float64, isLate bool)

// Plant begins a flow in which some packets are late.
func (d Delay) Plant(kind Kind, r *rand.Rand) Planted {
	source := kind(r)
	early := 0.0 // by which the schedule is behind, and the next packet catches up
	return func() (float64, bool) {
		delta := max(0, source()-early)
		early = 0
		if r.Float64() >= d.Share {
			return delta, false
		}
		if d.Alone {
			early = d.Ns
		}
		return delta + d.Ns, true
	}
}

// Round returns a delta in whole nanoseconds.
func Round(deltaNs float64) uint64 { return uint64(math.Round(deltaNs)) }
