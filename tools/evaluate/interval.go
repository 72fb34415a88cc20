// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"math"

	"gonum.org/v1/gonum/mathext"
	"gonum.org/v1/gonum/stat"
)

// blocks is the number of parts of a flow that are compared to find clusters of hits.
const blocks = 100

// share is a counted share of packets.
type share struct {
	Hits   uint64 `json:"hits"`
	Trials uint64 `json:"trials"`
	// Clustering is the variance of the hits in parts of the flow, divided by the variance of
	// independent packets; at least 1. Packets of a flow share a baseline and may resemble their
	// neighbours.
	Clustering float64 `json:"clustering"`
}

// value returns the share; 0 without trials.
func (s share) value() float64 {
	if s.Trials == 0 {
		return 0
	}
	return float64(s.Hits) / float64(s.Trials)
}

// interval returns the confidence interval of Clopper and Pearson (1934), which has at least
// that confidence for independent packets. For clustered hits, the interval is that of
// correspondingly fewer packets.
func (s share) interval(confidence float64) (low, high float64) {
	tail := (1 - confidence) / 2
	hits, misses := float64(s.Hits)/s.Clustering, float64(s.Trials-s.Hits)/s.Clustering
	low, high = 0, 1
	if hits > 0 {
		low = betaQuantile(hits, misses+1, tail)
	}
	if misses > 0 {
		high = 1 - betaQuantile(misses, hits+1, tail)
	}
	return low, high
}

// betaQuantile returns x such that the beta distribution has the probability p below x. The
// function of the library is wrong in the tails: for a = 1, b = 500 and p = 1 − 5e-7 it gives
// 0.9999986 instead of 0.0286.
func betaQuantile(a, b, p float64) float64 {
	low, high := 0.0, 1.0
	for range 64 {
		middle := (low + high) / 2
		if mathext.RegIncBeta(a, b, middle) < p {
			low = middle
		} else {
			high = middle
		}
	}
	return low
}

// counter counts hits in a flow whose packets are numbered up to packets.
type counter struct {
	packets      int
	hits, trials [blocks]float64
}

func (c *counter) add(number int, isHit bool) {
	block := min(number*blocks/c.packets, blocks-1)
	c.trials[block]++
	if isHit {
		c.hits[block]++
	}
}

// share returns the counts. The clustering is the variance of the hits in a block around the
// number that its trials predict, divided by the variance for independent trials.
func (c *counter) share() share {
	s := share{Clustering: 1}
	for b := range blocks {
		s.Hits += uint64(c.hits[b])
		s.Trials += uint64(c.trials[b])
	}
	p := s.value()
	if p == 0 || p == 1 {
		return s
	}
	var deviations []float64
	for b := range blocks {
		if c.trials[b] > 0 {
			deviations = append(deviations, (c.hits[b]-p*c.trials[b])/math.Sqrt(p*(1-p)*c.trials[b]))
		}
	}
	if len(deviations) > 1 {
		s.Clustering = max(1, stat.Variance(deviations, nil))
	}
	return s
}
