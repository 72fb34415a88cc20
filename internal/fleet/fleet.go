// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package fleet compares devices with their own past, and combines the results of many devices.
// It is the model of deploy/rules/xdp_audit_recording.yml, and uses the same approximations.
package fleet

import "math"

const (
	// LeastDeltas is the least number of deltas in each window.
	LeastDeltas = 3000
	// LeastBatches is the least number of batches in the window of the past.
	LeastBatches = 24
	// leastVariance is the variance of a delta in a cell of 1/16 octave, in octaves². Deltas within
	// one cell have no other.
	leastVariance = 1.0 / 16 / 16 / 12
)

// Batch is the deltas of a device in one minute.
type Batch struct {
	Deltas  float64
	Octaves float64 // sum of log2 of the deltas in nanoseconds
}

// sums are the sums of a window.
type sums struct {
	batches, deltas, mean, squares float64 // squares: Σ n·(mean of the batch − mean)²
}

func sum(batches []Batch) (s sums) {
	for _, b := range batches {
		if b.Deltas > 0 {
			s.batches, s.deltas, s.mean = s.batches+1, s.deltas+b.Deltas, s.mean+b.Octaves
		}
	}
	s.mean /= s.deltas
	for _, b := range batches {
		if b.Deltas > 0 {
			distance := b.Octaves/b.Deltas - s.mean
			s.squares += b.Deltas * distance * distance
		}
	}
	return s
}

// Test returns t and its degrees of freedom for the null hypothesis that the mean of log Δ did
// not change between two windows. The variance is that between batches within the windows, so
// deltas may depend on their neighbours. A batch weighs as much as its deltas. Not ok if a
// window has too few deltas or batches.
func Test(now, before []Batch) (t, degrees float64, ok bool) {
	a, b := sum(now), sum(before)
	if a.deltas < LeastDeltas || b.deltas < LeastDeltas || b.batches < LeastBatches {
		return 0, 0, false
	}
	degrees = a.batches + b.batches - 2
	variance := max((a.squares+b.squares)/degrees, leastVariance)
	return (a.mean - b.mean) / math.Sqrt(variance*(1/a.deltas+1/b.deltas)), degrees, true
}

// Normal returns about the z that is as improbable for the normal distribution as t is for
// Student's (D. L. Wallace, 1959). It is at most 0.02 off for |z| up to 8 and from 23 degrees
// of freedom on.
func Normal(t, degrees float64) float64 {
	z := (8*degrees + 1) / (8*degrees + 3) * math.Sqrt(degrees*math.Log1p(t*t/degrees))
	return math.Copysign(z, t)
}

// Combine returns the z of a fleet from those of its devices, for the null hypothesis that no
// device changed. Its p is twice the smaller of two: of Stouffer's z, which finds what all
// devices have in common, and of the greatest |z| times the number of devices (Bonferroni),
// which finds one device. It is negative if the devices, or that device, became faster.
func Combine(z []float64) float64 {
	var total, greatest float64
	for _, z := range z {
		total += z
		if math.Abs(z) > math.Abs(greatest) {
			greatest = z
		}
	}
	devices := float64(len(z))
	stouffer := total / math.Sqrt(devices)
	ofAll, ofOne := logP(stouffer), math.Log(devices)+logP(greatest)
	direction := stouffer
	if ofOne < ofAll {
		direction = greatest
	}
	return math.Copysign(zOfLogP(min(0, math.Ln2+min(ofAll, ofOne))), direction)
}

// logP returns ln P(|Z| ≥ |z|). P is at most 0.28 % off (P. O. Börjesson, C.-E. Sundberg, 1979).
func logP(z float64) float64 {
	z = math.Abs(z)
	return math.Ln2 - z*z/2 - math.Log(math.Sqrt(2*math.Pi)*(0.661*z+0.339*math.Sqrt(z*z+5.51)))
}

// zOfLogP returns z ≥ 0 with P(|Z| ≥ z) = exp(logP), at most 4.5e-4 off (M. Abramowitz, I. A.
// Stegun, 1964, 26.2.23).
func zOfLogP(logP float64) float64 {
	x := 2 * (math.Ln2 - logP)
	r := math.Sqrt(x)
	return max(0, r-(2.515517+0.802853*r+0.010328*x)/(1+1.432788*r+0.189269*x+0.001308*x*r))
}
