// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package traffic

import (
	"math"
	"math/rand/v2"
)

// Weibull returns deltas with the tail P(Δ > x) = exp(−(x/scale)^shape). The density is infinite
// at 0 for a shape below 1.
func Weibull(scaleNs, shape float64) Kind {
	return func(r *rand.Rand) Source {
		return func() float64 { return scaleNs * math.Pow(r.ExpFloat64(), 1/shape) }
	}
}

// Gamma returns deltas with a gamma distribution. The density is infinite at 0 for a shape
// below 1.
func Gamma(meanNs, shape float64) Kind {
	return func(r *rand.Rand) Source {
		return func() float64 { return meanNs * gamma(r, 1/shape) }
	}
}

// Mixture returns a share of its deltas from one kind of traffic and the others from another.
// Each delta is drawn independently. Two exponential kinds make a hyperexponential one, and two
// constant kinds a bimodal one.
func Mixture(share float64, a, b Kind) Kind {
	return func(r *rand.Rand) Source {
		first, second := a(r), b(r)
		return func() float64 {
			if r.Float64() < share {
				return first()
			}
			return second()
		}
	}
}

// MissedTicks returns packets on the ticks of a timer. The number of ticks without a packet
// between two packets is Poisson with that mean.
func MissedTicks(tickNs, mean float64) Kind {
	return func(r *rand.Rand) Source {
		return func() float64 { return tickNs * float64(1+poisson(r, mean)) }
	}
}

// Polled returns packets that wait for the next tick of a clock, as they do in a sender with a
// coarse timer and in a device that moderates its interrupts. The packets of a tick follow one
// another at that distance.
func Polled(kind Kind, tickNs, packetNs float64) Kind {
	return func(r *rand.Rand) Source {
		return moved(kind(r), func(sent, before float64) float64 {
			return max(math.Ceil(sent/tickNs)*tickNs, before+packetNs)
		})
	}
}

// EveryNth adds a delay to each nth delta.
func EveryNth(kind Kind, n int, delayNs float64) Kind {
	return func(r *rand.Rand) Source {
		source := kind(r)
		i := 0
		return func() float64 {
			i++
			if i%n == 0 {
				return source() + delayNs
			}
			return source()
		}
	}
}

// Rising adds delays to a share of the deltas, drawn independently. From the first packet on the
// delays rise from one length to another, by the same factor with each packet, for that many
// packets.
func Rising(kind Kind, share, fromNs, toNs float64, packets int) Kind {
	return func(r *rand.Rand) Source {
		source := kind(r)
		i := 0
		return func() float64 {
			delta := source()
			if r.Float64() < share {
				delta += fromNs * math.Pow(toNs/fromNs, min(1, float64(i)/float64(packets)))
			}
			i++
			return delta
		}
	}
}
