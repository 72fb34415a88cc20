// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package traffic generates the timing of packets: flows of known distributions, and delays or
// covert channels in them. The caller seeds the random numbers: the same seed gives the same
// packets. No function reads a clock.
package traffic

import (
	"hash/fnv"
	"math"
	"math/rand/v2"
)

// Source returns the next delta of a flow: the time to the next packet in nanoseconds, not
// rounded and never negative.
type Source func() float64

// Kind is a kind of traffic. It starts a flow that takes its random numbers from r.
type Kind func(r *rand.Rand) Source

// Rand returns the random number generator of the stream with that name. Streams of different
// names or seeds are independent.
func Rand(seed uint64, name string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(name))
	return rand.New(rand.NewPCG(seed, h.Sum64())) //nolint:gosec // reproducible on purpose
}

// Constant returns traffic at a steady pace: normally distributed deltas.
func Constant(meanNs, deviationNs float64) Kind {
	return func(r *rand.Rand) Source {
		return func() float64 { return max(0, meanNs+deviationNs*r.NormFloat64()) }
	}
}

// Exponential returns packets that arrive independently: a Poisson process. The standard
// deviation of the deltas equals their mean.
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

// Pareto returns deltas with the tail P(Δ > x) = (leastNs/x)^shape. The mean is infinite for a
// shape of up to 1, the variance for a shape of up to 2.
func Pareto(leastNs, shape float64) Kind {
	return func(r *rand.Rand) Source {
		return func() float64 { return leastNs * math.Pow(1-r.Float64(), -1/shape) }
	}
}

// OnOff returns bursts and pauses. Each delta is followed by a pause with probability 1/length,
// so a burst has length deltas on average. Pauses and the deltas of a burst are exponential.
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

// AR1 returns normal deltas from an autoregressive process of order 1: deltas that are k
// packets apart have the correlation rhoᵏ.
func AR1(meanNs, deviationNs, rho float64) Kind {
	return func(r *rand.Rand) Source {
		z := correlated(r, rho)
		return func() float64 { return max(0, meanNs+deviationNs*z()) }
	}
}

// LogAR1 returns deltas whose natural logarithm comes from the process of AR1, with standard
// deviation sigma.
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

// Shift returns traffic of one kind for that many packets, then of another kind.
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

// Delay describes delays that are planted in a flow.
type Delay struct {
	Share float64 // fraction of delayed packets
	Ns    float64 // length of the delay
	Run   int     // delayed packets in a row, 0 for 1; runs begin independently of each other
	// Alone keeps the schedule of the packets after a late one: the next delta is shorter by Ns.
	// Otherwise the whole schedule moves, and no other delta changes.
	Alone bool
}

// Planted returns the next delta of a flow in nanoseconds, and whether the packet is delayed on
// purpose.
type Planted func() (deltaNs float64, isLate bool)

// Plant starts a flow in which some packets are delayed.
func (d Delay) Plant(kind Kind, r *rand.Rand) Planted {
	source := kind(r)
	early := 0.0 // ns that the next delta is shortened by
	length := max(1, d.Run)
	// A run begins with this probability after a packet in time.
	begins := d.Share / (float64(length)*(1-d.Share) + d.Share)
	left := 0 // delayed packets of the run that are still to come
	return func() (float64, bool) {
		delta := max(0, source()-early)
		early = 0
		switch {
		case left > 0:
			left--
		case r.Float64() >= begins:
			return delta, false
		default:
			left = length - 1
		}
		if d.Alone {
			early = d.Ns
		}
		return delta + d.Ns, true
	}
}

// Round returns a delta in whole nanoseconds.
func Round(deltaNs float64) uint64 { return uint64(math.Round(deltaNs)) }
