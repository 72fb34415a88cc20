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

const packets = 200_000

// take returns the deltas of a flow.
func take(kind Kind, name string) []float64 {
	source := kind(Rand(1, name))
	deltas := make([]float64, packets)
	for i := range deltas {
		deltas[i] = source()
	}
	return deltas
}

// distance returns the Kolmogorov distance between a sample and a distribution: the largest
// difference of their cumulative distribution functions.
func distance(sample []float64, cdf func(float64) float64) float64 {
	sorted := slices.Sorted(slices.Values(sample))
	worst, n := 0.0, float64(len(sorted))
	for i, x := range sorted {
		p := cdf(x)
		worst = max(worst, math.Abs(p-float64(i)/n), math.Abs(p-float64(i+1)/n))
	}
	return worst
}

// Deltas have the distribution they are named after. For independent deltas, Kolmogorov's
// distance exceeds 1.95/√n in one of a thousand samples. Correlated deltas have n·(1−ρ)/(1+ρ)
// in place of n.
func TestDistributions(t *testing.T) {
	for _, test := range []struct {
		name string
		kind Kind
		cdf  func(float64) float64
		rho  float64
	}{
		{"constant", Constant(1e6, 2e4), distuv.Normal{Mu: 1e6, Sigma: 2e4}.CDF, 0},
		{"exponential", Exponential(1e5), distuv.Exponential{Rate: 1e-5}.CDF, 0},
		{"lognormal", Lognormal(1e5, 1.5), distuv.LogNormal{Mu: math.Log(1e5), Sigma: 1.5}.CDF, 0},
		{"Pareto", Pareto(1e4, 1.5), distuv.Pareto{Xm: 1e4, Alpha: 1.5}.CDF, 0},
		{"Weibull", Weibull(1e5, 0.5), distuv.Weibull{K: 0.5, Lambda: 1e5}.CDF, 0},
		{"gamma, shape 0.5", Gamma(1e5, 0.5), distuv.Gamma{Alpha: 0.5, Beta: 0.5 / 1e5}.CDF, 0},
		{"gamma, shape 3", Gamma(1e5, 3), distuv.Gamma{Alpha: 3, Beta: 3 / 1e5}.CDF, 0},
		{"hyperexponential", Mixture(0.5, Exponential(1e6), Exponential(3e7)), func(x float64) float64 {
			return 1 - 0.5*math.Exp(-x/1e6) - 0.5*math.Exp(-x/3e7)
		}, 0},
		{"correlated", AR1(1e6, 2e4, 0.9), distuv.Normal{Mu: 1e6, Sigma: 2e4}.CDF, 0.9},
		{"correlated logarithms", LogAR1(1e5, 0.5, 0.9), distuv.LogNormal{Mu: math.Log(1e5), Sigma: 0.5}.CDF, 0.9},
	} {
		t.Run(test.name, func(t *testing.T) {
			most := 1.95 / math.Sqrt(packets*(1-test.rho)/(1+test.rho))
			if got := distance(take(test.kind, test.name), test.cdf); got > most {
				t.Errorf("distance %.5f from the distribution, want at most %.5f", got, most)
			}
		})
	}
}

func TestDeltasAreNeverNegative(t *testing.T) {
	for name, kind := range map[string]Kind{
		"constant": Constant(10, 100), "correlated": AR1(10, 100, 0.9),
		"planted": func(r *rand.Rand) Source {
			planted := Delay{Share: 0.5, Ns: 100, Alone: true}.Plant(Constant(10, 100), r)
			return func() float64 { delta, _ := planted(); return delta }
		},
	} {
		if least := slices.Min(take(kind, name)); least != 0 {
			t.Errorf("%s: least delta %v, want 0", name, least)
		}
	}
}

// Correlations at lags of 1, 2 and 5 are ρ, ρ² and ρ⁵.
func TestCorrelation(t *testing.T) {
	for _, rho := range []float64{0, 0.5, 0.9} {
		z := take(AR1(1e6, 2e4, rho), "correlation")
		for _, lag := range []int{1, 2, 5} {
			want := math.Pow(rho, float64(lag))
			if got := stat.Correlation(z[lag:], z[:packets-lag], nil); math.Abs(got-want) > 0.01 {
				t.Errorf("ρ = %v: correlation %.3f at a lag of %d, want %.3f", rho, got, lag, want)
			}
		}
	}
}

func TestBurstsAndPauses(t *testing.T) {
	const length, long = 20, 1e6
	// No delta of a burst is longer than 100 ns, and hardly any pause is shorter.
	deltas := take(OnOff(length, 1, long), "bursts")
	bursts, pauses := 0, 0
	for i, delta := range deltas {
		if delta < 100 {
			bursts++
			continue
		}
		pauses++
		if i > 0 && deltas[i-1] >= 100 {
			t.Fatalf("packet %d: a pause after a pause", i)
		}
	}
	if mean := float64(bursts) / float64(pauses); math.Abs(mean-length) > 1 {
		t.Errorf("%.2f deltas in a burst, want %d ± 1", mean, length)
	}
}

func TestShift(t *testing.T) {
	deltas := take(Shift(Constant(1e6, 0), 1000, Constant(3e6, 0)), "shift")
	for i, delta := range deltas {
		want := 1e6
		if i >= 1000 {
			want = 3e6
		}
		if delta != want {
			t.Fatalf("packet %d: delta %v, want %v", i, delta, want)
		}
	}
}

// The delays are the only difference to the same traffic without delays. If only one packet is
// late, the next delta is shorter by the delay.
func TestDelays(t *testing.T) {
	const share, late = 0.01, 2e5
	for _, alone := range []bool{false, true} {
		planted := Delay{Share: share, Ns: late, Alone: alone}.Plant(Constant(1e6, 0), Rand(1, "delays"))
		delays, catchUp := 0, 0.0
		for i := range packets {
			delta, isLate := planted()
			want := 1e6 - catchUp
			catchUp = 0
			if isLate {
				delays++
				want += late
				if alone {
					catchUp = late
				}
			}
			if delta != want {
				t.Fatalf("alone %t, packet %d: delta %v, want %v", alone, i, delta, want)
			}
		}
		if got := float64(delays) / packets; math.Abs(got-share) > 0.001 {
			t.Errorf("alone %t: %.4f of the packets are late, want %v", alone, got, share)
		}
	}
}

// A stream depends on its seed and its name only.
func TestStreams(t *testing.T) {
	first := Rand(1, "a").Uint64()
	if first != Rand(1, "a").Uint64() {
		t.Error("the same stream gives different numbers")
	}
	if first == Rand(2, "a").Uint64() || first == Rand(1, "b").Uint64() {
		t.Error("different streams give the same numbers")
	}
}

func TestRound(t *testing.T) {
	for delta, want := range map[float64]uint64{0: 0, 0.4: 0, 0.5: 1, 1e6 + 0.6: 1_000_001} {
		if got := Round(delta); got != want {
			t.Errorf("%v: got %d, want %d", delta, got, want)
		}
	}
}

// Delays in runs are as frequent as single ones, and each run has its length, or more if another
// one begins at once.
func TestDelaysInRuns(t *testing.T) {
	const share = 0.1
	for _, length := range []int{0, 1, 5, 90} {
		planted := Delay{Share: share, Ns: 1, Run: length}.Plant(Constant(1e6, 0), Rand(1, "runs"))
		late, row := 0, 0
		for i := range packets {
			_, isLate := planted()
			if isLate {
				late, row = late+1, row+1
				continue
			}
			if row%max(1, length) != 0 {
				t.Fatalf("runs of %d: %d packets in a row end at packet %d", length, row, i)
			}
			row = 0
		}
		got, deviation := float64(late)/packets, math.Sqrt(share*float64(max(1, length))/packets)
		if math.Abs(got-share) > 5*deviation {
			t.Errorf("runs of %d: %v of the packets are late, want %v", length, got, share)
		}
	}
}
