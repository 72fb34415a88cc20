// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"path/filepath"

	"gonum.org/v1/gonum/stat/distuv"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

const (
	chartWidth  = 20 * vg.Centimeter
	chartHeight = 10 * vg.Centimeter
	legendWidth = 5 * vg.Centimeter // on the right
)

// chart is a plot with its legend next to it.
type chart struct {
	plot   *plot.Plot
	legend plot.Legend
}

// palette has the colours of Okabe and Ito (2008), which colour-blind readers can distinguish.
var palette = []color.Color{
	color.RGBA{0, 114, 178, 255}, color.RGBA{213, 94, 0, 255}, color.RGBA{0, 158, 115, 255}, color.RGBA{204, 121, 167, 255},
	color.RGBA{230, 159, 0, 255}, color.RGBA{86, 180, 233, 255},
}

var dashes = []vg.Length{vg.Points(4), vg.Points(3)}

// charts returns all charts by file name.
func (r *report) charts() (map[string]*chart, error) {
	all := map[string]*chart{}
	var errs []error
	add := func(name string, c *chart, err error) {
		all[name] = c
		errs = append(errs, err)
	}
	c, err := r.scoreChart("linear")
	add("scores-linear.png", c, err)
	c, err = r.scoreChart("log2")
	add("scores-log2.png", c, err)
	c, err = r.rocChart("Delays in constant traffic", "constant, 1 ms ± 20 µs", "constant, log2")
	add("roc-constant.png", c, err)
	c, err = r.rocChart("Delays in exponential traffic", "exponential, mean 100 µs", "exponential, log2")
	add("roc-exponential.png", c, err)
	return all, errors.Join(errs...)
}

// writeCharts draws all charts into a directory.
func (r *report) writeCharts(directory string) error {
	if err := os.MkdirAll(directory, 0o755); err != nil { //nolint:gosec // documents are readable for all
		return err
	}
	all, err := r.charts()
	if err != nil {
		return err
	}
	for name, c := range all {
		var drawn bytes.Buffer
		if err := png.Encode(&drawn, c.draw()); err != nil {
			return fmt.Errorf("encoding %s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(directory, name), drawn.Bytes(), 0o644); err != nil { //nolint:gosec // the same
			return err
		}
	}
	return nil
}

func newChart(title, x, y string) *chart {
	c := &chart{plot.New(), plot.NewLegend()}
	c.plot.Title.Text, c.plot.X.Label.Text, c.plot.Y.Label.Text = title, x, y
	c.plot.Title.Padding = vg.Points(6)
	c.plot.Add(plotter.NewGrid())
	c.legend.Left, c.legend.Top = true, true
	c.legend.TextStyle.Font.Size = vg.Points(9)
	return c
}

// draw returns the image of a chart.
func (c *chart) draw() image.Image {
	canvas := vgimg.New(chartWidth, chartHeight)
	all := draw.New(canvas)
	c.plot.Draw(draw.Crop(all, 0, -legendWidth, 0, 0))
	c.legend.Draw(draw.Crop(all, chartWidth-legendWidth+vg.Points(6), 0, 0, -vg.Points(24)))
	return canvas.Image()
}

// addLine adds a line to the plot, and to the legend if the line has a name.
func (c *chart) addLine(name string, points plotter.XYs, style draw.LineStyle) error {
	line, err := plotter.NewLine(points)
	if err != nil {
		return fmt.Errorf("drawing the line %q: %w", name, err)
	}
	line.LineStyle = style
	c.plot.Add(line)
	if name != "" {
		c.legend.Add(name, line)
	}
	return nil
}

// decades has the ticks of a logarithmic axis.
type decades struct{}

func (decades) Ticks(least, most float64) []plot.Tick {
	var ticks []plot.Tick
	for e := math.Ceil(math.Log10(least) - 1e-9); e <= math.Log10(most)+1e-9; e++ {
		ticks = append(ticks, plot.Tick{Value: math.Pow(10, e), Label: fmt.Sprintf("1e%v", e)})
	}
	return ticks
}

// scoreChart shows the density of scores where nothing is planted, and Student's
// t-distribution.
func (r *report) scoreChart(domain string) (*chart, error) {
	const (
		most = 12 // |t|
		// Degrees of freedom of Student's t for a baseline of one window.
		freedom = 8191
		least   = 1e-7
	)
	c := newChart("Scores where nothing is planted, "+domain, "t", "density")
	c.plot.X.Min, c.plot.X.Max, c.plot.Y.Min, c.plot.Y.Max = -most, most, least, 2
	c.plot.Y.Scale, c.plot.Y.Tick.Marker = plot.LogScale{}, decades{}
	var errs []error
	names := []string{
		"constant, 1 ms ± 20 µs", "exponential, mean 100 µs", "lognormal, σ = 1", "Pareto, shape 1.5", "bursts and pauses",
		"AR(1), ρ = 0.9, 1 ms ± 20 µs",
	}
	for i, name := range names {
		result := r.find(tableFalseFlags, name, domain)
		if result == nil || result.Scores == nil {
			return nil, fmt.Errorf("no scores of %s, %s", name, domain)
		}
		for _, points := range density(result.Scores, most) {
			errs = append(errs, c.addLine(name, points, draw.LineStyle{Color: palette[i], Width: vg.Points(1.2)}))
			name = "" // only the first part is in the legend
		}
	}
	student := distuv.StudentsT{Sigma: 1, Nu: freedom}
	var curve plotter.XYs
	for t := -float64(most); t <= most; t += 0.05 {
		if d := student.Prob(t); d >= least {
			curve = append(curve, plotter.XY{X: t, Y: d})
		}
	}
	errs = append(errs, c.addLine("Student's t", curve, draw.LineStyle{Color: color.Black, Width: vg.Points(1.2), Dashes: dashes}))
	for _, threshold := range []float64{-4, 4} {
		errs = append(errs, c.addLine("", plotter.XYs{{X: threshold, Y: least}, {X: threshold, Y: 2}},
			draw.LineStyle{Color: color.Gray{128}, Width: vg.Points(0.7)}))
	}
	return c, errors.Join(errs...)
}

// density returns the density of scores as a step function. Cells without scores split it into
// parts.
func density(s *scores, most int) []plotter.XYs {
	var total uint64
	for i := range s.Early {
		total += s.Early[i] + s.Late[i]
	}
	var parts []plotter.XYs
	isOpen := false
	step := func(from float64, n uint64) {
		if n == 0 {
			isOpen = false
			return
		}
		if !isOpen {
			parts = append(parts, nil)
			isOpen = true
		}
		height := float64(n) / float64(total) * scoreSteps
		last := &parts[len(parts)-1]
		*last = append(*last, plotter.XY{X: from, Y: height}, plotter.XY{X: from + 1.0/scoreSteps, Y: height})
	}
	for i := most*scoreSteps - 1; i >= 0; i-- {
		step(-float64(i+1)/scoreSteps, s.Early[i])
	}
	for i := range most * scoreSteps {
		step(float64(i)/scoreSteps, s.Late[i])
	}
	return parts
}

// rocChart shows the share of late packets found against the share of other packets flagged,
// for all thresholds.
func (r *report) rocChart(title, linear, log2 string) (*chart, error) {
	const least = 1e-6
	c := newChart(title, "share of the other packets that is flagged", "share of the late packets that is flagged")
	c.plot.X.Min, c.plot.X.Max, c.plot.Y.Min, c.plot.Y.Max = least, 1, 0, 1
	c.plot.X.Scale, c.plot.X.Tick.Marker = plot.LogScale{}, decades{}
	var errs []error
	for i, column := range []string{"+3σ", "+5σ", "+8σ"} {
		for _, row := range []string{linear, log2} {
			result := r.find(tableDetection, row, column)
			if result == nil || result.Scores == nil {
				return nil, fmt.Errorf("no scores of %s, %s", row, column)
			}
			style := draw.LineStyle{Color: palette[i], Width: vg.Points(1.2)}
			name := column + ", linear"
			if row == log2 {
				style.Dashes = dashes
				name = column + ", log2"
			}
			curve, threshold := roc(result.Scores, least)
			errs = append(errs, c.addLine(name, curve, style))
			mark, err := plotter.NewScatter(plotter.XYs{threshold})
			errs = append(errs, err)
			mark.GlyphStyle = draw.GlyphStyle{Color: palette[i], Radius: vg.Points(3), Shape: draw.CircleGlyph{}}
			c.plot.Add(mark)
		}
	}
	var chance plotter.XYs
	for x := math.Log10(least); x <= 0; x += 0.05 {
		chance = append(chance, plotter.XY{X: math.Pow(10, x), Y: math.Pow(10, x)})
	}
	errs = append(errs, c.addLine("chance", chance, draw.LineStyle{Color: color.Gray{128}, Width: vg.Points(0.7)}))
	return c, errors.Join(errs...)
}

// roc returns the curve of all thresholds, and its point for a threshold of 4. Shares below
// least are drawn at least.
func roc(s *scores, least float64) (curve plotter.XYs, atFour plotter.XY) {
	const four = 4 * scoreSteps
	others := s.ordinary()
	for step := range others {
		point := plotter.XY{X: max(others.from(step), least), Y: s.Planted.from(step)}
		curve = append(curve, point)
		if step == four {
			atFour = point
		}
	}
	return curve, atFour
}
