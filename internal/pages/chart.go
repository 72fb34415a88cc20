// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package pages

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// The charts are SVG that the templates write from these values. Geometry and colours are
// presentation attributes: the policy of the pages drops style attributes.

// spark is a small line over time.
type spark struct {
	Path  string
	Label string // for those who do not see it
	Last  string // point at the end of the line; empty if the line has none
	X, Y  float64
}

const sparkWidth, sparkHeight = 120, 28

// newSpark draws values from left to right. NaN leaves a gap. The text says what the values are.
func newSpark(values []float64, text string, format func(float64) string) spark {
	most, last := 0., math.NaN()
	for _, v := range values {
		if !math.IsNaN(v) {
			most, last = math.Max(most, v), v
		}
	}
	if math.IsNaN(last) {
		return spark{Label: text + ": no readings yet"}
	}
	s := spark{Label: fmt.Sprintf("%s, last 10 minutes: now %s, at most %s", text, format(last), format(most))}
	s.Path = line(values, func(i int, v float64) (x, y float64) {
		x = 2 + float64(i)*(sparkWidth-4)/float64(len(values)-1)
		y = sparkHeight - 3 - v/math.Max(most, 1e-9)*(sparkHeight-6)
		return x, y
	})
	return s
}

// line returns the path through values. NaN leaves a gap.
func line(values []float64, at func(i int, v float64) (x, y float64)) string {
	var path strings.Builder
	isDown := false
	for i, v := range values {
		if math.IsNaN(v) {
			isDown = false
			continue
		}
		x, y := at(i, v)
		command := byte('L')
		if !isDown {
			command = 'M'
		}
		isDown = true
		path.WriteByte(command)
		path.WriteString(coordinate(x))
		path.WriteByte(' ')
		path.WriteString(coordinate(y))
	}
	return path.String()
}

// coordinate formats a coordinate with one decimal.
func coordinate(v float64) string {
	return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64)
}

// stack is a bar of parts that add up to a total.
type stack struct {
	Name  string // of the whole
	Total uint64
	Parts []part
}

// part is a part of a stack.
type part struct {
	Name, Meaning string
	Count         uint64
	Share         float64 // of the total
	X, Width      float64 // in a bar of stackWidth
	Color         string  // name of a class of the style sheet
	Fill          string
}

const stackWidth = 1000.

// colors are the names and the values of the colours of parts: the values hold where the style
// sheet does not apply. They differ in lightness, too.
var colors = []struct{ name, fill string }{
	{"c1", "#1d4ed8"}, {"c2", "#ea580c"}, {"c3", "#0f766e"}, {"c4", "#a21caf"}, {"c5", "#ca8a04"},
	{"c6", "#be123c"}, {"c7", "#64748b"}, {"c8", "#4d7c0f"}, {"c9", "#0891b2"}, {"c10", "#7c3aed"}, {"c11", "#334155"},
}

// add appends a part.
func (s *stack) add(name, meaning string, count uint64) {
	color := colors[len(s.Parts)%len(colors)]
	s.Parts = append(s.Parts, part{Name: name, Meaning: meaning, Count: count, Color: color.name, Fill: color.fill})
	s.Total += count
}

// place computes the places of all parts in the bar.
func (s *stack) place() {
	x := 0.
	for i := range s.Parts {
		p := &s.Parts[i]
		if s.Total > 0 {
			p.Share = float64(p.Count) / float64(s.Total)
		}
		p.X, p.Width = math.Round(x*10)/10, math.Round(p.Share*stackWidth*10)/10
		x += p.Share * stackWidth
	}
}

// Label describes the bar in words.
func (s *stack) Label() string {
	var parts []string
	for _, p := range s.Parts {
		if p.Count > 0 {
			parts = append(parts, fmt.Sprintf("%s %s", p.Name, percent(&p.Share)))
		}
	}
	if len(parts) == 0 {
		return s.Name + ": none"
	}
	return fmt.Sprintf("%s %s: %s", grouped(s.Total), s.Name, strings.Join(parts, ", "))
}

// chart is a drawing with two axes.
type chart struct {
	Title, Label string // the label describes it in words
	Width        float64
	Height       float64
	Left, Right  float64 // of the area of the data
	Top, Bottom  float64
	XTicks       []tick
	YTicks       []tick
	Areas, Lines []curve
	Bars         []bar
	Dots         []dot
	Marks        []mark // vertical lines
	Levels       []mark // horizontal lines
	XName, YName string
	Legend       []part
	Empty        string // instead of data, if there are none

	x, y axis
}

type tick struct {
	At   float64
	Text string
}

type curve struct{ Path, Color, Fill string }

type bar struct {
	X, Y, Width, Height float64
	Color, Fill, Text   string
}

type dot struct {
	X, Y              float64
	Color, Fill, Text string
	IsSquare          bool
}

type mark struct {
	At, TextAt float64
	Text       string
	IsFaint    bool
	Anchor     string
}

// newChart returns a chart without data.
func newChart(title string, height float64) *chart {
	return &chart{Title: title, Width: 720, Height: height, Left: 66, Right: 698, Top: 30, Bottom: height - 40}
}

func (c *chart) legend(color int, name string) {
	c.Legend = append(c.Legend, part{Name: name, Color: colors[color].name, Fill: colors[color].fill})
}

// axis maps values of an interval to coordinates.
type axis struct {
	least, most float64
	from, to    float64
	isLog       bool
}

func (a axis) at(v float64) float64 {
	least, most := a.least, a.most
	if a.isLog {
		v, least, most = math.Log(math.Max(v, a.least/2)), math.Log(least), math.Log(most)
	}
	if most <= least {
		return a.from
	}
	position := math.Min(1.02, math.Max(-0.02, (v-least)/(most-least)))
	return math.Round((a.from+position*(a.to-a.from))*10) / 10
}

// decades returns ticks at powers of ten, fewer where there are many.
func (a axis) decades(format func(float64) string) (ticks []tick) {
	first, last := int(math.Ceil(math.Log10(a.least)-1e-9)), int(math.Floor(math.Log10(a.most)+1e-9))
	step := max(1, int(math.Ceil(float64(last-first+1)/10)))
	for e := first; e <= last; e += step {
		v := math.Pow(10, float64(e))
		ticks = append(ticks, tick{At: a.at(v), Text: format(v)})
	}
	return ticks
}

// linear returns about n ticks at round values.
func (a axis) linear(n int, format func(float64) string) (ticks []tick) {
	span := a.most - a.least
	if span <= 0 {
		return []tick{{At: a.at(a.least), Text: format(a.least)}}
	}
	step := math.Pow(10, math.Floor(math.Log10(span/float64(n))))
	for _, factor := range []float64{1, 2, 5, 10} {
		if span/(step*factor) <= float64(n) {
			step *= factor
			break
		}
	}
	for k := math.Ceil(a.least/step - 1e-9); k*step <= a.most*(1+1e-9)+1e-12; k++ {
		ticks = append(ticks, tick{At: a.at(k * step), Text: format(k * step)})
	}
	return ticks
}
