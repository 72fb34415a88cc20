// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package fleet

import (
	"math"
	"slices"
	"testing"

	"gonum.org/v1/gonum/stat/distuv"
)

// tail returns P(T ≥ t) for Student's distribution.
func tail(t, degrees float64) float64 {
	return distuv.StudentsT{Sigma: 1, Nu: degrees}.CDF(-t)
}

// upper returns z with P(Z ≥ z) = p.
func upper(p float64) float64 { return -distuv.UnitNormal.Quantile(p) }

func TestNormalOfT(t *testing.T) {
	worst := 0.0
	for _, degrees := range []float64{23, 30, 63, 120, 1498} {
		for x := 0.25; ; x += 0.25 {
			want := upper(tail(x, degrees))
			if want > 8 {
				break
			}
			if off := math.Abs(Normal(x, degrees) - want); off > worst {
				worst = off
			}
			if Normal(-x, degrees) != -Normal(x, degrees) {
				t.Errorf("t = %v has another |z| if it is negative", x)
			}
		}
	}
	t.Logf("at most %v off", worst)
	if worst > 0.02 {
		t.Errorf("z is up to %v off, want at most 0.02", worst)
	}
}

func TestProbabilityOfZ(t *testing.T) {
	var worstP, worstZ float64
	for z := 0.0; z < 35; z += 0.01 {
		exact := math.Log(math.Erfc(z / math.Sqrt2))
		worstP = max(worstP, math.Abs(math.Expm1(logP(z)-exact)))
		worstZ = max(worstZ, math.Abs(zOfLogP(exact)-z))
	}
	t.Logf("p is at most %v off, z %v", worstP, worstZ)
	if worstP > 0.0028 {
		t.Errorf("p is up to %v off, want at most 0.0028", worstP)
	}
	if worstZ > 4.5e-4 {
		t.Errorf("z is up to %v off, want at most 4.5e-4", worstZ)
	}
}

// combined is Combine without approximations.
func combined(z []float64) float64 {
	var total, greatest float64
	for _, z := range z {
		total += z
		if math.Abs(z) > math.Abs(greatest) {
			greatest = z
		}
	}
	ofAll := math.Erfc(math.Abs(total) / math.Sqrt(float64(2*len(z))))
	ofOne := float64(len(z)) * math.Erfc(math.Abs(greatest)/math.Sqrt2)
	direction := total
	if ofOne < ofAll {
		direction = greatest
	}
	return math.Copysign(upper(min(1, 2*min(ofAll, ofOne))/2), direction)
}

func TestCombine(t *testing.T) {
	for _, test := range []struct {
		description string
		z           []float64
		most, least float64
	}{
		{"nothing", []float64{0.1, -0.2, 0.3}, 0, 0},
		{"one device alone", []float64{5}, 5, 4.7},
		{"one of three", []float64{0, 7, 0.5}, 7, 6.7},
		{"one of a hundred, which is faster", append(slices.Repeat([]float64{0.1}, 99), -9), -8.3, -9},
		{"all of a hundred, a little", slices.Repeat([]float64{0.6}, 100), 6, 5.8},
		{"all of a hundred, a little faster", slices.Repeat([]float64{-0.6}, 100), -5.8, -6},
		{"half of them each way", append(slices.Repeat([]float64{1.5}, 50), slices.Repeat([]float64{-1.5}, 50)...), 0.01, -0.01},
		{"an enormous z", []float64{30, 0, 0}, 30, 29.9},
	} {
		got, want := Combine(test.z), combined(test.z)
		if math.Abs(got-want) > 0.002 {
			t.Errorf("%s: z = %v, want %v", test.description, got, want)
		}
		if got > test.most+0.01 || got < test.least-0.01 {
			t.Errorf("%s: z = %v, want %v to %v", test.description, got, test.least, test.most)
		}
	}
}

func TestLeast(t *testing.T) {
	batches := func(n int, deltas float64) (all []Batch) {
		for range n {
			all = append(all, Batch{deltas, 20 * deltas})
		}
		return all
	}
	for _, test := range []struct {
		description string
		now, before []Batch
		want        bool
	}{
		{"enough of all", batches(5, 600), batches(60, 600), true},
		{"2,999 deltas", append(batches(4, 600), Batch{599, 599 * 20}), batches(60, 600), false},
		{"2,999 deltas before", batches(5, 600), append(batches(23, 125), Batch{124, 124 * 20}), false},
		{"24 batches", batches(5, 600), batches(24, 125), true},
		{"23 batches, and empty ones", batches(5, 600), append(batches(23, 600), batches(9, 0)...), false},
		{"no batch", nil, nil, false},
	} {
		if z, _, ok := Test(test.now, test.before); ok != test.want || z != 0 {
			t.Errorf("%s: z = %v, %v, want %v", test.description, z, ok, test.want)
		}
	}
}
