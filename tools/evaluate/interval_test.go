// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"math"
	"testing"

	"gonum.org/v1/gonum/stat/distuv"

	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

// The expected values are from binom.test of R.
func TestIntervalOfKnownShares(t *testing.T) {
	for _, test := range []struct {
		hits, trials uint64
		low, high    float64
	}{
		{0, 10, 0, 0.3084971},
		{1, 10, 0.002528579, 0.4450161},
		{5, 10, 0.1870860, 0.8129140},
		{10, 10, 0.6915029, 1},
		{0, 0, 0, 1},
	} {
		low, high := share{test.hits, test.trials, 1}.interval(0.95)
		if math.Abs(low-test.low) > 1e-6 || math.Abs(high-test.high) > 1e-6 {
			t.Errorf("%d of %d: got %.7f to %.7f, want %.7f to %.7f", test.hits, test.trials, low, high, test.low, test.high)
		}
	}
}

// The interval is correct in the tails: (1 − high)⁵⁰⁰ is the probability of no hit.
func TestIntervalFarOut(t *testing.T) {
	want := 1 - math.Pow(5e-7, 1.0/500)
	if low, high := (share{0, 500, 1}).interval(1 - 1e-6); low != 0 || math.Abs(high-want) > 1e-6 {
		t.Errorf("got %v to %v, want 0 to %v", low, high, want)
	}
}

// The definition of the interval: at each end, the hits found or more extreme ones have half of
// the remaining probability.
func TestIntervalIsThatOfTheBinomialDistribution(t *testing.T) {
	for _, s := range []share{{263, 3_999_900, 1}, {3, 100, 1}, {99, 100, 1}, {7410, 10_000, 1}} {
		low, high := s.interval(0.99)
		n, k := float64(s.Trials), float64(s.Hits)
		above := 1 - distuv.Binomial{N: n, P: low}.CDF(k-1)
		below := distuv.Binomial{N: n, P: high}.CDF(k)
		for _, p := range []float64{above, below} {
			if math.Abs(p-0.005) > 1e-6 {
				t.Errorf("%d of %d: probabilities %.7f and %.7f at the ends, want 0.005", s.Hits, s.Trials, above, below)
				break
			}
		}
	}
}

// Hits in groups of ten have ten times the variance of single hits, and an interval √10 times
// as wide.
func TestClusteredHits(t *testing.T) {
	const packets, p = 1_000_000, 0.01
	count := func(length int) share {
		r := traffic.Rand(1, "clusters")
		c := counter{packets: packets}
		left := 0
		for i := range packets {
			if left == 0 && r.Float64() < p/float64(length) {
				left = length
			}
			c.add(i+1, left > 0)
			left = max(0, left-1)
		}
		return c.share()
	}
	single, clustered := count(1), count(10)
	if single.Clustering > 1.4 || clustered.Clustering < 7 || clustered.Clustering > 14 {
		t.Errorf("clustering of single hits %.2f, of ten at a time %.2f, want about 1 and 10", single.Clustering, clustered.Clustering)
	}
	width := func(s share) float64 { low, high := s.interval(0.95); return high - low }
	if ratio := width(clustered) / width(share{clustered.Hits, clustered.Trials, 1}); math.Abs(ratio-math.Sqrt(clustered.Clustering)) > 0.05 {
		t.Errorf("interval is %.3f times as wide, want %.3f", ratio, math.Sqrt(clustered.Clustering))
	}
	if single.Trials != packets || single.Hits < 9500 || single.Hits > 10_500 {
		t.Errorf("got %+v, want about %v of %d", single, packets*p, packets)
	}
}

func TestSharesOfNothing(t *testing.T) {
	c := counter{packets: 10}
	if got, want := c.share(), (share{Clustering: 1}); got != want || got.value() != 0 {
		t.Errorf("got %+v with the value %v, want %+v with 0", got, got.value(), want)
	}
	c.add(1, true)
	if got, want := c.share(), (share{1, 1, 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
