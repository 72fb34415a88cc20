// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package traffic

import (
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/stat"
)

// Covert timing channels: senders that put a message into the deltas. Bits are drawn from r, as those of an encrypted
// message would be.

// TwoSymbols is the channel that has one delta for 0 and another for 1 (Cabuk et al., 2004). On its way each gets a
// normal error, whose standard deviation is a share of it.
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

// Ticks is the channel in which a packet leaves in an interval for 1, and none for 0 (Cabuk et al., 2004). The error of a
// delta is normal.
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

// ReplayedCover is the channel that repeats deltas of a cover (Cabuk, 2006): so many are recorded, and those up to the
// median stand for 0, the others for 1. For each bit the next of that half is sent, in the order in which they were recorded.
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

// ModelBased is the channel that draws deltas from the distribution of a cover (Gianvecchio et al., 2008): a lognormal is
// fitted to so many recorded ones, and its quantiles carry the bits. Bits that look drawn at random give independent
// deltas.
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

// Phase is the channel that holds a packet of a cover back until its delta is a multiple of the period for 0, or half a
// period more for 1 (JitterBug: Shah et al., 2006). On its way a delta gets a normal error.
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
