// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package traffic

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/stat"
	"gonum.org/v1/gonum/stat/distuv"
)

func TestTwoSymbols(t *testing.T) {
	ones := 0
	for i, delta := range take(TwoSymbols(1e6, 2e6, 0.01), "two symbols") {
		symbol := 1e6
		if delta > 1.5e6 {
			symbol = 2e6
			ones++
		}
		if math.Abs(delta/symbol-1) > 0.06 {
			t.Fatalf("packet %d: delta %v is not a symbol", i, delta)
		}
	}
	if share := float64(ones) / packets; math.Abs(share-0.5) > 0.005 {
		t.Errorf("a share of %.4f ones, want 0.5", share)
	}
}

// Half of the deltas are one interval, a quarter are two, and so on.
func TestTicks(t *testing.T) {
	counts := map[float64]int{}
	for i, delta := range take(Ticks(1e6, 1e3), "ticks") {
		intervals := math.Round(delta / 1e6)
		if math.Abs(delta-intervals*1e6) > 6e3 {
			t.Fatalf("packet %d: delta %v is not of whole intervals", i, delta)
		}
		counts[intervals]++
	}
	for intervals, want := range map[float64]float64{0: 0, 1: 0.5, 2: 0.25, 3: 0.125} {
		if got := float64(counts[intervals]) / packets; math.Abs(got-want) > 0.005 {
			t.Errorf("a share of %.4f of %v intervals, want %v", got, intervals, want)
		}
	}
}

// Both channels have the distribution of their cover and little of its correlation.
func TestChannelsThatLookLikeTheirCover(t *testing.T) {
	cover := LogAR1(1e8, 0.6, 0.9)
	cdf := distuv.LogNormal{Mu: math.Log(1e8), Sigma: 0.6}.CDF
	for name, test := range map[string]struct {
		kind        Kind
		correlation float64 // of neighbours, at most
	}{
		// Neighbours in a half were recorded close to each other.
		"replayed cover": {ReplayedCover(cover, packets), 0.4},
		"model-based":    {ModelBased(cover, packets), 0.01},
	} {
		t.Run(name, func(t *testing.T) {
			deltas := take(test.kind, name)
			if got := distance(deltas, cdf); got > 0.03 {
				t.Errorf("distance %.4f from the distribution of the cover", got)
			}
			for i := range deltas {
				deltas[i] = math.Log(deltas[i])
			}
			if got := stat.Correlation(deltas[1:], deltas[:packets-1], nil); got > test.correlation {
				t.Errorf("correlation %.3f, want at most %v", got, test.correlation)
			}
		})
	}
}

// The channel replays the recorded deltas, all about equally often.
func TestReplayedCoverRepeats(t *testing.T) {
	const recorded = 1000
	times := map[float64]int{}
	for _, delta := range take(ReplayedCover(Exponential(1e6), recorded), "repeat") {
		times[delta]++
	}
	if len(times) != recorded {
		t.Errorf("%d different deltas, want %d", len(times), recorded)
	}
	for delta, n := range times {
		if math.Abs(float64(n)-packets/recorded) > 4 {
			t.Fatalf("delta %v was sent %d times, want about %d", delta, n, packets/recorded)
		}
	}
}

// Packets are delayed by less than a period, until their delta has one of two phases.
func TestPhase(t *testing.T) {
	const period = 2e7
	var natural []float64
	cover := func(r *rand.Rand) Source {
		source := Lognormal(1e8, 0.6)(r)
		return func() float64 {
			natural = append(natural, source())
			return natural[len(natural)-1]
		}
	}
	ones := 0
	for i, delta := range take(Phase(cover, period, 0), "phase") {
		halves := delta / (period / 2)
		if math.Abs(halves-math.Round(halves)) > 1e-6 {
			t.Fatalf("packet %d: delta %v has no phase of 0 or one half", i, delta)
		}
		if held := delta - natural[i]; held < -1e-6 || held >= period {
			t.Fatalf("packet %d: a delta of %v became %v", i, natural[i], delta)
		}
		ones += int(math.Round(halves)) & 1
	}
	if share := float64(ones) / packets; math.Abs(share-0.5) > 0.005 {
		t.Errorf("a share of %.4f ones, want 0.5", share)
	}
}

// The symbols have the bits of the text, the highest first, from the beginning of a letter on.
func TestMessage(t *testing.T) {
	for bits, want := range map[int][]float64{ // of the letters A, 0x41, and z, 0x7a
		1: {0, 1, 0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 0, 1, 0},
		2: {1, 0, 0, 1, 1, 3, 2, 2},
		4: {4, 1, 7, 10},
	} {
		deltas := take(Message("Az", bits, 1e6, 2e6, 0), "message")
		start := 0
		if !slices.Equal(deltas[:8/bits], scaled(want[:8/bits])) {
			start = 8 / bits // the message begins with the other letter
		}
		for i, delta := range deltas {
			if symbol := want[(start+i)%len(want)]; delta != 1e6+2e6*symbol {
				t.Fatalf("%d bits, packet %d: a delta of %v, want the symbol %v", bits, i, delta, symbol)
			}
		}
	}
}

func scaled(symbols []float64) []float64 {
	deltas := make([]float64, len(symbols))
	for i, symbol := range symbols {
		deltas[i] = 1e6 + 2e6*symbol
	}
	return deltas
}
