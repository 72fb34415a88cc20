// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package rules

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"gonum.org/v1/gonum/stat"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

const (
	exact   = 1e-6 // largest relative error of a windowed variance
	seconds = 1e-9 // in a nanosecond
)

func check(t *testing.T, c ruleCase) {
	t.Helper()
	if output, err := c.run(t); err != nil {
		t.Errorf("%v:\n%s", err, output)
	}
}

// moments returns mean and sample variance of the deltas in seconds, computed by gonum.
func moments(deltas []float64) (n, mean, variance float64) {
	mean, variance = stat.MeanVariance(deltas, nil)
	return float64(len(deltas)), mean * seconds, variance * seconds * seconds
}

// expectMoments expects the statistics of one window.
func (s *simulated) expectMoments(c *ruleCase, at int, name string, minutes int) {
	n, mean, variance := moments(s.window(at, minutes))
	c.expect(at, s.series("deltas:increase"+name), n, 0)
	c.expect(at, s.series("delta_seconds:mean"+name), mean, 1e-9)
	c.expect(at, s.series("delta_seconds:variance"+name), variance, exact)
	c.expect(at, s.series("delta_seconds:stddev"+name), math.Sqrt(variance), exact)
	c.expect(at, s.series("delta_seconds:cv"+name), math.Sqrt(variance)/mean, exact)
}

// comparison is the comparison of a window with the longer one before it.
type comparison struct{ difference, standardError, tscore, effect float64 }

// compare computes Welch's t and Cohen's d.
func compare(now, before []float64) comparison {
	n1, mean1, variance1 := moments(now)
	n2, mean2, variance2 := moments(before)
	c := comparison{difference: mean1 - mean2, standardError: math.Sqrt(variance1/n1 + variance2/n2)}
	c.tscore = c.difference / c.standardError
	c.effect = c.difference / math.Sqrt((variance1+variance2)/2)
	return c
}

func (want comparison) expect(c *ruleCase, at int, series func(string) string, windows string) {
	c.expect(at, series("delta_seconds:difference"+windows), want.difference, 1e-6)
	c.expect(at, series("delta_seconds:standard_error"+windows), want.standardError, exact)
	c.expect(at, series("delta_seconds:tscore"+windows), want.tscore, 1e-6)
	c.expect(at, series("delta_seconds:effect"+windows), want.effect, 1e-6)
}

// exporterScore is Welch's t from the fixed-point, clipped baselines that the exporter would
// have of both windows.
func exporterScore(now, before []float64) float64 {
	params := timing.Params{Threshold: 4, MinSamples: 100, Window: timing.MaxWindow, Clip: 4}
	baseline := func(deltas []float64) (s timing.State) {
		for _, delta := range deltas {
			params.Observe(&s, uint64(delta))
		}
		return s
	}
	a, b := baseline(now), baseline(before)
	return (timing.Linear.MeanNs(a) - timing.Linear.MeanNs(b)) / math.Sqrt(params.Variance(a)/float64(a.N)+params.Variance(b)/float64(b.N))
}

func normal(seed uint64, mean, deviation float64) func() float64 {
	random := rand.New(rand.NewPCG(seed, 1))
	return func() float64 { return mean + deviation*random.NormFloat64() }
}

// After a year at a thousand packets per second, the counters are a hundred thousand times as
// large as their increase in a window.
func TestStatisticsAfterAYear(t *testing.T) {
	const (
		minutes   = 70
		perMinute = 60_000
		year      = 365 * 24 * 60
	)
	random := rand.New(rand.NewPCG(4, 1))
	for _, test := range []struct {
		description string
		next        func() float64
	}{
		{"a coefficient of variation of 1e-4", normal(1, 1e6, 100)},
		{"one of 2 %", normal(2, 1e6, 20e3)},
		{"exponential", func() float64 { return 1e6 * random.ExpFloat64() }},
		{"lognormal, with a σ of 1", func() float64 { return 1e6 * math.Exp(random.NormFloat64()) }},
		{"a reference that is 50 standard deviations off", first(1.005e6, normal(3, 1e6, 100))},
	} {
		t.Run(test.description, func(t *testing.T) {
			s := newSimulated(t, "a:9400")
			s.observe(year/10, rounded(10*perMinute, test.next)...)
			for range minutes {
				s.scrape(rounded(perMinute, test.next))
			}
			var c ruleCase
			c.Interval = "1m"
			s.addTo(&c)
			s.expectMoments(&c, minutes-1, "5m", 5)
			s.expectMoments(&c, minutes-1, "1h", 60)
			check(t, c)
		})
	}
}

// first returns a function that returns value once, and then the values of next.
func first(value float64, next func() float64) func() float64 {
	isFirst := true
	return func() float64 {
		if isFirst {
			isFirst = false
			return value
		}
		return next()
	}
}

// The checks by promtool can fail.
func TestAWrongVarianceIsNoticed(t *testing.T) {
	s := newSimulated(t, "a:9400")
	next := normal(1, 1e6, 100)
	for range 8 {
		s.scrape(rounded(1000, next))
	}
	var c ruleCase
	c.Interval = "1m"
	s.addTo(&c)
	_, _, variance := moments(s.window(7, 5))
	c.expect(7, s.series("delta_seconds:variance5m"), variance*(1+3*exact), exact)
	if output, err := c.run(t); err == nil || !strings.Contains(output, "variance5m") {
		t.Errorf("a variance that is wrong by 3e-6 passed: %v\n%s", err, output)
	}
}

// The rules compute Welch's t of the last window against the longer one before it.
func TestScoreOfAWindow(t *testing.T) {
	for _, test := range []struct {
		description string
		before, now func() float64
	}{
		{"0.5 % later", normal(1, 1e6, 20e3), normal(2, 1.005e6, 20e3)},
		{"earlier, and more spread", normal(3, 1e6, 20e3), normal(4, 0.99e6, 60e3)},
		{"nothing has changed but the variance", normal(5, 1e6, 20e3), normal(6, 1.0002e6, 40e3)},
	} {
		t.Run(test.description, func(t *testing.T) {
			const last, perMinute = 69, 600
			s := newSimulated(t, "a:9400")
			for minute := range last + 1 {
				next := test.before
				if minute >= last-5 {
					next = test.now
				}
				s.scrape(rounded(perMinute, next))
			}
			var c ruleCase
			c.Interval = "1m"
			s.addTo(&c)
			now, before := s.window(last, 5), s.window(last-5, 60)
			want := compare(now, before)
			want.expect(&c, last, s.series, "5m_1h")
			c.expect(last, s.series("delta_seconds:tscore5m_1h"), exporterScore(now, before), 0.01)
			t.Logf("t is %.4f, and %.4f from the exporter's baselines", want.tscore, exporterScore(now, before))
			check(t, c)
		})
	}
}

// The longer pair of windows: an hour against the day before.
func TestScoreOfAnHour(t *testing.T) {
	const last, perMinute = 25*60 + 5, 60
	s := newSimulated(t, "a:9400")
	before, now := normal(1, 1e9, 20e6), normal(2, 1.001e9, 20e6)
	for minute := range last + 1 {
		next := before
		if minute >= last-60 {
			next = now
		}
		s.scrape(rounded(perMinute, next))
	}
	var c ruleCase
	c.Interval = "1m"
	s.addTo(&c)
	s.expectMoments(&c, last, "1d", 24*60)
	compare(s.window(last, 60), s.window(last-60, 24*60)).expect(&c, last, s.series, "1h_1d")
	if output, err := c.runEvery(t, "5m"); err != nil {
		t.Errorf("%v:\n%s", err, output)
	}
}

// Devices have different means and references, and all are late by the same time in the last
// five minutes.
func TestFleet(t *testing.T) {
	const last, perMinute = 69, 600
	var c ruleCase
	c.Interval = "1m"
	var devices []*simulated
	for i, mean := range []float64{1e6, 50e6, 3e6} {
		s := newSimulated(t, fmt.Sprintf("host%d:9400", i))
		before, now := normal(uint64(i), mean, mean/50), normal(uint64(10+i), mean+2000, mean/50)
		for minute := range last + 1 {
			next := before
			if minute >= last-5 {
				next = now
			}
			s.scrape(rounded(perMinute*(i+1), next))
		}
		s.addTo(&c)
		devices = append(devices, s)
	}
	series := func(name string) string { return "job:xdp_audit_" + name + `{job="xdp_audit"}` }
	effects := 0.0
	for _, s := range devices {
		effects += compare(s.window(last, 5), s.window(last-5, 60)).effect
	}
	c.expect(last, series("delta_seconds:effect5m_1h"), effects/3, 1e-6)
	for name, minutes := range map[string]int{"5m": 5, "1h": 60} {
		var all []float64
		var within, degrees float64
		for _, s := range devices {
			deltas := s.window(last, minutes)
			n, _, variance := moments(deltas)
			all = append(all, deltas...)
			within, degrees = within+(n-1)*variance, degrees+n-1
		}
		n, mean, naive := moments(all)
		c.expect(last, series("deltas:increase"+name), n, 0)
		c.expect(last, series("delta_seconds:mean"+name), mean, 1e-9)
		c.expect(last, series("delta_seconds:variance"+name), within/degrees, exact)
		if naive < 100*within/degrees {
			t.Errorf("the variance %v of all deltas together is not much above %v within devices: this shows nothing", naive, within/degrees)
		}
	}
	// The effects of the longer pair of windows, as the devices have recorded them.
	for i, effect := range []string{"0.5", "-0.25", "0.125"} {
		c.InputSeries = append(c.InputSeries, ruleSeries{
			fmt.Sprintf(`instance_device:xdp_audit_delta_seconds:effect1h_1d{job="xdp_audit",instance="host%d:9400",device="eth0"}`, i), effect + "x70",
		})
	}
	c.expect(last, series("delta_seconds:effect1h_1d"), 0.125, 1e-12)
	check(t, c)
}

// Two devices are compared in the same window, with the query in docs/metrics.md.
func TestScoreOfTwoDevices(t *testing.T) {
	var c ruleCase
	c.Interval = "1m"
	a, b := newSimulated(t, "a:9400"), newSimulated(t, "b:9400")
	nextA, nextB := normal(1, 1e6, 20e3), normal(2, 1.002e6, 30e3)
	for range 8 {
		a.scrape(rounded(600, nextA))
		b.scrape(rounded(900, nextB))
	}
	a.addTo(&c)
	b.addTo(&c)
	want := compare(a.window(7, 5), b.window(7, 5)).tscore
	c.Expressions = append(c.Expressions, ruleExpr{
		Expr: fmt.Sprintf("abs(%s - %v) <= bool 1e-6", queryWith(t, "docs/metrics.md", "scalar"), want), At: "7m",
		Samples: []ruleSample{{"{}", 1}},
	})
	check(t, c)
}

// A window without statistics has no value, rather than a wrong one.
func TestWindowsWithoutStatistics(t *testing.T) {
	const mean, variance, t5m = "delta_seconds:mean5m", "delta_seconds:variance5m", "delta_seconds:tscore5m_1h"
	steady := normal(1, 1e6, 20e3)
	minute := func() []float64 { return rounded(600, steady) }
	for _, test := range []struct {
		description string
		simulate    func(s *simulated, c *ruleCase)
	}{
		{"no window is complete yet", func(s *simulated, c *ruleCase) {
			for range 5 {
				s.scrape(minute())
			}
			c.expectNone(4, s.series("deltas:increase5m"))
			c.expectNone(4, s.series(mean))
		}},
		{"a restart in the window, and what follows it", func(s *simulated, c *ruleCase) {
			for range 10 {
				s.scrape(minute())
			}
			s.restart()
			for range 10 {
				s.scrape(minute())
			}
			s.expectMoments(c, 9, "5m", 5)
			for at := 11; at <= 15; at++ {
				c.expectNone(at, s.series("deltas:increase5m"))
				c.expectNone(at, s.series(variance))
			}
			s.expectMoments(c, 17, "5m", 5)
		}},
		{"a restart after which more is counted, around the same reference", func(s *simulated, c *ruleCase) {
			for range 6 {
				s.scrape([]float64{1e6, 1e6 + 100})
			}
			s.restart()
			s.scrape([]float64{1e6})
			s.scrape(rounded(600, func() float64 { return 1e6 }))
			s.scrape(nil)
			c.expectNone(8, s.series("deltas:increase5m"))
		}},
		{"a restart after which more is counted at once, around another reference", func(s *simulated, c *ruleCase) {
			for range 6 {
				s.scrape([]float64{1e6, 1e6 + 100})
			}
			s.restart()
			s.scrape(append([]float64{2e6}, minute()...))
			s.scrape(nil)
			c.expectNone(7, s.series("deltas:increase5m"))
		}},
		{"scrapes that fail within the window change nothing", func(s *simulated, c *ruleCase) {
			for i := range 12 {
				if i == 8 || i == 9 {
					s.miss("_", minute())
				} else {
					s.scrape(minute())
				}
			}
			s.expectMoments(c, 11, "5m", 5)
		}},
		{"an end of the window that is missing", func(s *simulated, c *ruleCase) {
			for i := range 12 {
				if i == 10 {
					s.miss("stale", minute())
				} else {
					s.scrape(minute())
				}
			}
			c.expectNone(11, s.series(mean))
		}},
		{"no packets in the window", func(s *simulated, c *ruleCase) {
			s.scrape(minute())
			for range 8 {
				s.scrape(nil)
			}
			c.expect(8, s.series("deltas:increase5m"), 0, 0)
			c.expectNone(8, s.series(mean))
			c.expectNone(8, s.series(variance))
		}},
		{"a single packet has a mean, and no variance", func(s *simulated, c *ruleCase) {
			s.scrape(minute())
			for range 7 {
				s.scrape(nil)
			}
			s.scrape([]float64{1234567})
			s.scrape(nil)
			c.expect(9, s.series(mean), 1234567e-9, 1e-12)
			c.expectNone(9, s.series(variance))
		}},
		{"before any packet", func(s *simulated, c *ruleCase) {
			for range 8 {
				s.scrape(nil)
			}
			c.expect(7, s.series("deltas:increase5m"), 0, 0)
			c.expectNone(7, s.series(mean))
		}},
		{"the clock's own variance is the least, and a score is finite", func(s *simulated, c *ruleCase) {
			constant := rounded(600, func() float64 { return 1e6 })
			for range 70 {
				s.scrape(constant)
			}
			c.expect(69, s.series(variance), 1e-18/12, 1e-9)
			c.expect(69, s.series(t5m), 0, 0)
		}},
		{"a variance that rounding hides is overestimated, and gives no score", func(s *simulated, c *ruleCase) {
			next := normal(2, 1e6, 5)
			s.observe(1, 1e9) // the reference
			s.observe(1e6, rounded(10_000, next)...)
			for range 70 {
				s.scrape(rounded(600, next))
			}
			c.Expressions = append(c.Expressions,
				ruleExpr{Expr: s.series(variance) + " >= bool 25e-18", At: "69m", Samples: []ruleSample{{s.labels(), 1}}},
				ruleExpr{Expr: "abs(" + s.series(t5m) + ") < bool 4", At: "69m", Samples: []ruleSample{{s.labels(), 1}}})
		}},
	} {
		t.Run(test.description, func(t *testing.T) {
			s := newSimulated(t, "a:9400")
			c := ruleCase{Interval: "1m"}
			test.simulate(s, &c)
			s.addTo(&c)
			check(t, c)
		})
	}
}
