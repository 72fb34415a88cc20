// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package rules

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/collector"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// simulated is a device with made-up deltas. Its counters are counted like those in the kernel,
// exported by the collector, and scraped once per minute.
type simulated struct {
	t        *testing.T
	instance string
	deltas   [][]float64 // ns, by the minute of the scrape
	values   map[string][]string
	counters bpf.Counters
	cuts     *[timing.LinearCells]uint32
}

func newSimulated(t *testing.T, instance string) *simulated {
	return &simulated{t: t, instance: instance, values: map[string][]string{}, counters: bpf.Counters{Device: "eth0"}, cuts: timing.Cuts()}
}

// source is the input of the collector.
type source struct {
	collector.Source
	counters []bpf.Counters
}

func (s source) Counters() []bpf.Counters { return s.counters }

// observe counts each delta the given number of times, as bpf/xdp/counters.h does.
func (s *simulated) observe(times uint64, deltas ...float64) {
	c := &s.counters
	for _, delta := range deltas {
		ns := uint64(delta)
		if c.Sums.ReferenceNs == 0 {
			c.Sums.ReferenceNs = max(ns, 1)
		}
		distance, sum := ns-c.Sums.ReferenceNs, &c.Sums.AboveNs
		if ns < c.Sums.ReferenceNs {
			distance, sum = c.Sums.ReferenceNs-ns, &c.Sums.BelowNs
		}
		*sum = sum.Add(bpf.Uint128{Lo: distance}.Mul64(times))
		c.Sums.SquaredNs2 = c.Sums.SquaredNs2.Add(bpf.Uint128{Lo: distance * distance}.Mul64(times))
		c.Sums.TotalNs = c.Sums.TotalNs.Add(bpf.Uint128{Lo: ns}.Mul64(times))
		c.Histogram[timing.Cell(ns, s.cuts)] += times
		c.Packets[bpf.FamilyIPv4][bpf.ProtocolUDP][bpf.OutcomeJudged] += times
	}
}

// scrape counts the deltas of a minute and scrapes.
func (s *simulated) scrape(deltas []float64) {
	s.t.Helper()
	s.observe(1, deltas...)
	s.deltas = append(s.deltas, deltas)
	set, err := collector.New(source{counters: []bpf.Counters{s.counters}}, collector.Options{Collectors: []string{"timing"}})
	registry := prometheus.NewRegistry()
	if err := errors.Join(err, registry.Register(set)); err != nil {
		s.t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, family := range families {
		m := family.GetMetric()[0]
		value := m.GetCounter().GetValue() + m.GetGauge().GetValue()
		if m.Histogram == nil && !strings.HasPrefix(family.GetName(), "xdp_audit_scrape_") {
			s.values[family.GetName()] = append(s.values[family.GetName()], strconv.FormatFloat(value, 'g', -1, 64))
		}
	}
}

// miss is a minute whose scrape fails, or that stores the marker for an ended series.
func (s *simulated) miss(marker string, deltas []float64) {
	s.observe(1, deltas...)
	s.deltas = append(s.deltas, deltas)
	for name := range s.values {
		s.values[name] = append(s.values[name], marker)
	}
}

// restart sets the counters to zero.
func (s *simulated) restart() { s.counters = bpf.Counters{Device: "eth0"} }

func (s *simulated) labels() string {
	return `{job="xdp_audit",instance="` + s.instance + `",device="eth0"}`
}

// series returns a recorded series of the device.
func (s *simulated) series(name string) string {
	return "instance_device:xdp_audit_" + name + s.labels()
}

func (s *simulated) addTo(c *ruleCase) {
	for name, values := range s.values {
		c.InputSeries = append(c.InputSeries, ruleSeries{name + s.labels(), strings.Join(values, " ")})
	}
}

// window returns the deltas of a window, as the rules see it at a minute: scrapes are stored at
// full minutes, and a window ends at the last scrape that is half a minute old.
func (s *simulated) window(at, minutes int) (deltas []float64) {
	for _, minute := range s.deltas[at-minutes : at] {
		deltas = append(deltas, minute...)
	}
	return deltas
}

// rounded returns n values, rounded to whole nanoseconds and not negative.
func rounded(n int, next func() float64) []float64 {
	deltas := make([]float64, n)
	for i := range deltas {
		deltas[i] = math.Max(0, math.Round(next()))
	}
	return deltas
}
