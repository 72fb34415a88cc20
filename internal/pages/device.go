// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package pages

import (
	"math"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/history"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// DevicePage is the content of the page of a device.
type DevicePage struct {
	Time time.Time `json:"time"`
	Device
	Deltas    Deltas            `json:"deltas"`
	Outcomes  map[string]uint64 `json:"outcomes"`
	Protocols []Protocol        `json:"protocols"`
	// Calibrate is the number of events that a flow earns for each scored packet, and Decisions
	// what the calibration decided on flagged packets.
	Calibrate float64           `json:"calibrate"`
	Decisions map[string]uint64 `json:"decisions"`
	// Cuts is null without calibration, and for a device that has vanished.
	Cuts     *Cuts  `json:"cuts"`
	Restarts uint64 `json:"baseline_restarts"`
	History  Rates  `json:"history"`

	Threshold     float64     `json:"threshold"`
	Domain        string      `json:"domain"`
	OutcomeBar    stack       `json:"-"`
	DecisionBar   stack       `json:"-"`
	Distribution  *chart      `json:"-"`
	FlagsOverTime *chart      `json:"-"`
	LastScores    *chart      `json:"-"`
	CutsOfFlows   *chart      `json:"-"`
	Percentiles   [][3]string `json:"-"`
	IsLog         bool        `json:"-"`
	HasBaseline   bool        `json:"-"`
	HasVanished   bool        `json:"-"` // only the counts of the last reading are known
}

// Deltas describes the inter-arrival times of a device. The buckets are those of the native
// histogram: each has the deltas above the bound of the one before, up to its own.
type Deltas struct {
	Count       uint64  `json:"count"`
	MeanSeconds float64 `json:"mean_seconds"` // in the domain log2 the geometric mean
	// StddevSeconds is the standard deviation; with --audit.domain=log2 it is StddevOctaves.
	StddevSeconds *float64 `json:"stddev_seconds,omitempty"`
	StddevOctaves *float64 `json:"stddev_octaves,omitempty"`
	// EarlySeconds and LateSeconds are the deltas at which |t| reaches the threshold against this
	// mean and deviation. A flow is judged against its own. EarlySeconds is 0 if no delta is early.
	EarlySeconds float64 `json:"early_seconds"`
	LateSeconds  float64 `json:"late_seconds"`

	RecentSince *time.Time `json:"recent_since"` // null before there is an earlier reading
	Zeros       uint64     `json:"zeros"`        // deltas of 0 s, which are in no bucket
	RecentZeros uint64     `json:"recent_zeros"`
	Buckets     []Bucket   `json:"buckets"`
}

// Bucket is a bucket of a native histogram of schema 3.
type Bucket struct {
	UpperSeconds float64 `json:"upper_seconds"`
	Count        uint64  `json:"count"`
	Recent       uint64  `json:"recent"` // since RecentSince

	index int
}

// Protocol counts the packets of a protocol.
type Protocol struct {
	Family   string `json:"family"`
	Protocol string `json:"protocol"`
	Packets  uint64 `json:"packets"`
	Bytes    uint64 `json:"bytes"`
}

// Rates are the rates of the last ten minutes in equal steps. A step without readings is null.
type Rates struct {
	StepSeconds         float64    `json:"step_seconds"`
	PacketsPerSecond    []*float64 `json:"packets_per_second"`
	FlagsEarlyPerSecond []*float64 `json:"flags_early_per_second"`
	FlagsLatePerSecond  []*float64 `json:"flags_late_per_second"`
}

var outcomeMeanings = [bpf.NumOutcomes]string{
	bpf.OutcomeJudged:       "scored, as expected",
	bpf.OutcomeMinSamples:   "added to a baseline that still learns",
	bpf.OutcomeNewFlow:      "first packet of a flow",
	bpf.OutcomeFlaggedEarly: "scored, and earlier than expected",
	bpf.OutcomeFlaggedLate:  "scored, and later than expected",
	bpf.OutcomeIdleGap:      "after a pause longer than the idle timeout",
	bpf.OutcomeReordered:    "its time is before that of the last packet",
	bpf.OutcomeContended:    "another CPU worked on the same flows",
	bpf.OutcomeFragment:     "a fragment other than the first",
	bpf.OutcomeUntimed:      "without a time of the audit clock",
	bpf.OutcomeUnparsed:     "not IP, cut short or malformed",
}

// outcomeOrder is the order in which outcomes are shown: from the usual to the rare.
var outcomeOrder = []bpf.Outcome{
	bpf.OutcomeJudged, bpf.OutcomeFlaggedLate, bpf.OutcomeMinSamples, bpf.OutcomeFlaggedEarly, bpf.OutcomeNewFlow,
	bpf.OutcomeIdleGap, bpf.OutcomeUnparsed, bpf.OutcomeReordered, bpf.OutcomeContended, bpf.OutcomeFragment, bpf.OutcomeUntimed,
}

var decisionMeanings = [bpf.NumDecisions]string{
	bpf.DecisionEarned:   "an event, by a token that the flow earned with its packets",
	bpf.DecisionUnearned: "an event, by one of the eight tokens an hour of every flow",
	bpf.DecisionCommon:   "no event: below the cut of its flow, and no token is left for such",
	bpf.DecisionNoToken:  "no event: reaches the cut of its flow, but no token is left",
}

// device returns the content of the page of a device.
func (s *Site) device(r *http.Request) (any, error) {
	now, name := s.Now(), r.PathValue("name")
	counters := s.Source.Counters()
	devices := s.devices(now, counters)
	i := slices.IndexFunc(devices, func(d Device) bool { return d.Name == name })
	if i < 0 {
		return nil, errMissing{"There is no such device."}
	}
	p := &DevicePage{
		Time: now, Device: devices[i], Outcomes: map[string]uint64{}, Decisions: map[string]uint64{}, Protocols: []Protocol{},
		Calibrate: s.Audit.Calibrate, Threshold: s.Audit.Threshold, Domain: string(s.Audit.Domain), IsLog: s.Audit.Domain == bpf.DomainLog2,
	}
	p.Deltas.Buckets = []Bucket{} // not null
	if i := slices.IndexFunc(counters, func(c bpf.Counters) bool { return c.Device == name }); i >= 0 {
		s.count(p, &counters[i])
	} else if p.HasVanished = p.Packets > 0; !p.HasVanished {
		s.count(p, &bpf.Counters{Device: name})
	}
	series := s.History.Device(name)
	p.History = newRates(series, now)
	if !isAPI(r) {
		p.Distribution = s.drawDistribution(&p.Deltas, p)
		p.Percentiles = percentiles(&p.Deltas)
		p.FlagsOverTime = drawFlags(series, now)
		p.LastScores = s.drawScores(name, now)
		if p.Cuts != nil {
			p.CutsOfFlows = drawCuts(p.Cuts, p.Threshold)
		}
	}
	return p, nil
}

// count fills in what the counters of a device say.
func (s *Site) count(p *DevicePage, c *bpf.Counters) {
	p.Restarts = c.Restarts
	p.OutcomeBar.Name = "packets"
	for _, outcome := range outcomeOrder {
		n := c.Packets.Outcome(outcome)
		p.Outcomes[outcome.String()] = n
		p.OutcomeBar.add(outcome.String(), outcomeMeanings[outcome], n)
	}
	p.OutcomeBar.place()
	p.DecisionBar.Name = "flags on which the calibration decided"
	for decision, n := range c.Decisions {
		p.Decisions[bpf.Decision(decision).String()] = n
		p.DecisionBar.add(bpf.Decision(decision).String(), decisionMeanings[decision], n)
	}
	p.DecisionBar.place()
	for family := range bpf.NumFamilies {
		for protocol := range bpf.NumProtocols {
			if n := c.Packets.Protocol(family, protocol); n > 0 {
				p.Protocols = append(p.Protocols, Protocol{family.String(), protocol.String(), n, c.Bytes[family][protocol]})
			}
		}
	}
	p.Cuts = s.cuts(c.Device)
	s.describe(p, c)
}

// describe fills in the description of the deltas.
func (s *Site) describe(p *DevicePage, c *bpf.Counters) {
	d := &p.Deltas
	all, recent, since := s.History.Histogram(c)
	if !since.IsZero() {
		d.RecentSince = &since
	}
	later := map[int]uint64{}
	for _, b := range recent.Buckets {
		later[b.Index] = b.Count
	}
	d.Zeros, d.RecentZeros = all.Zeros, recent.Zeros
	for _, b := range all.Buckets {
		d.Buckets = append(d.Buckets, Bucket{UpperSeconds: upper(b.Index), Count: b.Count, Recent: later[b.Index], index: b.Index})
	}
	d.Count = c.Packets.Deltas()
	if d.Count == 0 {
		return
	}
	var deviation float64
	switch {
	case c.Baseline != nil && c.Baseline.Samples > 1:
		p.HasBaseline = true
		d.MeanSeconds, deviation = c.Baseline.MeanNs()/1e9, c.Baseline.StandardDeviation()
		if !p.IsLog {
			deviation /= 1e9
		}
	case p.IsLog:
		d.MeanSeconds, deviation = logMoments(&c.Histogram)
	default:
		n := float64(d.Count)
		mean := c.Sums.TotalNs.Float64() / n
		offset := mean - float64(c.Sums.ReferenceNs)
		d.MeanSeconds = mean / 1e9
		deviation = math.Sqrt(max(0, c.Sums.SquaredNs2.Float64()/n-offset*offset)) / 1e9
	}
	if p.IsLog {
		d.StddevOctaves = &deviation
		factor := exp2(p.Threshold * deviation)
		d.EarlySeconds, d.LateSeconds = finite(d.MeanSeconds/factor), finite(d.MeanSeconds*factor)
		return
	}
	d.StddevSeconds = &deviation
	d.EarlySeconds, d.LateSeconds = max(0, d.MeanSeconds-p.Threshold*deviation), d.MeanSeconds+p.Threshold*deviation
}

// upper returns the bound of a native bucket in seconds.
func upper(index int) float64 { return math.Exp2(float64(index) / (1 << timing.NativeSchema)) }

func exp2(v float64) float64 { return math.Exp2(v) }

var cellOctaves = sync.OnceValue(timing.CellOctaves)

// logMoments returns the geometric mean in seconds, and the standard deviation in octaves, of
// deltas that are taken as the middle of their cell, as in the metric delta_octaves_total.
func logMoments(h *bpf.Histogram) (mean, deviation float64) {
	var n, sum, squares float64
	for cell, octaves := range cellOctaves() {
		count := float64(h[cell])
		n, sum, squares = n+count, sum+count*octaves, squares+count*octaves*octaves
	}
	if n == 0 {
		return 0, 0
	}
	return exp2(sum/n) / 1e9, math.Sqrt(max(0, squares/n-sum*sum/n/n))
}

func newRates(series history.Series, now time.Time) Rates {
	of := func(count func(*history.Point) uint64) []*float64 {
		values := make([]*float64, sparkSteps)
		for i, v := range series.Rates(now, span, sparkSteps, count) {
			if !math.IsNaN(v) {
				values[i] = &v
			}
		}
		return values
	}
	return Rates{
		StepSeconds: (span / sparkSteps).Seconds(), PacketsPerSecond: of(packets),
		FlagsEarlyPerSecond: of(func(p *history.Point) uint64 { return p.Early }),
		FlagsLatePerSecond:  of(func(p *history.Point) uint64 { return p.Late }),
	}
}

// percentiles returns rows of a percentile with the delta of all and of the recent deltas. A delta
// is the upper bound of its bucket.
func percentiles(d *Deltas) (rows [][3]string) {
	buckets := d.Buckets
	quantile := func(p float64, zeros uint64, count func(*Bucket) uint64) string {
		total, below := zeros, zeros
		for i := range buckets {
			total += count(&buckets[i])
		}
		switch {
		case total == 0:
			return "–"
		case float64(zeros) >= p*float64(total):
			return seconds(0)
		}
		for i := range buckets {
			if below += count(&buckets[i]); float64(below) >= p*float64(total) {
				return seconds(buckets[i].UpperSeconds)
			}
		}
		return "–"
	}
	for _, p := range []float64{0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999} {
		rows = append(rows, [3]string{
			digits(100*p) + "\u00a0%", quantile(p, d.Zeros, func(b *Bucket) uint64 { return b.Count }), quantile(p, d.RecentZeros, func(b *Bucket) uint64 { return b.Recent }),
		})
	}
	return rows
}
