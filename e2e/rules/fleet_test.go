// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package rules

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"gonum.org/v1/gonum/stat"
	"gonum.org/v1/gonum/stat/distuv"

	"github.com/xdp-audit/xdp_audit_exporter/internal/fleet"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// approximate is the largest error of a z: the rules state 0.02 for that of a device.
const approximate = 0.021

// change is the comparison of the mean of log2 Δ in two windows.
type change struct{ difference, standardError, degrees, z float64 }

// octaves are the sums of log2 Δ in the batches of a window.
type octaves struct{ batches, deltas, mean, squares float64 }

// exactOctaves computes the sums with gonum: the mean of each minute weighs as much as its deltas.
// Minutes without deltas do not count.
func exactOctaves(minutes [][]float64) (o octaves) {
	cuts, ofCell := timing.Cuts(), timing.CellOctaves()
	var means, weights []float64
	for _, minute := range minutes {
		if len(minute) == 0 {
			continue
		}
		sum := 0.0
		for _, delta := range minute {
			sum += ofCell[timing.Cell(uint64(delta), cuts)]
		}
		means, weights = append(means, sum/float64(len(minute))), append(weights, float64(len(minute)))
		o.deltas += float64(len(minute))
	}
	mean, variance := stat.MeanVariance(means, weights)
	o.batches, o.mean, o.squares = float64(len(means)), mean, variance*(o.deltas-1)
	return o
}

func (o octaves) expect(c *ruleCase, at int, s *simulated, window string) {
	c.expect(at, s.series("delta_octaves:batches"+window), o.batches, 0)
	c.expect(at, s.series("delta_octaves:deltas"+window), o.deltas, 0)
	c.expect(at, s.series("delta_octaves:mean"+window), o.mean, 1e-9)
	// The squares are a small difference of large sums.
	c.expectWithin(at, "instance_device:xdp_audit_delta_octaves:squares"+window, s.labels(), o.squares, 1e-12*o.deltas*o.mean*o.mean)
}

// expectBatch expects the sums of the last batch.
func (o octaves) expectBatch(c *ruleCase, at int, s *simulated) {
	sum := o.deltas * o.mean
	c.expect(at, s.series("deltas:increase1m"), o.deltas, 0)
	c.expect(at, s.series("delta_octaves:increase1m"), sum, 1e-9)
	c.expect(at, s.series("delta_octaves:squares1m"), sum*sum/o.deltas, 1e-9)
}

// exactChange computes the comparison of two windows.
func exactChange(now, before [][]float64) (c change) {
	a, b := exactOctaves(now), exactOctaves(before)
	c.degrees = a.batches + b.batches - 2
	c.difference = a.mean - b.mean
	variance := max((a.squares+b.squares)/c.degrees, 1.0/16/16/12)
	c.standardError = math.Sqrt(variance * (1/a.deltas + 1/b.deltas))
	t := math.Abs(c.difference / c.standardError)
	c.z = math.Copysign(ofTail(distuv.StudentsT{Sigma: 1, Nu: c.degrees}.CDF(-t)), c.difference)
	return c
}

// ofTail returns z with P(Z ≥ z) = p.
func ofTail(p float64) float64 { return -distuv.UnitNormal.Quantile(p) }

// exactFleet combines the z of devices without approximations.
func exactFleet(zs []float64) (stouffer, greatest, z float64) {
	for _, z := range zs {
		stouffer += z / math.Sqrt(float64(len(zs)))
		if math.Abs(z) > math.Abs(greatest) {
			greatest = z
		}
	}
	ofAll, ofOne := math.Erfc(math.Abs(stouffer)/math.Sqrt2), float64(len(zs))*math.Erfc(math.Abs(greatest)/math.Sqrt2)
	direction := stouffer
	if ofOne < ofAll {
		direction = greatest
	}
	return stouffer, greatest, math.Copysign(ofTail(min(1, 2*min(ofAll, ofOne))/2), direction)
}

// expectWithin adds the expectation that a series is within an absolute error of a value.
func (c *ruleCase) expectWithin(minute int, series, labels string, want, tolerance float64) {
	c.Expressions = append(c.Expressions, ruleExpr{
		Expr: fmt.Sprintf("abs(%s - %v) <= bool %v", series+labels, want, tolerance), At: fmt.Sprintf("%dm", minute),
		Samples: []ruleSample{{labels, 1}},
	})
}

// minutes returns the batches that the rules have in a window.
func (s *simulated) minutes(at, minutes int) [][]float64 { return s.deltas[at-minutes : at] }

func (want change) expect(c *ruleCase, at int, s *simulated, windows string) {
	c.expectWithin(at, "instance_device:xdp_audit_delta_octaves:difference"+windows, s.labels(), want.difference, 1e-8)
	c.expect(at, s.series("delta_octaves:standard_error"+windows), want.standardError, exact)
	c.expect(at, s.series("delta_octaves:degrees"+windows), want.degrees, 0)
	c.expectWithin(at, "instance_device:xdp_audit_delta_octaves:zscore"+windows, s.labels(), want.z, approximate)
	// The model of tools/evaluate and docs/statistics.md has the approximations of the rules.
	model := fleet.Normal(want.difference/want.standardError, want.degrees)
	c.expectWithin(at, "instance_device:xdp_audit_delta_octaves:zscore"+windows, s.labels(), model, 1e-5)
}

// The changes of devices whose means differ by factors of 1,000, exactly.
func TestFleetScore(t *testing.T) {
	const last, perMinute = 69, 600
	lognormal := func(seed uint64, median float64) func() float64 {
		next := normal(seed, 0, 1.5)
		return func() float64 { return median * math.Exp(next()) }
	}
	for _, test := range []struct {
		description string
		factors     []float64 // of the last five minutes, by device
		least, most float64   // of the fleet's z
	}{
		{"nothing changed", []float64{1, 1, 1}, -3, 3},
		{"one device alone", []float64{1.3}, 4.5, 9},
		{"one of three is slower, on the slowest scale", []float64{1, 1, 1.5}, 5, 20},
		{"one of three is faster", []float64{1, 0.6, 1}, -20, -5},
		{"all are a little slower", []float64{1.12, 1.12, 1.12, 1.12, 1.12, 1.12, 1.12, 1.12, 1.12, 1.12}, 4, 20},
		{"one is slower, and one is faster", []float64{1.5, 0.5, 1}, -20, -5},
	} {
		t.Run(test.description, func(t *testing.T) {
			c := ruleCase{Interval: "1m"}
			var zs []float64
			for i, factor := range test.factors {
				s := newSimulated(t, fmt.Sprintf("host%d:9400", i))
				median := 1e4 * math.Pow(1000, float64(i%3)/2)
				before, now := lognormal(uint64(i), median), lognormal(uint64(20+i), factor*median)
				for minute := range last + 1 {
					next, n := before, perMinute*(1+minute%3)
					if minute >= last-5 {
						next = now
					}
					s.scrape(rounded(n, next))
				}
				s.addTo(&c)
				own := exactChange(s.minutes(last, 5), s.minutes(last-5, 60))
				own.expect(&c, last, s, "5m_1h")
				exactOctaves(s.minutes(last, 5)).expect(&c, last, s, "5m")
				exactOctaves(s.minutes(last, 60)).expect(&c, last, s, "1h")
				exactOctaves(s.minutes(last, 1)).expectBatch(&c, last, s)
				zs = append(zs, own.z)
			}
			const labels = `{job="xdp_audit"}`
			stouffer, greatest, z := exactFleet(zs)
			t.Logf("z of the devices %.3f, Stouffer's %.3f, greatest %.3f: %.3f", zs, stouffer, greatest, z)
			c.expect(last, "job:xdp_audit_delta_octaves:devices5m_1h"+labels, float64(len(zs)), 0)
			c.expectWithin(last, "job:xdp_audit_delta_octaves:stouffer5m_1h", labels, stouffer, approximate)
			c.expectWithin(last, "job:xdp_audit_delta_octaves:greatest5m_1h", labels, greatest, approximate)
			c.expectWithin(last, "job:xdp_audit_delta_octaves:zscore5m_1h", labels, z, approximate)
			c.expectWithin(last, "job:xdp_audit_delta_octaves:zscore5m_1h", labels, fleet.Combine(zs), approximate)
			check(t, c)
			if z < test.least || z > test.most {
				t.Errorf("z = %v, want %v to %v", z, test.least, test.most)
			}
		})
	}
}

// The z of a fleet and its parts, computed from recorded z of its devices: z is at most 0.001 off.
func TestFleetScoreOfScores(t *testing.T) {
	for _, test := range []struct {
		description string
		z           []float64
	}{
		{"one", []float64{-5}},
		{"none changed", []float64{0.1, -0.2, 0.3}},
		{"all are 0", []float64{0, 0}},
		{"one of three", []float64{0, 6.25, 0.5}},
		{"one of a hundred, faster", append(slices.Repeat([]float64{0.1}, 99), -7)},
		{"all of a hundred", slices.Repeat([]float64{0.6}, 100)},
		{"each way alike", []float64{4, -4}},
		{"at the mark", []float64{0, 0, 4.7}},
		{"enormous", []float64{30, 0, 0}},
	} {
		t.Run(test.description, func(t *testing.T) {
			c := ruleCase{Interval: "1m"}
			const labels = `{job="xdp_audit"}`
			stouffer, greatest, z := exactFleet(test.z)
			ofAll := math.Log(math.Erfc(math.Abs(stouffer) / math.Sqrt2))
			ofOne := math.Log(float64(len(test.z)) * math.Erfc(math.Abs(greatest)/math.Sqrt2))
			for _, windows := range []string{"5m_1h", "1h_1d"} {
				for i, z := range test.z {
					c.InputSeries = append(c.InputSeries, ruleSeries{
						fmt.Sprintf(`instance_device:xdp_audit_delta_octaves:zscore%s{job="xdp_audit",instance="host%d:9400",device="eth0"}`, windows, i),
						fmt.Sprintf("%vx2", z),
					})
				}
				const of = "job:xdp_audit_delta_octaves:"
				c.expectWithin(1, of+"devices"+windows, labels, float64(len(test.z)), 0)
				c.expectWithin(1, of+"stouffer"+windows, labels, stouffer, 1e-9)
				c.expectWithin(1, of+"greatest"+windows, labels, greatest, 0)
				// p is at most 0.28 % off.
				c.expectWithin(1, of+"stouffer_log_pvalue"+windows, labels, ofAll, 0.0028)
				c.expectWithin(1, of+"greatest_log_pvalue"+windows, labels, ofOne, 0.0028)
				c.expectWithin(1, of+"log_pvalue"+windows, labels, min(0, math.Ln2+min(ofAll, ofOne)), 0.0028)
				c.expectWithin(1, of+"zscore"+windows, labels, z, 0.001)
			}
			check(t, c)
		})
	}
}

// The longer pair of windows, at the least number of deltas, and with less.
func TestFleetScoreOfAnHour(t *testing.T) {
	const last = 25*60 + 5
	enough, less := newSimulated(t, "a:9400"), newSimulated(t, "b:9400")
	before, now := normal(1, 1e6, 2e5), normal(2, 1.03e6, 2e5)
	for minute := range last + 1 {
		next := before
		if minute >= last-60 {
			next = now
		}
		enough.scrape(rounded(50, next))
		less.scrape(rounded(49, next))
	}
	c := ruleCase{Interval: "1m"}
	enough.addTo(&c)
	less.addTo(&c)
	exactChange(enough.minutes(last, 60), enough.minutes(last-60, 24*60)).expect(&c, last, enough, "1h_1d")
	exactOctaves(enough.minutes(last, 24*60)).expect(&c, last, enough, "1d")
	c.expectNone(last, less.series("delta_octaves:zscore1h_1d"))
	c.expect(last, `job:xdp_audit_delta_octaves:devices1h_1d{job="xdp_audit"}`, 1, 0)
	check(t, c)
}

// What takes batches away, and what leaves too few.
func TestFleetBatches(t *testing.T) {
	const last = 69
	next := normal(1, 1e6, 2e5)
	for _, test := range []struct {
		description string
		minute      func(s *simulated, minute int)
		batches     [2]float64 // of the last five minutes, and of the hour before; 0 for no value
		hasValue    bool
	}{
		{"a restart costs a batch", func(s *simulated, minute int) {
			if minute == 30 {
				s.restart()
			}
			s.scrape(rounded(700, next))
		}, [2]float64{5, 59}, true},
		{"a failed scrape costs two", func(s *simulated, minute int) {
			if minute == 30 {
				s.miss("stale", rounded(700, next))
				return
			}
			s.scrape(rounded(700, next))
		}, [2]float64{5, 58}, true},
		{"minutes without packets are not batches", func(s *simulated, minute int) {
			if minute < 64 && minute%2 == 0 {
				s.scrape(nil)
				return
			}
			s.scrape(rounded(700, next))
		}, [2]float64{5, 30}, true},
		{"23 batches before", func(s *simulated, minute int) {
			switch {
			case minute == 0:
				s.scrape(rounded(1, next)) // the reference
				return
			case minute < 41:
				s.scrape(nil)
				return
			}
			s.scrape(rounded(700, next))
		}, [2]float64{5, 23}, false},
		{"too few deltas in the last five minutes", func(s *simulated, _ int) { s.scrape(rounded(599, next)) }, [2]float64{5, 60}, false},
		{"deltas that are all alike", func(s *simulated, _ int) { s.scrape(rounded(600, func() float64 { return 1e6 })) }, [2]float64{5, 60}, true},
	} {
		t.Run(test.description, func(t *testing.T) {
			s := newSimulated(t, "a:9400")
			for minute := range last + 1 {
				test.minute(s, minute)
			}
			c := ruleCase{Interval: "1m"}
			s.addTo(&c)
			c.expect(last, s.series("delta_octaves:batches5m"), test.batches[0], 0)
			c.expect(last-5, s.series("delta_octaves:batches1h"), test.batches[1], 0)
			finite := ruleExpr{Expr: "abs(" + s.series("delta_octaves:zscore5m_1h") + ") < bool 4", At: fmt.Sprintf("%dm", last)}
			if test.hasValue {
				finite.Samples = []ruleSample{{s.labels(), 1}}
			} else {
				finite.Samples = []ruleSample{}
			}
			c.Expressions = append(c.Expressions, finite)
			check(t, c)
		})
	}
}
