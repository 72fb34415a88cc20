// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leak

import (
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/stat"
)

func near(got, want float64) bool { return math.Abs(got-want) <= 1e-9*max(1, math.Abs(want)) }

func TestMoments(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var m moments
	var values []float64
	for range 1000 {
		v := 1e6 + 1000*r.ExpFloat64()
		m.add(v)
		values = append(values, v)
	}
	for moment, got := range map[float64]float64{2: m.m2, 3: m.m3, 4: m.m4} {
		if want := 1000 * stat.Moment(moment, values, nil); math.Abs(got/want-1) > 1e-6 {
			t.Errorf("moment %v: got %v, want %v", moment, got, want)
		}
	}
	if !near(m.mean, stat.Mean(values, nil)) {
		t.Errorf("mean: got %v", m.mean)
	}
}

// The t of the first order is that of the textbook. The t of the second order is that of the first
// order of the squared deviations.
func TestWelch(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var of [2]moments
	var values [2][]float64
	for i := range 5000 {
		c := i % 2
		v := 50 + float64(1+c)*r.NormFloat64()
		of[c].add(v)
		values[c] = append(values[c], v)
	}
	textbook := func(x, y []float64, bessel float64) float64 {
		return (stat.Mean(y, nil) - stat.Mean(x, nil)) / math.Sqrt(stat.Variance(x, nil)/(float64(len(x))-bessel)+stat.Variance(y, nil)/(float64(len(y))-bessel))
	}
	if got, want := welch(1, of[X], of[Y]), textbook(values[X], values[Y], 0); !near(got, want) {
		t.Errorf("first order: got %v, want %v", got, want)
	}
	var squares [2][]float64
	for c := range values {
		mean := stat.Mean(values[c], nil)
		for _, v := range values[c] {
			squares[c] = append(squares[c], (v-mean)*(v-mean))
		}
	}
	if got, want := welch(2, of[X], of[Y]), textbook(squares[X], squares[Y], 0); math.Abs(got/want-1) > 1e-3 {
		t.Errorf("second order: got %v, want %v", got, want)
	}
	var constant moments
	constant.add(1)
	if welch(1, constant, of[Y]) != 0 {
		t.Error("one number has a t")
	}
	constant.add(1)
	if welch(1, constant, constant) != 0 || welch(2, constant, constant) != 0 {
		t.Error("equal numbers have a t")
	}
}

// The values are from wilcox.test of R: x = 1 2 2 3 5 8, y = 2 4 5 6 7.
func TestMannWhitney(t *testing.T) {
	var x, y histogram
	for _, v := range []uint64{1, 2, 2, 3, 5, 8} {
		x.add(v)
	}
	for _, v := range []uint64{2, 4, 5, 6, 7} {
		y.add(v)
	}
	z, probability := mannWhitney(&x, &y)
	// U of y is 20.5 of 30. The variance with ties is 30/12·(12 − (24 + 6)/110).
	if want := (20.5 - 15) / math.Sqrt(2.5*(12-30./110)); !near(z, want) || !near(probability, 20.5/30) {
		t.Errorf("got z = %v, P = %v, want %v and %v", z, probability, want, 20.5/30)
	}
	if z, probability := mannWhitney(&x, &histogram{}); z != 0 || probability != 0.5 {
		t.Errorf("without a class: got %v, %v", z, probability)
	}
}

func TestSpearman(t *testing.T) {
	for _, test := range []struct {
		x, y []float64
		want float64
	}{
		{[]float64{1, 2, 3, 4}, []float64{10, 200, 3000, 40_000}, 1},
		{[]float64{1, 2, 3, 4}, []float64{4, 3, 2, 1}, -1},
		{[]float64{1, 2, 3}, []float64{5, 5, 5}, 0},
		{[]float64{1, 2, 3, 4}, []float64{1, 3, 2, 4}, 0.8},
		{[]float64{1, 2, 3, 4}, []float64{1, 2, 2, 3}, 3 / math.Sqrt(10)}, // ties share a rank
	} {
		if got := spearman(test.x, test.y); !near(got, test.want) {
			t.Errorf("%v, %v: got %v, want %v", test.x, test.y, got, test.want)
		}
	}
}

// Batches are joined when there are too many, and lose no pair.
func TestHistory(t *testing.T) {
	h := newHistory()
	for i := range 100_000 {
		h.add(10, 10+float64(i)/1e5, uint64(i))
		if h.isDue() {
			h.next(evidence{float64(i), float64(i)})
		}
	}
	course := h.course()
	last := course[len(course)-1]
	if len(course) > mostBatches || last.Pairs < 98_000 || last.TimeNs+1 != last.Pairs || !near(last.Log10, float64(last.Pairs-1)/math.Ln10) {
		t.Errorf("%d points, the last is %+v", len(course), last)
	}
	pairs := uint64(0)
	for i, b := range h.batches {
		if b.pairs != h.length {
			t.Errorf("batch %d has %d pairs, want %d", i, b.pairs, h.length)
		}
		pairs += b.pairs
	}
	if pairs != last.Pairs {
		t.Errorf("the batches have %d pairs, want %d", pairs, last.Pairs)
	}
	if _, effect, z := h.drift(); effect != 1 || z < 50 || !h.moves(effect, z) || !h.moves(effect, 0) || !h.moves(0, z) {
		t.Errorf("a growing effect has the correlation %v and the z %v", effect, z)
	}
	if got, want := h.effects[1].n, math.Floor(100_000/32); got != want {
		t.Errorf("there are %v batches of 32 pairs, want %v", got, want)
	}
}
