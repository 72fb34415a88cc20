// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package traffic

import (
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/stat"
)

// Covert timing channels: senders that encode a message in the deltas. The bits are random, as
// those of an encrypted message are.

// TwoSymbols is the channel that sends one delta for 0 and another for 1 (Cabuk et al., 2004).
// The network adds a normal error to each delta, whose standard deviation is the fraction
// jitter of the delta.
func TwoSymbols(zeroNs, oneNs, jitter float64) Kind {
	return func(r *rand.Rand) Source {
		return func() float64 {
			symbol := zeroNs
			if bit(r) {
				symbol = oneNs
			}
			return max(0, symbol*(1+jitter*r.NormFloat64()))
		}
	}
}

// Ticks is the channel that sends a packet in an interval for 1 and no packet for 0 (Cabuk et
// al., 2004). The network adds a normal error to each delta.
func Ticks(intervalNs, deviationNs float64) Kind {
	return func(r *rand.Rand) Source {
		return func() float64 {
			intervals := 1.
			for !bit(r) {
				intervals++
			}
			return max(0, intervals*intervalNs+deviationNs*r.NormFloat64())
		}
	}
}

// Message is the channel that sends a text again and again, in symbols of that many bits of its
// bytes, and without encryption: bits of text depend on each other. A symbol is a delta of leastNs
// and its value times distanceNs. The network adds a normal error.
func Message(text string, bits int, leastNs, distanceNs, deviationNs float64) Kind {
	return func(r *rand.Rand) Source {
		sent := r.IntN(len(text)) * 8 // bits
		return func() float64 {
			symbol := 0
			for range bits {
				symbol = symbol<<1 | int(text[sent/8%len(text)]>>(7-sent%8)&1)
				sent++
			}
			return max(0, leastNs+distanceNs*float64(symbol)+deviationNs*r.NormFloat64())
		}
	}
}

// ReplayedCover is the channel that replays deltas of a cover (Cabuk, 2006). It records that
// many deltas. Those up to the median stand for 0, the others for 1. For each bit it sends the
// next delta of that half, in the recorded order.
func ReplayedCover(cover Kind, recorded int) Kind {
	return func(r *rand.Rand) Source {
		deltas := record(cover, recorded, r)
		median := slices.Sorted(slices.Values(deltas))[recorded/2]
		var halves [2][]float64
		for _, delta := range deltas {
			half := 0
			if delta > median {
				half = 1
			}
			halves[half] = append(halves[half], delta)
		}
		var sent [2]int
		return func() float64 {
			half := 0
			if bit(r) {
				half = 1
			}
			delta := halves[half][sent[half]%len(halves[half])]
			sent[half]++
			return delta
		}
	}
}

// ModelBased is the channel that sends deltas from the distribution of a cover (Gianvecchio et
// al., 2008). It fits a lognormal distribution to that many recorded deltas and encodes the
// bits in quantiles. Random bits give independent deltas.
func ModelBased(cover Kind, recorded int) Kind {
	return func(r *rand.Rand) Source {
		logs := record(cover, recorded, r)
		for i, delta := range logs {
			logs[i] = math.Log(max(delta, 1))
		}
		mean, deviation := stat.MeanStdDev(logs, nil)
		return Lognormal(math.Exp(mean), deviation)(r)
	}
}

// Phase is the channel that delays each packet of a cover until the delta is a multiple of the
// period for 0, or half a period more for 1 (JitterBug: Shah et al., 2006). The network adds a
// normal error to each delta.
func Phase(cover Kind, periodNs, deviationNs float64) Kind {
	return func(r *rand.Rand) Source {
		source := cover(r)
		return func() float64 {
			offset := 0.
			if bit(r) {
				offset = 0.5
			}
			periods := math.Ceil(source()/periodNs-offset) + offset
			return max(0, periods*periodNs+deviationNs*r.NormFloat64())
		}
	}
}

func bit(r *rand.Rand) bool { return r.Uint64()&1 == 1 }

func record(cover Kind, n int, r *rand.Rand) []float64 {
	source := cover(r)
	deltas := make([]float64, n)
	for i := range deltas {
		deltas[i] = source()
	}
	return deltas
}
