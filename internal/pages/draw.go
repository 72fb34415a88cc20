// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package pages

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/history"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// drawDistribution draws the deltas of a device: all as an area, the recent ones as a line.
func (s *Site) drawDistribution(d *Deltas, p *DevicePage) *chart {
	c := newChart("Distribution", 320)
	c.XName, c.YName = "time since the flow's last packet", "share of the times"
	if d.Count == 0 || len(d.Buckets) == 0 {
		c.Empty = "No inter-arrival time has been measured yet."
		return c
	}
	all := make([]count, 0, len(d.Buckets))
	recent := make([]count, 0, len(d.Buckets))
	for i := range d.Buckets {
		all = append(all, count{d.Buckets[i].index, d.Buckets[i].Count})
		recent = append(recent, count{d.Buckets[i].index, d.Buckets[i].Recent})
	}
	c.histograms(all, recent)
	c.legend(0, "since the start")
	if d.RecentSince != nil {
		c.legend(1, "last "+age(p.Time.Sub(*d.RecentSince)))
	}
	x := c.x
	place := func(at float64, text string, isFaint bool) {
		if at > 0 && at >= x.least && at <= x.most {
			c.mark(x.at(at), text, isFaint)
		}
	}
	place(d.MeanSeconds, "mean", false)
	spread, earlier, later := "", 0., 0.
	switch {
	case d.StddevOctaves != nil:
		spread = digits(*d.StddevOctaves) + " octaves"
		earlier, later = d.MeanSeconds/exp2(*d.StddevOctaves), d.MeanSeconds*exp2(*d.StddevOctaves)
	case d.StddevSeconds != nil:
		spread = seconds(*d.StddevSeconds)
		earlier, later = d.MeanSeconds-*d.StddevSeconds, d.MeanSeconds+*d.StddevSeconds
	}
	place(earlier, "", true)
	place(later, "", true)
	place(d.EarlySeconds, "early", false)
	place(d.LateSeconds, "late", false)
	c.Label = fmt.Sprintf("Histogram of %s inter-arrival times with logarithmic axes: mean %s, standard deviation %s; |t| reaches %s at %s",
		grouped(d.Count), seconds(d.MeanSeconds), spread, digits(p.Threshold), seconds(d.LateSeconds))
	return c
}

// count is the number of times in a native bucket.
type count struct {
	index int
	n     uint64
}

// histograms draws up to two histograms with logarithmic axes: the first as an area, the second as
// a line. Both are shares of their own sum. It sets the axes.
func (c *chart) histograms(area, outline []count) {
	first, last := math.MaxInt, math.MinInt
	totals, least := [2]float64{}, 1.
	for k, counts := range [][]count{area, outline} {
		for _, b := range counts {
			if b.n > 0 {
				first, last = min(first, b.index), max(last, b.index)
				totals[k] += float64(b.n)
			}
		}
		if totals[k] > 0 {
			least = min(least, 1/totals[k])
		}
	}
	if first > last {
		return
	}
	for ; last-first < 8*4; first, last = first-1, last+1 { // not less than four octaves
	}
	first, last = first-2, last+2
	c.x = axis{least: upper(first - 1), most: upper(last), from: c.Left, to: c.Right, isLog: true}
	// Twelve decades would make the common times look like the rare ones.
	c.y = axis{least: max(1e-7, least/2), most: 1, from: c.Bottom, to: c.Top, isLog: true}
	c.XTicks, c.YTicks = c.x.decades(seconds), c.y.decades(func(v float64) string { return digits(100*v) + "\u00a0%" })
	if len(c.XTicks) < 3 {
		c.XTicks = c.x.halves(seconds)
	}
	if totals[0] > 0 {
		c.Areas = append(c.Areas, curve{Path: c.steps(area, totals[0], first, last, true), Color: colors[0].name, Fill: colors[0].fill})
	}
	if totals[1] > 0 {
		c.Lines = append(c.Lines, curve{Path: c.steps(outline, totals[1], first, last, false), Color: colors[1].name, Fill: colors[1].fill})
	}
}

// halves returns ticks at 1, 2 and 5 times the powers of ten.
func (a axis) halves(format func(float64) string) (ticks []tick) {
	for e := math.Floor(math.Log10(a.least)); e <= math.Ceil(math.Log10(a.most)); e++ {
		for _, factor := range []float64{1, 2, 5} {
			if v := factor * math.Pow(10, e); v >= a.least && v <= a.most {
				ticks = append(ticks, tick{At: a.at(v), Text: format(v)})
			}
		}
	}
	return ticks
}

// steps returns the path of a histogram.
func (c *chart) steps(counts []count, total float64, first, last int, isClosed bool) string {
	shares := map[int]float64{}
	for _, b := range counts {
		shares[b.index] = float64(b.n) / total
	}
	var path strings.Builder
	fmt.Fprintf(&path, "M%s %s", coordinate(c.x.at(upper(first-1))), coordinate(c.Bottom))
	height := c.Bottom
	for index := first; index <= last; index++ {
		y := c.Bottom
		if share := shares[index]; share > 0 {
			y = c.y.at(share)
		}
		if y != height {
			fmt.Fprintf(&path, "H%sV%s", coordinate(c.x.at(upper(index-1))), coordinate(y))
			height = y
		}
	}
	fmt.Fprintf(&path, "H%sV%s", coordinate(c.x.at(upper(last))), coordinate(c.Bottom))
	if isClosed {
		path.WriteByte('Z')
	}
	return path.String()
}

// mark draws a vertical line. Marks with a text are moved apart.
func (c *chart) mark(at float64, text string, isFaint bool) {
	m := mark{At: at, TextAt: at, Text: text, IsFaint: isFaint, Anchor: "middle"}
	if at > c.Right-40 {
		m.Anchor = "end"
	}
	for i := range c.Marks {
		if text != "" && c.Marks[i].Text != "" && math.Abs(c.Marks[i].TextAt-m.TextAt) < 34 {
			m.TextAt = c.Marks[i].TextAt + math.Copysign(34, m.At-c.Marks[i].At)
		}
	}
	c.Marks = append(c.Marks, m)
}

// timeAxis sets the axis of the last ten minutes.
func (c *chart) timeAxis() {
	c.x = axis{least: -span.Seconds(), most: 0, from: c.Left, to: c.Right}
	for minutes := 10; minutes >= 0; minutes -= 2 {
		text := fmt.Sprintf("−%d\u00a0min", minutes)
		if minutes == 0 {
			text = "now"
		}
		c.XTicks = append(c.XTicks, tick{At: c.x.at(float64(-60 * minutes)), Text: text})
	}
}

// drawFlags draws the flags of the last ten minutes, early above late.
func drawFlags(series history.Series, now time.Time) *chart {
	c := newChart("Flags", 220)
	c.YName = "flags per second"
	c.timeAxis()
	late := series.Rates(now, span, sparkSteps, func(p *history.Point) uint64 { return p.Late })
	early := series.Rates(now, span, sparkSteps, func(p *history.Point) uint64 { return p.Early })
	most, isKnown := 0., false
	for i := range late {
		if !math.IsNaN(late[i]) {
			isKnown, most = true, max(most, late[i]+early[i])
		}
	}
	if !isKnown {
		c.Empty = "There are no readings yet."
		return c
	}
	c.legend(1, "late")
	c.legend(0, "early")
	c.y = axis{least: 0, most: max(most, 0.1) * 1.05, from: c.Bottom, to: c.Top}
	c.YTicks = c.y.linear(4, digits)
	width := (c.Right - c.Left) / sparkSteps
	for i := range late {
		base := c.Bottom
		for _, part := range []struct {
			rate  float64
			color int
			name  string
		}{{late[i], 1, "late"}, {early[i], 0, "early"}} {
			if !(part.rate > 0) {
				continue
			}
			height := c.Bottom - c.y.at(part.rate)
			base -= height
			c.Bars = append(c.Bars, bar{
				X: math.Round((c.Left+float64(i)*width+0.5)*10) / 10, Width: math.Round((width-1)*10) / 10, Y: math.Round(base*10) / 10, Height: math.Round(height*10) / 10,
				Color: colors[part.color].name, Fill: colors[part.color].fill,
				Text: fmt.Sprintf("%s %s flags per second", digits(part.rate), part.name),
			})
		}
	}
	c.Label = fmt.Sprintf("Flags of the last 10 minutes in steps of 10 seconds: at most %s per second", digits(most))
	return c
}

// drawScores draws the scores of the last events of a device within ten minutes.
func (s *Site) drawScores(name string, now time.Time) *chart {
	c := newChart("Scores of the last events", 240)
	c.YName = "|t|"
	c.timeAxis()
	threshold := max(s.Audit.Threshold, 1)
	c.y = axis{least: threshold / 1.2, most: threshold * 10, from: c.Bottom, to: c.Top, isLog: true}
	events, _ := s.Flags.Last()
	var within []dot
	var scores []float64
	for i := range events {
		e := &events[i]
		if e.Device != name {
			continue
		}
		ago := now.Sub(e.WallTime()) // by the current setting of the clock
		if ago > span || ago < -history.Interval {
			continue
		}
		t := finite(e.Score())
		d := dot{X: c.x.at(-ago.Seconds()), Color: colors[1].name, Fill: colors[1].fill, Text: fmt.Sprintf("%s: t = %s", clock(e.Time), score(t))}
		if !e.Late {
			d.IsSquare, d.Color, d.Fill = true, colors[0].name, colors[0].fill
		}
		within, scores = append(within, d), append(scores, math.Abs(t))
		c.y.most = max(c.y.most, math.Abs(t)*1.3)
	}
	if len(within) == 0 {
		c.Empty = "There was no event in the last 10 minutes."
		return c
	}
	for i := range within {
		within[i].Y = c.y.at(scores[i])
	}
	c.Dots = within
	c.YTicks = c.y.decades(digits)
	if len(c.YTicks) < 2 {
		c.YTicks = append(c.YTicks, tick{At: c.y.at(threshold), Text: digits(threshold)})
	}
	c.Levels = []mark{{At: c.y.at(threshold), Text: "threshold"}}
	c.legend(1, "late")
	c.legend(0, "early")
	c.Label = fmt.Sprintf("Scores of the last %d events within 10 minutes, with a logarithmic axis", len(within))
	return c
}

// native returns the counts of native buckets.
func native(buckets []timing.NativeBucket) (counts []count) {
	for _, b := range buckets {
		counts = append(counts, count{b.Index, b.Count})
	}
	return counts
}
