// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package covert

import (
	"math"
	"math/cmplx"
	"math/rand/v2"
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
	for _, test := range []struct {
		name   string
		deltas []uint32
		want   Statistics
	}{
		{"all the same", window(func(int) float64 { return 1e6 }), Statistics{}},
		{"all 0", window(func(int) float64 { return 0 }), Statistics{}},
		{"all as long as can be", window(func(int) float64 { return math.MaxUint32 }), Statistics{}},
		// 2 of 32 cells are in use. Each delta tells its successor.
		{"two in turn", window(func(i int) float64 { return 1e6 * float64(1+i%2) }),
			Statistics{Symbols: 4, Phase: 2000, Periods: 561, Entropy: 1, Information: 1, Autocorrelation: -1}},
		// The logarithms are uniform over an octave, with nine values between the quartiles. A
		// cell of the bigram holds two values, so a delta determines the next one up to one
		// bit.
		{"sixteen in turn, a sixteenth of an octave apart", window(func(i int) float64 { return math.Exp2(20.01 + float64(i%16)/16) }),
			Statistics{Symbols: 5 - math.Log2(9), Entropy: 4, Information: 2, Phase: math.NaN(), Periods: 561, Autocorrelation: math.NaN()}},
		{"closer than the cells", window(func(i int) float64 { return 1e6 + 15*float64(i%3) }),
			Statistics{Information: math.Log2(3), Autocorrelation: -0.5}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := NewMeter().Measure(test.deltas)
			for _, value := range []struct {
				name      string
				got, want float64
			}{
				{"symbols", got.Symbols, test.want.Symbols}, {"phase", got.Phase, test.want.Phase},
				{"periods", float64(got.Periods), float64(test.want.Periods)}, {"entropy", got.Entropy, test.want.Entropy},
				{"information", got.Information, test.want.Information}, {"autocorrelation", got.Autocorrelation, test.want.Autocorrelation},
			} {
				if !math.IsNaN(value.want) && math.Abs(value.got-value.want) > 0.002*math.Max(1, value.want) {
					t.Errorf("%s: got %v, want %v", value.name, value.got, value.want)
				}
			}
		})
	}
}

// The spectrum of the fine histogram equals the Rayleigh score of the deltas by its definition,
// for deltas within the histogram.
func TestPhaseIsTheRayleighScore(t *testing.T) {
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
		first, third := octile(m.sorted, 2), octile(m.sorted, 6)
		spread := third - first
		want := 0.
		for k := 80.; k <= 640; k++ { // times the width of the histogram, five interquartile ranges
			frequency, sum := k/(5*spread), 0i
			for _, delta := range deltas {
				sum += cmplx.Exp(complex(0, 2*math.Pi*frequency*float64(delta)))
			}
			want = max(want, real(sum*cmplx.Conj(sum))/WindowLength)
		}
		if math.Abs(got.Phase/want-1) > 0.08 {
			t.Errorf("period %v: got %v, want %v", period, got.Phase, want)
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
