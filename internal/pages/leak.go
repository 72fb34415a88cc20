// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package pages

import (
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/assessment"
	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

// LeakPage is the content of the page of leak assessments.
type LeakPage struct {
	Time        time.Time        `json:"time"`
	Assessments []LeakAssessment `json:"assessments"`
}

// LeakAssessment is the state of an assessment.
type LeakAssessment struct {
	Name     string            `json:"name"`
	Device   string            `json:"device,omitempty"` // empty: every audited device
	Protocol string            `json:"protocol"`
	Port     uint16            `json:"port"`
	Classes  [2]LeakClass      `json:"classes"`
	Requests uint64            `json:"requests"` // that have ended
	Held     uint64            `json:"held"`     // that wait to be judged
	Excluded map[string]uint64 `json:"excluded"` // by reason
	Report   leak.Report       `json:"report"`

	ExcludedBar  stack  `json:"-"`
	Distribution *chart `json:"-"`
	Differences  *chart `json:"-"`
	Evidence     *chart `json:"-"`
	Effect       *chart `json:"-"`
}

// LeakClass is a class of requests with the native histogram of its response times.
type LeakClass struct {
	Name    string       `json:"name"`
	Matches string       `json:"matches"` // as in the configuration
	Buckets []LeakBucket `json:"buckets"`

	counts []count
}

// LeakBucket is a bucket of a native histogram of schema 3.
type LeakBucket struct {
	UpperSeconds float64 `json:"upper_seconds"`
	Count        uint64  `json:"count"`
}

// leak returns the content of the page of leak assessments.
func (s *Site) leak(r *http.Request) (any, error) {
	p := &LeakPage{Time: s.Now(), Assessments: []LeakAssessment{}}
	states := s.Leak()
	for i := range states {
		a := newLeakAssessment(&states[i])
		if !isAPI(r) {
			a.draw()
		}
		p.Assessments = append(p.Assessments, a)
	}
	return p, nil
}

func newLeakAssessment(state *assessment.Status) LeakAssessment {
	of := &state.Assessment
	a := LeakAssessment{
		Name: of.Name, Device: of.Device, Protocol: of.Protocol.String(), Port: of.Port,
		Requests: state.Received, Held: state.Held, Excluded: map[string]uint64{}, Report: state.Report,
	}
	a.ExcludedBar.Name = "requests that have ended"
	for i := range a.Classes {
		c := &a.Classes[i]
		c.Name, c.Matches, c.Buckets = state.Report.Classes[i].Name, of.Classes[i].String(), []LeakBucket{}
		buckets, _ := state.Times[i].Native()
		c.counts = native(buckets)
		for _, b := range buckets {
			c.Buckets = append(c.Buckets, LeakBucket{upper(b.Index), b.Count})
		}
		a.ExcludedBar.add("responses to "+c.Name, "judged", state.Responses[i])
	}
	for _, levels := range []*[]float64{&a.Report.Slower, &a.Report.Faster} {
		if *levels == nil {
			*levels = []float64{} // not null
		}
	}
	for reason := bpf.ExclusionNone + 1; reason < bpf.NumExclusions; reason++ {
		a.Excluded[reason.String()] = state.Excluded[reason]
		a.ExcludedBar.add(reason.String(), "excluded", state.Excluded[reason])
	}
	a.ExcludedBar.add("waiting", "for others that arrived before", state.Held)
	a.ExcludedBar.place()
	return a
}

func (a *LeakAssessment) draw() {
	a.Distribution = a.drawDistribution()
	a.Differences = a.drawDifferences()
	a.Evidence = a.drawEvidence()
	a.Effect = a.drawEffect()
}

func (a *LeakAssessment) drawDistribution() *chart {
	c := newChart("Response times", 280)
	c.XName, c.YName = "response time", "share of the class"
	c.histograms(a.Classes[0].counts, a.Classes[1].counts)
	if len(c.Areas)+len(c.Lines) == 0 {
		c.Empty = "There are no responses yet."
		return c
	}
	c.legend(0, a.Classes[0].Name)
	c.legend(1, a.Classes[1].Name)
	medians := [2]string{}
	for i := range a.Report.Classes {
		medians[i] = nanoseconds(a.median(i))
	}
	c.Label = fmt.Sprintf("Histograms of the response times of both classes with logarithmic axes: medians %s and %s", medians[0], medians[1])
	return c
}

func (a *LeakAssessment) median(class int) float64 {
	for k, level := range a.Report.Quantiles {
		if level == 0.5 {
			return a.Report.Classes[class].QuantilesNs[k]
		}
	}
	return 0
}

// drawDifferences draws by how much the quantiles of the second class differ from those of the
// first.
func (a *LeakAssessment) drawDifferences() *chart {
	c := newChart("Difference by quantile", 240)
	r := &a.Report
	c.XName, c.YName = "quantile", "slower by"
	if r.Classes[0].Responses == 0 || r.Classes[1].Responses == 0 {
		c.Empty = "There are no responses of both classes yet."
		return c
	}
	most := r.TargetNs
	differences := make([]float64, len(r.Quantiles))
	for k := range r.Quantiles {
		differences[k] = r.Classes[1].QuantilesNs[k] - r.Classes[0].QuantilesNs[k]
		most = max(most, math.Abs(differences[k]))
	}
	c.x = axis{least: 0, most: 1, from: c.Left, to: c.Right}
	c.XTicks = c.x.linear(10, func(v float64) string { return digits(100*v) + "\u00a0%" })
	c.y = axis{least: -1.15 * most, most: 1.15 * most, from: c.Bottom, to: c.Top}
	c.YTicks = c.y.linear(5, nanoseconds)
	c.Levels = []mark{{At: c.y.at(0), Text: ""}}
	if r.TargetNs > 0 {
		c.Levels = append(c.Levels, mark{At: c.y.at(r.TargetNs), Text: "target"}, mark{At: c.y.at(-r.TargetNs)})
	}
	c.Lines = append(c.Lines, curve{
		Path:  line(differences, func(i int, v float64) (x, y float64) { return c.x.at(r.Quantiles[i]), c.y.at(v) }),
		Color: colors[1].name, Fill: colors[1].fill,
	})
	for k, v := range differences {
		c.Dots = append(c.Dots, dot{
			X: c.x.at(r.Quantiles[k]), Y: c.y.at(v), Color: colors[1].name, Fill: colors[1].fill,
			Text: fmt.Sprintf("%s %%: %s", digits(100*r.Quantiles[k]), nanoseconds(v)),
		})
	}
	c.legend(1, a.Classes[1].Name+" against "+a.Classes[0].Name)
	c.Label = fmt.Sprintf("By how much responses to %s are slower than those to %s at each quantile: from %s to %s at most", a.Classes[1].Name, a.Classes[0].Name, nanoseconds(-most), nanoseconds(most))
	return c
}

// drawEvidence draws the evidence over the pairs. The axis is that of the logarithm.
func (a *LeakAssessment) drawEvidence() *chart {
	c := newChart("Evidence", 240)
	r := &a.Report
	c.XName, c.YName = "pairs", "evidence"
	points := r.Course
	if len(points) < 2 {
		c.Empty = "There are too few pairs yet."
		return c
	}
	wanted := -math.Log10(r.Alpha)
	least, most := 0., wanted*1.2
	for _, p := range points {
		least, most = min(least, p.CurrentLog10), max(most, p.Log10*1.05)
	}
	least = max(least, -most)
	c.x = axis{least: 0, most: float64(points[len(points)-1].Pairs), from: c.Left, to: c.Right}
	c.XTicks = c.x.linear(6, si)
	c.y = axis{least: least, most: most, from: c.Bottom, to: c.Top}
	c.YTicks = c.y.linear(5, func(v float64) string {
		if v == math.Trunc(v) && math.Abs(v) < 4 {
			return digits(math.Pow(10, v))
		}
		return "1e" + digits(v)
	})
	c.Levels = []mark{{At: c.y.at(wanted), Text: "1/α = " + grouped(uint64(math.Round(1/r.Alpha)))}}
	for k, of := range []func(leak.Point) float64{func(p leak.Point) float64 { return p.CurrentLog10 }, func(p leak.Point) float64 { return p.Log10 }} {
		values := make([]float64, len(points))
		for i := range points {
			values[i] = of(points[i])
		}
		color := 1 - k
		c.Lines = append(c.Lines, curve{
			Path:  line(values, func(i int, v float64) (x, y float64) { return c.x.at(float64(points[i].Pairs)), c.y.at(v) }),
			Color: colors[color].name, Fill: colors[color].fill,
		})
	}
	c.legend(0, "highest so far")
	c.legend(1, "current")
	c.Label = fmt.Sprintf("Evidence over the pairs with a logarithmic axis: 10 to the power of %s; it decides at %s", digits(r.EvidenceLog10), grouped(uint64(math.Round(1/r.Alpha))))
	return c
}

// drawEffect draws the effect with its interval, and the target.
func (a *LeakAssessment) drawEffect() *chart {
	c := newChart("Effect at the median", 110)
	r := &a.Report
	if !r.HasInterval {
		c.Empty = "There are too few pairs for an interval."
		return c
	}
	most := 1.15 * max(r.TargetNs, math.Abs(r.LowNs), math.Abs(r.HighNs))
	c.x = axis{least: -most, most: most, from: c.Left, to: c.Right}
	c.XTicks = c.x.linear(6, nanoseconds)
	c.Top, c.Bottom = 30, c.Height-40
	middle := (c.Top + c.Bottom) / 2
	c.Bars = append(c.Bars, bar{
		X: c.x.at(r.LowNs), Width: max(2, c.x.at(r.HighNs)-c.x.at(r.LowNs)), Y: middle - 6, Height: 12, Color: colors[0].name, Fill: colors[0].fill,
		Text: nanoseconds(r.LowNs) + " to " + nanoseconds(r.HighNs),
	})
	c.Dots = append(c.Dots, dot{X: c.x.at(r.EffectNs), Y: middle, Color: colors[1].name, Fill: colors[1].fill, Text: nanoseconds(r.EffectNs)})
	c.mark(c.x.at(0), "0", true)
	if r.TargetNs > 0 {
		c.mark(c.x.at(r.TargetNs), "target", false)
		c.mark(c.x.at(-r.TargetNs), "target", false)
	}
	c.XName = "responses to " + a.Classes[1].Name + " are slower by"
	c.Label = fmt.Sprintf("Median difference %s, 95 %% interval from %s to %s, target %s", nanoseconds(r.EffectNs), nanoseconds(r.LowNs), nanoseconds(r.HighNs), nanoseconds(r.TargetNs))
	return c
}
