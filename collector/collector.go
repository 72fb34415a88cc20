// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package collector exports the values of package bpf as Prometheus metrics.
//
// A [Set] reads an attached audit and is registered like any other collector:
//
//	audit, err := bpf.Open(config, logger)
//	…
//	set, err := collector.New(audit, collector.Options{Logger: logger})
//	…
//	registry.MustRegister(set)
//
// A Set also has the Update method of node_exporter's collectors. All metrics of a scrape come
// from one reading of the counters, so their sums agree: packets_total and outcomes_total have
// the same sum, and leak_flags_total equals the sum of the two flagged outcomes.
//
// A program that embeds this package must call Audit.ReadEvents, or configure an event rate of
// 0. Otherwise the event rings fill up and events_total stays 0. The metrics of the collector
// covert come from a [Covert], which judges the windows of Audit.Watch, and flag_excess_score
// comes from an [Excess], whose Run reads the counters once a minute. The kernel counts everything
// else.
package collector

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

const namespace = "xdp_audit"

var (
	scrapeDurationDesc = newDesc("scrape_collector_duration_seconds", "Duration of a collector scrape in seconds.", "collector")
	scrapeSuccessDesc  = newDesc("scrape_collector_success", "Whether a collector succeeded.", "collector")
)

// Collector sends the metrics of one subject to ch. It is the interface of node_exporter's
// collectors.
type Collector interface {
	Update(ch chan<- prometheus.Metric) error
}

// Source is the data that the collectors read. An attached *bpf.Audit is a Source. The methods
// must be safe for concurrent use.
type Source interface {
	Counters() []bpf.Counters
	Hooks() []bpf.Hook
	Runs() ([]bpf.Runs, error)
	Slots() int
	DeviceSlots() bpf.DeviceSlots
	EventCounts() bpf.EventCounts
	WatchCounts() bpf.WatchCounts
}

// Options selects the collectors of a [Set] and their data in addition to the [Source].
type Options struct {
	Collectors []string     // by name; nil for [Defaults], empty for none
	Trail      Trail        // audit trail; nil for none
	Covert     *Covert      // judge of the windows of Audit.Watch; nil for none
	Excess     *Excess      // excess of flagged packets; nil for none
	Leak       Leak         // leak assessments; nil for none
	Privileges *Privileges  // privileges of the process; nil if unknown
	Logger     *slog.Logger // logs failures of collectors; nil to discard them
}

// Set runs collectors over one reading of their source. It is a [Collector] and a
// prometheus.Collector, and safe for concurrent use.
type Set struct {
	source     Source
	trail      Trail
	covert     *Covert
	excess     *Excess
	leak       Leak
	privileges *Privileges
	logger     *slog.Logger
	buckets    *timing.Buckets
	subjects   []subject
}

var (
	_ Collector            = (*Set)(nil)
	_ prometheus.Collector = (*Set)(nil)
)

// subject is the constructor of a collector.
type subject struct {
	name    string
	enabled bool                               // by default
	create  func(s *Set, r *reading) Collector // creates the collector for one scrape
}

// subjects lists all collectors in the order in which they run.
func subjects() []subject {
	return []subject{
		{"packets", true, func(_ *Set, r *reading) Collector { return newPacketsCollector(r) }},
		{"flags", true, func(s *Set, r *reading) Collector { return newFlagsCollector(r, s.excess, bpf.Flag.WallTime) }},
		{"timing", true, func(s *Set, r *reading) Collector { return newTimingCollector(r, s.buckets) }},
		{"events", true, func(_ *Set, r *reading) Collector { return newEventsCollector(r) }},
		{"flows", true, func(_ *Set, r *reading) Collector { return newFlowsCollector(r) }},
		{"program", true, func(_ *Set, r *reading) Collector { return newProgramCollector(r) }},
		{"covert", false, func(s *Set, r *reading) Collector { return newCovertCollector(r, s.covert, time.Now) }},
		{"leak", true, func(s *Set, _ *reading) Collector { return newLeakCollector(s.leak) }},
		{"trail", true, func(s *Set, _ *reading) Collector { return newTrailCollector(s.trail) }},
		{"privileges", true, func(s *Set, _ *reading) Collector { return newPrivilegesCollector(s.privileges) }},
	}
}

// reading is a source whose counters are read once, at the first use.
type reading struct {
	Source
	counters func() []bpf.Counters
}

func newReading(source Source) *reading {
	return &reading{Source: source, counters: sync.OnceValue(source.Counters)}
}

// Counters returns the same counters to all collectors. They must not change them.
func (r *reading) Counters() []bpf.Counters { return r.counters() }

// Names returns the names of all collectors.
func Names() []string {
	return names(subjects())
}

// Defaults returns the names of the collectors that are enabled by default.
func Defaults() []string {
	return names(slices.DeleteFunc(subjects(), func(s subject) bool { return !s.enabled }))
}

func names(subjects []subject) []string {
	names := make([]string, 0, len(subjects))
	for _, s := range subjects {
		names = append(names, s.name)
	}
	return names
}

// New returns a set of collectors over source. An unknown collector is an error.
func New(source Source, options Options) (*Set, error) {
	if options.Collectors == nil {
		options.Collectors = Defaults()
	}
	if err := checkNames(options.Collectors); err != nil {
		return nil, err
	}
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	return &Set{
		source:     source,
		trail:      options.Trail,
		covert:     options.Covert,
		excess:     options.Excess,
		leak:       options.Leak,
		privileges: options.Privileges,
		logger:     options.Logger,
		buckets:    timing.NewBuckets(),
		subjects: slices.DeleteFunc(subjects(), func(s subject) bool {
			return !slices.Contains(options.Collectors, s.name)
		}),
	}, nil
}

// Filter returns a set of the collectors of s that are named in collect, or of all except those
// named in exclude. If both are empty, it returns all. It is an error if neither is empty, if a
// collector is unknown, and if a collector in collect is disabled in s.
func (s *Set) Filter(collect, exclude []string) (*Set, error) {
	if len(collect) > 0 && len(exclude) > 0 {
		return nil, errors.New("collect and exclude cannot be combined")
	}
	if err := checkNames(slices.Concat(collect, exclude)); err != nil {
		return nil, err
	}
	for _, name := range collect {
		if !slices.Contains(names(s.subjects), name) {
			return nil, fmt.Errorf("collector %q is disabled", name)
		}
	}
	filtered := *s
	filtered.subjects = slices.DeleteFunc(slices.Clone(s.subjects), func(c subject) bool {
		return len(collect) > 0 && !slices.Contains(collect, c.name) || slices.Contains(exclude, c.name)
	})
	return &filtered, nil
}

func checkNames(names []string) error {
	all := Names()
	for _, name := range names {
		if !slices.Contains(all, name) {
			return fmt.Errorf("unknown collector %.64q: use one of %s", name, strings.Join(all, ", "))
		}
	}
	return nil
}

// Update runs all collectors and sends their metrics, and the duration and the success of each.
// The error joins the errors of the collectors that failed.
func (s *Set) Update(ch chan<- prometheus.Metric) error {
	var errs []error
	r := newReading(s.source)
	for _, c := range s.subjects {
		begin := time.Now()
		err := c.create(s, r).Update(ch)
		duration := time.Since(begin)
		success := 1.0
		if err != nil {
			success = 0
			errs = append(errs, fmt.Errorf("collector %s: %w", c.name, err))
		}
		name := label("collector", c.name)
		ch <- gauge(scrapeDurationDesc, duration.Seconds(), name)
		ch <- gauge(scrapeSuccessDesc, success, name)
	}
	return errors.Join(errs...)
}

// Describe sends nothing, because the set of metrics depends on the host. A registry then
// expects none.
func (s *Set) Describe(chan<- *prometheus.Desc) {}

// Collect is Update for a registry. It logs failures.
func (s *Set) Collect(ch chan<- prometheus.Metric) {
	if err := s.Update(ch); err != nil {
		s.logger.Error("Scrape is incomplete", "err", err)
	}
}
