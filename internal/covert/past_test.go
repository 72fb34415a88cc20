// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package covert

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/stat"
	"gonum.org/v1/gonum/stat/distuv"
)

// randomStatistics returns statistics of similar windows.
func randomStatistics(r *rand.Rand) Statistics {
	return Statistics{Entropy: 5 + 0.1*r.NormFloat64(), Information: math.Pow(1+0.1*r.NormFloat64(), 2), Autocorrelation: math.Tanh(0.1 * r.NormFloat64())}
}

// The scores against the past equal those from the mean and the deviation of all earlier
// windows.
func TestScoresByThePast(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	meter := NewMeter()
	var past Past
	var earlier [byPast][]float64
	for n := range 2*pastWindow - 1 {
		s := randomStatistics(r)
		scores := meter.Judge(&past, s)
		limit := math.Inf(1)
		if n > 1 {
			limit = distuv.StudentsT{Sigma: 1, Nu: float64(n - 1)}.Quantile(0.9995)
		}
		for i, x := range s.normal() {
			got := scores[Entropy+Test(i)]
			if isJudged := n >= PastLength; isJudged == math.IsNaN(got) {
				t.Fatalf("after %d windows %v has the score %v", n, Entropy+Test(i), got)
			} else if isJudged {
				mean, deviation := stat.MeanStdDev(earlier[i], nil)
				want := math.Abs(x-mean) / (deviation * math.Sqrt(1+1/float64(n))) / limit
				if want > 1 {
					t.Fatalf("after %d windows %v has the score %v by chance: choose another seed", n, Entropy+Test(i), want)
				}
				if math.Abs(got-want) > 1e-9 {
					t.Fatalf("after %d windows %v: got %v, want %v", n, Entropy+Test(i), got, want)
				}
			}
			earlier[i] = append(earlier[i], x)
		}
	}
}

func TestScoresByLimits(t *testing.T) {
	for _, test := range []struct {
		name       string
		statistics Statistics
		want       []Test
	}{
		{"neither", Statistics{Symbols: 0.24, Phase: 13.2, Periods: 561}, nil},
		{"symbols", Statistics{Symbols: 0.25, Phase: 13.2, Periods: 561}, []Test{Symbols}},
		{"symbols that depend on each other as bits of a message do", Statistics{Symbols: 2, Information: 0.4}, []Test{Symbols}},
		{"symbols that depend on each other as requests and answers do", Statistics{Symbols: 2, Information: 0.41}, nil},
		{"phase: 561 periods, each by chance with exp(−13.3)", Statistics{Phase: 13.3, Periods: 561}, []Test{Phase}},
		{"a phase that cannot be judged", Statistics{Phase: 100}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := NewMeter().Judge(new(Past), test.statistics).Alarms(); !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

// A change alarms for 64 windows. After that it becomes the past.
func TestLastingChangeBecomesThePast(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	meter := NewMeter()
	var past Past
	for range 5 * pastWindow {
		meter.Judge(&past, randomStatistics(r))
	}
	alarms := 0
	for range 10 * pastWindow {
		changed := randomStatistics(r)
		changed.Entropy++ // ten standard deviations
		if slices.Contains(meter.Judge(&past, changed).Alarms(), Entropy) {
			alarms++
		}
	}
	// One window in 300 alarms by chance. A window without an alarm resets the number of
	// consecutive alarms.
	if alarms < acceptAfter || alarms > acceptAfter+10 {
		t.Errorf("%d windows after the change alarm, want %d, and hardly any of those that are judged by the new past", alarms, acceptAfter)
	}
	if n := past.Windows(); n < pastWindow || n >= 2*pastWindow {
		t.Errorf("the past has %d windows, want %d to %d", n, pastWindow, 2*pastWindow)
	}
}

// The statistics of a perfectly regular flow do not vary, but its scores are finite.
func TestPerfectlyRegularFlow(t *testing.T) {
	meter := NewMeter()
	var past Past
	for range 3 * PastLength {
		meter.Judge(&past, Statistics{})
	}
	scores := meter.Judge(&past, Statistics{Entropy: 0.01, Autocorrelation: 1})
	if scores[Entropy] >= 1 || scores[Entropy] <= 0 {
		t.Errorf("a tiny change has the score %v", scores[Entropy])
	}
	if score := scores[Autocorrelation]; score < 1 || math.IsInf(score, 0) {
		t.Errorf("a correlation of 1 has the score %v", score)
	}
}

func TestNames(t *testing.T) {
	for test := range NumTests {
		if test.String() == "" {
			t.Errorf("test %d has no name", test)
		}
	}
}
