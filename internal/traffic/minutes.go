// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package traffic

import (
	"math"
	"math/rand/v2"
)

// Minutes draws the scored and the flagged packets of minute i of a device.
type Minutes func(r *rand.Rand, i int) (judged, flags uint64)

// QuietDevice is a device on which nothing happens. New starts a device.
type QuietDevice struct {
	Name string
	New  func() Minutes
}

// QuietDevices returns kinds of devices on which nothing happens; docs/statistics.md has the
// table. A gamma number for each minute makes the variance of the flags that many times their
// mean. A level that wanders is lognormal, with that standard deviation and that memory.
func QuietDevices() []QuietDevice {
	return []QuietDevice{
		{"7e-5 of 1,000 packets a second", func() Minutes { return PoissonMinutes(60000, 7e-5) }},
		{"7e-5 of 100 packets a second", func() Minutes { return PoissonMinutes(6000, 7e-5) }},
		{"7e-5 of 1 packet a second", func() Minutes { return PoissonMinutes(60, 7e-5) }},
		{"8e-3 of 1,000 packets a second", func() Minutes { return PoissonMinutes(60000, 8e-3) }},
		{"8e-3 of 10 packets a second", func() Minutes { return PoissonMinutes(600, 8e-3) }},
		{"2.7e-2 of 1,000 packets a second", func() Minutes { return PoissonMinutes(60000, 2.7e-2) }},
		{"8e-3, ten times the packets at noon", func() Minutes {
			return daily(func(judged float64) Minutes { return PoissonMinutes(judged, 8e-3) })
		}},
		{"7e-5 of 1,000, dispersion 2", func() Minutes { return dispersed(60000, 7e-5, 2) }},
		{"7e-5 of 100, dispersion 2", func() Minutes { return dispersed(6000, 7e-5, 2) }},
		{"8e-3 of 1,000, dispersion 5", func() Minutes { return dispersed(60000, 8e-3, 5) }},
		{"2.7e-2 of 1,000, dispersion 100", func() Minutes { return dispersed(60000, 2.7e-2, 100) }},
		{"8e-3 of 1,000, minutes lognormal, σ = 1", func() Minutes { return wandering(8e-3, 1, .01) }},
		{"8e-3 of 1,000, wandering ± 0.5, 10 minutes", func() Minutes { return wandering(8e-3, .5, 10) }},
		{"8e-3 of 1,000, wandering ± 0.2, an hour", func() Minutes { return wandering(8e-3, .2, 60) }},
		{"7e-5 of 1,000, wandering ± 0.3, an hour", func() Minutes { return wandering(7e-5, .3, 60) }},
		{"8e-3 of 1,000, wandering ± 0.2, 10 hours", func() Minutes { return wandering(8e-3, .2, 600) }},
		{"8e-3 of 1,000, ten times as many in one minute of 50", func() Minutes { return bursty(60000, 8e-3, 10, 50) }},
	}
}

// PoissonMinutes flags a fraction of the packets, independently.
func PoissonMinutes(judged, fraction float64) Minutes {
	return func(r *rand.Rand, _ int) (uint64, uint64) { return uint64(judged), poisson(r, judged*fraction) }
}

// dispersed multiplies the fraction by a gamma number, so that the variance of the flags is
// dispersion times their mean.
func dispersed(judged, fraction, dispersion float64) Minutes {
	return func(r *rand.Rand, _ int) (uint64, uint64) {
		return uint64(judged), poisson(r, judged*fraction*gamma(r, (dispersion-1)/(judged*fraction)))
	}
}

// wandering multiplies the fraction by a lognormal AR(1) process of that sd and that memory.
func wandering(fraction, sd, memory float64) Minutes {
	const judged = 60000
	level, rho := 0.0, math.Exp(-1/memory)
	return func(r *rand.Rand, i int) (uint64, uint64) {
		if i == 0 {
			level = sd * r.NormFloat64()
		}
		level = rho*level + sd*math.Sqrt(1-rho*rho)*r.NormFloat64()
		return judged, poisson(r, judged*fraction*math.Exp(level))
	}
}

// daily varies the packets tenfold over the day.
func daily(of func(judged float64) Minutes) Minutes {
	return func(r *rand.Rand, i int) (uint64, uint64) {
		return of(10000*math.Exp(1.15*math.Sin(2*math.Pi*float64(i)/1440)))(r, i)
	}
}

// bursty has n times the flags in one minute of every.
func bursty(judged, fraction, n float64, every int) Minutes {
	return func(r *rand.Rand, _ int) (uint64, uint64) {
		if r.IntN(every) == 0 {
			return uint64(judged), poisson(r, judged*fraction*n)
		}
		return uint64(judged), poisson(r, judged*fraction)
	}
}

// poisson draws a Poisson number, for a large mean by the normal approximation.
func poisson(r *rand.Rand, mean float64) (n uint64) {
	if mean > 60 {
		return uint64(max(0, math.Round(mean+math.Sqrt(mean)*r.NormFloat64())))
	}
	limit := math.Exp(-mean)
	for p := r.Float64(); p > limit; p *= r.Float64() {
		n++
	}
	return n
}

// gamma draws a gamma number of mean 1 and that variance (Marsaglia and Tsang, 2000).
func gamma(r *rand.Rand, variance float64) float64 {
	shape := 1 / variance
	boost := 1.0
	if shape < 1 {
		boost = math.Pow(r.Float64(), 1/shape)
		shape++
	}
	d := shape - 1.0/3
	for {
		x := r.NormFloat64()
		v := math.Pow(1+x/math.Sqrt(9*d), 3)
		if v > 0 && math.Log(1-r.Float64()) < x*x/2+d-d*v+d*math.Log(v) {
			return d * v * boost * variance
		}
	}
}
