// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package covert

import (
	"math"
	"math/cmplx"
	"math/rand/v2"
	"slices"
	"testing"
)

// window returns deltas given by their number.
func window(delta func(i int) float64) []uint32 {
	deltas := make([]uint32, WindowLength)
	for i := range deltas {
		deltas[i] = uint32(math.Round(delta(i)))
	}
	return deltas
}

func TestStatisticsOfSimpleWindows(t *testing.T) {
	inTurn := func(n int, leastNs, distanceNs float64) []uint32 {
		return window(func(i int) float64 { return leastNs + distanceNs*float64(i%n) })
	}
	// Half of the deltas are spread over each end of the histogram. The nearest histogram with a
	// single peak spreads those at one end over the gap as well.
	beyond := func(spread float64) float64 { return 0.5 * math.Log2((1-spread)/spread) }
	for _, test := range []struct {
		name   string
		deltas []uint32
		want   Statistics // information and autocorrelation: at most 0.05 apart
	}{
		{"all the same", inTurn(1, 1e6, 0), Statistics{}},
		{"all 0", inTurn(1, 0, 0), Statistics{}},
		{"all as long as can be", inTurn(1, math.MaxUint32, 0), Statistics{}},
		// Each delta tells its successor, except in cells that both share.
		{"two in turn, 1 ms apart", inTurn(2, 1e6, 1e6), Statistics{Symbols: beyond(0.25), Entropy: 1, Information: 0.85, Autocorrelation: -0.75}},
		{"two in turn, 8 ms apart", inTurn(2, 1e6, 8e6), Statistics{Symbols: beyond(0.03125), Entropy: 1, Information: 0.85, Autocorrelation: -0.75}},
		{"two in turn, closer than symbols", inTurn(2, 1e6, 4e5), Statistics{Entropy: 1, Information: 0.85, Autocorrelation: -0.75}},
		{"two in turn, both too short for symbols", inTurn(2, 1e5, 3e5), Statistics{Entropy: 1, Information: 0.85, Autocorrelation: -0.75}},
		{"three in turn, too short for symbols, and a few longer ones",
			window(func(i int) float64 { return 1e5 + 1e5*float64(i%3) + 1e7*float64(i/1700) }),
			Statistics{Entropy: math.NaN(), Information: math.NaN(), Autocorrelation: math.NaN()}},
		// The shifted cells have a little more than three bits.
		{"rising", window(func(i int) float64 { return 1e6 + float64(i) }), Statistics{Information: 3.05, Autocorrelation: 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := NewMeter().Measure(test.deltas)
			for _, value := range []struct {
				name                 string
				got, want, tolerance float64
			}{
				{"symbols", got.Symbols, test.want.Symbols, 0.01}, {"phase", got.Phase, test.want.Phase, 0},
				{"periods", float64(got.Periods), float64(test.want.Periods), 0}, {"entropy", got.Entropy, test.want.Entropy, 0.01},
				{"information", got.Information, test.want.Information, 0.05},
				{"autocorrelation", got.Autocorrelation, test.want.Autocorrelation, 0.05},
			} {
				if !math.IsNaN(value.want) && math.Abs(value.got-value.want) > value.tolerance {
					t.Errorf("%s: got %v, want %v", value.name, value.got, value.want)
				}
			}
		})
	}
}

// Frequent deltas may be a little more or less frequent than an eighth. The information changes
// by little.
func TestInformationDoesNotJump(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	last := 0.
	for share := 0.10; share < 0.16; share += 0.005 {
		left := 0
		deltas := window(func(int) float64 { // runs of 10
			if left--; left > 0 || r.Float64() < share/(1-share)/10 {
				if left <= 0 {
					left = 10
				}
				return 160e6
			}
			return 20e6 + 1e6*r.ExpFloat64()
		})
		information := NewMeter().Measure(deltas).Information
		if last > 0 && math.Abs(information-last) > 0.15 {
			t.Errorf("a share of %.3f in runs: the information is %.2f after %.2f", share, information, last)
		}
		last = information
	}
}

// The spectrum of the fine histogram equals the Rayleigh scores of the deltas by their
// definition, each divided by what the scores around it let expect, for deltas within the
// histogram.
func TestPhaseIsTheWhitenedRayleighScore(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, period := range []float64{0, 1e7} {
		deltas := window(func(int) float64 {
			delta := 1e8 * (1 + r.Float64())
			if period > 0 {
				delta = math.Round(delta/period)*period + 5e5*r.NormFloat64()
			}
			return delta
		})
		m := NewMeter()
		got := m.Measure(deltas)
		spread := octile(m.sorted, 6) - octile(m.sorted, 2)
		var scores []float64
		for k := 0.; k <= 200; k++ { // times the width of the histogram, five interquartile ranges
			frequency, sum := k/(5*spread), 0i
			for _, delta := range deltas {
				sum += cmplx.Exp(complex(0, 2*math.Pi*frequency*float64(delta)))
			}
			scores = append(scores, real(sum*cmplx.Conj(sum))/WindowLength)
		}
		want, periods := 0., 0
		for k := 20; 5*spread/float64(k) >= LeastPeriod; k++ {
			near := slices.Sorted(slices.Values(scores[max(1, k-24) : k+25]))
			want = max(want, scores[k]/max(1, near[len(near)/2]/math.Ln2))
			periods++
		}
		if math.Abs(got.Phase/want-1) > 0.08 || got.Periods != periods {
			t.Errorf("period %v: got %v of %d periods, want %v of %d", period, got.Phase, got.Periods, want, periods)
		}
	}
}

// Half of the deltas are acknowledgements, a round trip after the others, which have a phase.
func TestFrequentDeltaDoesNotHideThePhase(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	deltas := window(func(i int) float64 {
		if i%2 == 0 {
			return 40e6 + 1e6*r.NormFloat64()
		}
		return 10e6*math.Round(30+10*r.NormFloat64()) + 1e6*r.NormFloat64()
	})
	if got := NewMeter().Measure(deltas); got.Phase < 100 {
		t.Errorf("the phase is %v of %d periods", got.Phase, got.Periods)
	}
}

// The nearest histogram with a single peak, against all partitions into pools of equal cells.
func TestBeyondOnePeak(t *testing.T) {
	for _, test := range []struct {
		p    []float64
		want float64
	}{
		{[]float64{0.25, 0.25, 0.25, 0.25}, 0},
		{[]float64{0.1, 0.2, 0.4, 0.3}, 0},
		{[]float64{0.4, 0.3, 0.2, 0.1}, 0},
		{[]float64{0.5, 0, 0.5}, 0.5},                        // against 0.5, 0.25, 0.25
		{[]float64{0.5, 0, 0, 0, 0.5}, 1},                    // against 0.5 and four times 0.125
		{[]float64{0, 0.5, 0, 0.5, 0}, 0.5},                  // against 0, 0.5, 0.25, 0.25, 0
		{[]float64{0.3, 0.1, 0.6}, 0.3*math.Log2(1.5) - 0.1}, // against 0.2, 0.2, 0.6
	} {
		if got := beyondOnePeak(test.p); math.Abs(got-test.want) > 1e-12 {
			t.Errorf("%v: got %v bits, want %v", test.p, got, test.want)
		}
	}
}

// A window does not change the statistics of the next one.
func TestMeterIsReusable(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	m := NewMeter()
	for i := range 10 {
		deltas := window(func(int) float64 { return 1e6 * r.ExpFloat64() * float64(1+i%3) })
		if got, want := m.Measure(deltas), NewMeter().Measure(deltas); got != want {
			t.Fatalf("window %d: got %+v, want %+v", i, got, want)
		}
	}
}

func BenchmarkMeasure(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	deltas := window(func(int) float64 { return 1e6 * r.ExpFloat64() })
	m := NewMeter()
	b.ReportAllocs()
	for b.Loop() {
		m.Measure(deltas)
	}
}
