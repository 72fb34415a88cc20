// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"bytes"
	"image"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/document"
)

const repository = "../.."

func committed(t *testing.T) *report {
	t.Helper()
	r, err := readReport(repository)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The documents contain the figures of the last full run. If this test fails, sudo make
// evaluate writes them again.
func TestDocumentsHaveTheFigures(t *testing.T) {
	r := committed(t)
	if !slices.Equal(r.Seeds, defaultSeeds) {
		t.Errorf("the figures are of the seeds %d, want %d", r.Seeds, defaultSeeds)
	}
	for _, b := range r.blocks() {
		text, err := os.ReadFile(filepath.Join(repository, b.document))
		if err != nil {
			t.Fatal(err)
		}
		want, err := document.Replace(string(text), b.name, b.text)
		if err != nil {
			t.Fatalf("%s: %v", b.document, err)
		}
		if string(text) != want {
			t.Errorf("%s: the block %q is not\n%s", b.document, b.name, b.text)
		}
	}
}

// The last full run answered the questions of the current code, and all bounds were met.
func TestFiguresAnswerTheQuestions(t *testing.T) {
	r, all := committed(t), experiments()
	if len(r.Results) != len(all) {
		t.Fatalf("there are %d figures, want %d", len(r.Results), len(all))
	}
	names := map[string]bool{}
	for i, e := range all {
		got, want := r.Results[i], e.question()
		if got.question != want {
			t.Errorf("figure %d answers %+v, want %+v", i, got.question, want)
		}
		isMet, seeds := true, 1
		for _, f := range got.figures() {
			isMet = isMet && e.bound.isMet(f.Value)
		}
		if got.IsMet != isMet || !isMet {
			t.Errorf("%v: %v, want %v", want, got.figures(), want.Bound)
		}
		if e.bound.isAsked() {
			seeds = len(defaultSeeds)
		}
		if len(got.figures()) != seeds {
			t.Errorf("%v: there are figures of %d seeds, want %d", want, len(got.figures()), seeds)
		}
		if names[want.String()] {
			t.Errorf("%v: there are two of that name", want)
		}
		names[want.String()] = true
	}
	if err := r.failed(); err != nil {
		t.Error(err)
	}
}

// The charts show the figures: the test draws them again and compares the pixels.
func TestChartsAreOfTheFigures(t *testing.T) {
	charts, err := committed(t).charts()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range charts {
		text, err := os.ReadFile(filepath.Join(repository, imagesFolder, name))
		if err != nil {
			t.Fatal(err)
		}
		got, err := png.Decode(bytes.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want := c.draw()
		// Another processor may round a pixel differently.
		const most = 1e-4
		if differs := differing(got, want); differs > most {
			t.Errorf("%s: %.4f of the pixels differ from the chart of the figures", name, differs)
		}
	}
}

// differing returns the fraction of pixels that differ; 1 for images of different sizes.
func differing(a, b image.Image) float64 {
	if a.Bounds() != b.Bounds() {
		return 1
	}
	differ, area := 0, a.Bounds()
	for x := area.Min.X; x < area.Max.X; x++ {
		for y := area.Min.Y; y < area.Max.Y; y++ {
			red, green, blue, _ := a.At(x, y).RGBA()
			r, g, b, _ := b.At(x, y).RGBA()
			if red != r || green != g || blue != b {
				differ++
			}
		}
	}
	return float64(differ) / float64(area.Dx()*area.Dy())
}

func TestBounds(t *testing.T) {
	for _, test := range []struct {
		bound bound
		text  string
		met   []float64
		not   []float64
	}{
		{bound{}, "", []float64{0, 1e9}, nil},
		{atLeast(0.65), "≥ 0.65", []float64{0.65, 1}, []float64{0, 0.64}},
		{atMost(6000), "≤ 6000", []float64{0, 6000}, []float64{6001}},
		{between(4e-5, 1e-4), "4e-5 to 1e-4", []float64{4e-5, 7e-5, 1e-4}, []float64{0, 3.9e-5, 1.1e-4}},
	} {
		if got := test.bound.String(); got != test.text {
			t.Errorf("got %q, want %q", got, test.text)
		}
		for _, v := range test.met {
			if !test.bound.isMet(v) {
				t.Errorf("%q is not met by %v", test.text, v)
			}
		}
		for _, v := range test.not {
			if test.bound.isMet(v) {
				t.Errorf("%q is met by %v", test.text, v)
			}
		}
	}
}

func TestFiguresAsText(t *testing.T) {
	for _, test := range []struct {
		figure figure
		want   string
	}{
		{shareFigure(share{263, 3_999_900, 1}), "6.6e-5 (5.8e-5–7.4e-5)"},
		{shareFigure(share{31_600, 3_999_900, 1}), "7.90e-3 (7.81e-3–7.99e-3)"},
		{shareFigure(share{7410, 10_000, 1}), "0.741 (0.732–0.750)"},
		{shareFigure(share{9960, 9962, 1}), "0.9998 (0.9993–1.0000)"},
		{shareFigure(share{0, 10_000, 1}), "0 (0–3.7e-4)"},
		{shareFigure(share{10, 10, 1}), "1 (0.6915–1)"},
		{figure{Value: 5442}, "5,442"},
		{figure{Value: 0.0791, Unit: "ns"}, "0.079 ns"},
		{figure{Value: 2502, Unit: "of 100,000"}, "2,502 of 100,000"},
	} {
		if got := test.figure.String(); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

func TestTables(t *testing.T) {
	of := func(row, column string, f figure, b bound) result {
		q := question{Table: tableShifts, Row: row, Column: column, Packets: 4_000_000, Bound: b}
		return result{question: q, IsMet: b.isMet(f.Value), figure: f}
	}
	r := report{Seeds: []uint64{1, 2}, Results: []result{
		of("a", columnFlags, figure{Value: 12}, atMost(10)),
		of("a", columnMean, figure{Value: 1, Unit: "%"}, bound{}),
		of("b", columnMean, shareFigure(share{1, 1234, 1}), atMost(0.5)),
		of("c", columnMean, shareFigure(share{2, 1234, 1}), atMost(0.5)),
		of("d", columnMean, shareFigure(share{2, 1234, 1}), atMost(0.6)),
	}}
	r.add([]result{
		of("a", columnFlags, figure{Value: 9}, atMost(10)), of("b", columnMean, shareFigure(share{3, 4, 1}), atMost(0.5)),
		of("c", columnMean, shareFigure(share{1, 4, 1}), atMost(0.5)), of("d", columnMean, shareFigure(share{1, 2, 1}), atMost(0.6)),
	})
	const wantPivot = `| traffic | flags | mean off by |
| --- | --- | --- |
| a | 12 | 1 % |
| b | | 8.1e-4 |
| c | | 1.6e-3 |
| d | | 1.6e-3 |
`
	if got := r.pivot(tableShifts, figure.text, columnFlags, columnMean); got != wantPivot {
		t.Errorf("got\n%s\nwant\n%s", got, wantPivot)
	}
	const wantBounds = `| | traffic | bound | seed 1 | seed 2 |
| --- | --- | --- | --- | --- |
| shifts, flags | a | ≤ 10 | **12** | 9 |
| shifts, mean off by | the worst of 2 | ≤ 0.5 | 1.6e-3 | **0.750** |
| shifts, mean off by | d | ≤ 0.6 | 1.6e-3 | 0.500 |
`
	if got := r.bounds(); got != wantBounds {
		t.Errorf("got\n%s\nwant\n%s", got, wantBounds)
	}
	const wantError = "shifts: a, flags: [12 9] with the seeds [1 2], want ≤ 10\n" +
		"shifts: b, mean off by: [8.1e-4 (2.1e-5–4.5e-3) 0.7500 (0.1941–0.9937)] with the seeds [1 2], want ≤ 0.5"
	if err := r.failed(); err == nil || err.Error() != wantError {
		t.Errorf("got %v, want an error that names the two bounds that are broken", err)
	}
}

// Figures of other seeds, or of some experiments only, are not written into the documents.
func TestDocumentsTakeAFullRunOnly(t *testing.T) {
	for _, test := range []struct {
		seeds []uint64
		only  string
	}{{defaultSeeds[1:], ""}, {defaultSeeds, "shifts"}} {
		var out strings.Builder
		if err := evaluate(&out, test.seeds, test.only, t.TempDir(), ""); err == nil || !strings.Contains(err.Error(), "leave out --write") {
			t.Errorf("seeds %d, only %q: got %v, want a refusal", test.seeds, test.only, err)
		}
	}
}

// A value has a margin of 1 at its bound, and of less if it breaks the bound.
func TestMargins(t *testing.T) {
	for _, test := range []struct {
		bound bound
		value float64
		want  float64
	}{
		{atLeast(0.5), 0.75, 1.5}, {atLeast(0.5), 0.25, 0.5}, {atMost(10), 5, 2}, {atMost(10), 20, 0.5}, {atMost(10), 0, math.Inf(1)},
		{between(2, 10), 3, 1.5}, {between(2, 10), 8, 1.25}, {between(2, 10), 1, 0.5},
	} {
		if got := test.bound.margin(test.value); got != test.want {
			t.Errorf("%v of %v: got %v, want %v", test.value, test.bound, got, test.want)
		}
	}
}
