// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leaklab

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/document"
)

// report has the figures of all experiments.
type report struct {
	experiments []*experiment
	load        string // of the machine before
	took        time.Duration
}

// titles are the names of servers in tables.
var titles = map[string]string{netHTTP: "net/http", nginx: "nginx"}

// loadAverage returns the number of threads that were ready to run in the last minute.
func loadAverage(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		t.Fatal(err)
	}
	load, _, _ := strings.Cut(string(text), " ")
	return load
}

// String returns the experiment as in the first columns of a table.
func (e *experiment) String() string {
	path := "steady"
	if e.jitter > 0 {
		path = fmt.Sprintf("%d µs of jitter", e.jitter.Microseconds())
	}
	planted := "nothing"
	if e.planted > 0 {
		planted = fmt.Sprintf("%d µs", e.planted.Microseconds())
	}
	return fmt.Sprintf("%s | %s | %v | %s", titles[e.server], planted, e.order, path)
}

// of returns a value of each run, in rising order.
func of[T int | float64](e *experiment, value func(o *outcome) T) (all []T) {
	for i := range e.outcomes {
		all = append(all, value(&e.outcomes[i]))
	}
	slices.Sort(all)
	return all
}

// level returns the value at a level of sorted values: of 20 runs, the level 0.95 is that of the
// 19th.
func level[T int | float64](sorted []T, p float64) T {
	return sorted[max(0, int(math.Ceil(p*float64(len(sorted))))-1)]
}

func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}

func pairsText(pairs int) string {
	if pairs == never {
		return "never"
	}
	return thousands(pairs)
}

func microseconds(ns float64) string {
	us := ns / 1000
	switch {
	case math.Abs(us) < 9.995:
		return fmt.Sprintf("%.2f", us)
	case math.Abs(us) < 99.95:
		return fmt.Sprintf("%.1f", us)
	}
	return fmt.Sprintf("%.0f", us)
}

// markdown returns the tables, and the bounds that do not hold.
func (r *report) markdown() (text string, failed []string) {
	var b strings.Builder
	met := func(is bool, what string) string {
		if is {
			return "yes"
		}
		failed = append(failed, what)
		return "**no**"
	}
	b.WriteString("| server | planted | labels | path | pairs, median | 19 of 20 runs | must | met | client: median | 19 of 20 runs |\n" +
		"| --- | --: | --- | --- | --: | --: | --: | --- | --: | --: |\n")
	for _, e := range r.experiments {
		kernel := of(e, func(o *outcome) int { return o.kernel.pairs })
		client := of(e, func(o *outcome) int { return o.client.pairs })
		must, isMet := "≤ "+thousands(e.pairs), level(kernel, 0.95) <= e.pairs
		if e.planted == 0 {
			must, isMet = "never", kernel[0] == never
		}
		fmt.Fprintf(&b, "| %v | %s | **%s** | %s | %s | %s | %s |\n", e, pairsText(level(kernel, 0.5)), pairsText(level(kernel, 0.95)), must,
			met(isMet, fmt.Sprintf("%v: 19 of 20 runs need %s pairs, must be %s", e, pairsText(level(kernel, 0.95)), must)), pairsText(level(client, 0.5)), pairsText(level(client, 0.95)))
	}
	b.WriteString("\n| server | planted | labels | path | handler, µs | capture, µs | kernel, µs | ± µs | has handler's | has capture's | client, µs | ± µs |\n" +
		"| --- | --: | --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |\n")
	for _, e := range r.experiments {
		median := func(value func(o *outcome) float64) string { return microseconds(level(of(e, value), 0.5)) }
		fmt.Fprintf(&b, "| %v | %s | %s | %s | %s | %d | %d | %s | %s |\n", e, median(func(o *outcome) float64 { return o.handler }),
			median(func(o *outcome) float64 { return o.capture }), median(func(o *outcome) float64 { return o.kernel.effect }),
			median(func(o *outcome) float64 { return (o.kernel.high - o.kernel.low) / 2 }),
			e.inside(func(o *outcome) float64 { return o.handler }), e.inside(func(o *outcome) float64 { return o.capture }),
			median(func(o *outcome) float64 { return o.client.effect }), median(func(o *outcome) float64 { return (o.client.high - o.client.low) / 2 }))
	}
	b.WriteString("\n| server | runs | effect inside of the interval | must | met | requests | excluded | longer than the handler, median | 99 of 100 | within 50 µs | capture differs by, median | 99 of 100 |\n" +
		"| --- | --: | --: | --: | --- | --: | --: | --: | --: | --: | --: | --: |\n")
	for _, server := range serverNames {
		var overhead, disagreement []float64
		runs, inside, excluded := 0, 0, 0
		for _, e := range r.experiments {
			if e.server != server {
				continue
			}
			runs += len(e.outcomes)
			inside += e.inside(e.truth)
			for _, o := range e.outcomes {
				overhead, disagreement, excluded = append(overhead, o.overhead...), append(disagreement, o.disagreement...), excluded+o.excluded
			}
		}
		slices.Sort(overhead)
		slices.Sort(disagreement)
		within, _ := slices.BinarySearch(overhead, 50e3)
		fmt.Fprintf(&b, "| %s | %d | **%d** | ≥ 95 %% | %s | %s | %d | %s µs | %s µs | %.4f | %s µs | %s µs |\n", titles[server], runs, inside,
			met(100*inside >= 95*runs, fmt.Sprintf("%s: the effect is inside of %d of %d intervals", server, inside, runs)),
			thousands(len(overhead)), excluded, microseconds(level(overhead, 0.5)), microseconds(level(overhead, 0.99)), float64(within)/float64(len(overhead)),
			microseconds(level(disagreement, 0.5)), microseconds(level(disagreement, 0.99)))
	}
	return b.String(), failed
}

// inside returns how many of the intervals have the effect inside.
func (e *experiment) inside(effect func(o *outcome) float64) (n int) {
	for i := range e.outcomes {
		if o := &e.outcomes[i]; o.kernel.has(effect(o)) {
			n++
		}
	}
	return n
}

// writeTo replaces the figures in a Markdown file.
func (r *report) writeTo(path string) error {
	machine, err := document.ThisMachine()
	if err != nil {
		return err
	}
	tables, _ := r.markdown()
	return document.Update(path, "planted", fmt.Sprintf("%v.\n%s, runs of each kind: %d, in %v. Load average before: %s.\n\n%s",
		machine, time.Now().Format(time.DateOnly), len(r.experiments[0].outcomes), r.took.Round(time.Minute), r.load, tables))
}
