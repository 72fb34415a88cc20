// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package pages

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestNumbers(t *testing.T) {
	share := func(v float64) *float64 { return &v }
	for _, test := range []struct{ what, got, want string }{
		{"a count", grouped(1234567), "1 234 567"},
		{"a small count", grouped(999), "999"},
		{"nothing", digits(0), "0"},
		{"negative nothing", digits(math.Copysign(0, -1)), "0"},
		{"three digits", digits(1.2345), "1.23"},
		{"no digits after the point", digits(12345.6), "12346"},
		{"a negative number", digits(-1.5), "−1.5"},
		{"a small number", digits(0.000123456), "0.000123"},
		{"a rate", per(1234, "pkt/s"), "1.23 kpkt/s"},
		{"a rate without prefix", per(12.345, "pkt/s"), "12.3 pkt/s"},
		{"a rate that rounds up to the next prefix", si(999_999), "1 M"},
		{"no rate", per(0, "bit/s"), "0 bit/s"},
		{"a share", percent(share(0.01234)), "1.23 %"},
		{"no share", percent(nil), "–"},
		{"a tiny share", percent(share(1e-7)), "< 0.001 %"},
		{"seconds", seconds(1.5), "1.5 s"},
		{"milliseconds", seconds(0.0111), "11.1 ms"},
		{"microseconds that round up", seconds(0.00099996), "1 ms"},
		{"nanoseconds", nanoseconds(12), "12 ns"},
		{"an age of seconds", age(59 * time.Second), "59 s"},
		{"an age of minutes", age(61 * time.Second), "1 min 1 s"},
		{"an age of days", age(50*time.Hour + 59*time.Minute), "2 d 2 h"},
		{"an age in the future", age(-time.Second), "0 s"},
		{"a score", score(-8.6612), "−8.66"},
		{"a large score", score(math.MaxFloat64), "1.80e+308"},
	} {
		if got := strings.NewReplacer("\u00a0", " ", "\u202f", " ").Replace(test.got); got != test.want {
			t.Errorf("%s: got %q, want %q", test.what, got, test.want)
		}
	}
}

func TestPhrases(t *testing.T) {
	parts := phrases("Responses to `a` are slower than to `b`.")
	if len(parts) != 5 || !parts[1].IsName || parts[1].Text != "a" || parts[4].Text != "." {
		t.Errorf("the phrases are %v", parts)
	}
}

// The parts of a bar add up, and fill it.
func TestStacksAddUp(t *testing.T) {
	s := stack{Name: "packets"}
	for _, n := range []uint64{1, 0, 2, 97} {
		s.add("part", "", n)
	}
	s.place()
	width := 0.
	for _, p := range s.Parts {
		if math.Abs(p.X-width) > 0.1 {
			t.Errorf("a part begins at %v, want %v", p.X, width)
		}
		width += p.Width
	}
	if s.Total != 100 || math.Abs(width-stackWidth) > 0.5 {
		t.Errorf("%d with a width of %v", s.Total, width)
	}
	empty := stack{Name: "flags"}
	empty.add("part", "", 0)
	empty.place()
	if got := empty.Label(); got != "flags: none" {
		t.Errorf("the label is %q", got)
	}
}

func TestTicks(t *testing.T) {
	text := func(ticks []tick) string {
		var texts []string
		for _, tick := range ticks {
			texts = append(texts, tick.Text)
		}
		return strings.Join(texts, " ")
	}
	for _, test := range []struct{ got, want string }{
		{text(axis{least: 0, most: 10, to: 100}.linear(5, digits)), "0 2 4 6 8 10"},
		{text(axis{least: -1.1, most: 1.1, to: 100}.linear(5, digits)), "−1 −0.5 0 0.5 1"},
		{text(axis{least: 0, most: 0, to: 100}.linear(5, digits)), "0"},
		{text(axis{least: 1e-4, most: 1, to: 100, isLog: true}.decades(digits)), "0.0001 0.001 0.01 0.1 1"},
		{text(axis{least: 1e-9, most: 1e12, to: 100, isLog: true}.decades(func(float64) string { return "x" })), "x x x x x x x x"},
	} {
		if test.got != test.want {
			t.Errorf("got %q, want %q", test.got, test.want)
		}
	}
}

func TestPathsOfPages(t *testing.T) {
	for path, want := range map[string]bool{
		"/metrics": false, "/": false, "/status": false, "/flagged": false, "/api/v1/status": true, "/api": true, "/device/x/y": true, "/assets/a": true,
		"/config": true, "/config/x": false, "/x/api": false,
	} {
		if got := IsTaken(path); got != want {
			t.Errorf("%s is taken: %t", path, got)
		}
	}
}
