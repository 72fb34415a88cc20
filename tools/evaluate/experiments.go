// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

// experiments returns all experiments. A new subject gets a file like falseflags.go and an
// entry here.
func experiments() []experiment {
	return slices.Concat(
		falseFlags(), detections(), commonLeaks(), leaksInRuns(), shifts(), restarts(), calibrated(), neighbours(), ownLeaks(), firstFlags(),
		covertWindows(), fleets(), leaks(),
	)
}

// experiment measures one figure of the audit. The figure appears in a row and a column of a
// table; table, row and column are the name of the experiment.
type experiment struct {
	table, row, column string
	config             bpf.Config // the lab sets device and clock
	packets            int        // in a full run
	bound              bound
	measure            func(l *lab, r run) (figure, error)
}

// run has the parameters of one run of an experiment.
type run struct {
	seed    uint64
	config  bpf.Config
	packets int
}

// run runs the experiment with a part of its packets, 1 for all.
func (e *experiment) run(l *lab, seed uint64, part float64) (result, error) {
	f, err := e.measure(l, run{seed: seed, config: e.config, packets: int(float64(e.packets) * part)})
	if err != nil {
		return result{}, fmt.Errorf("%v: %w", e.question(), err)
	}
	return result{question: e.question(), IsMet: e.bound.isMet(f.Value), figure: f}, nil
}

// once shares one measurement among several experiments. Each experiment takes one figure of
// it.
func once[T any](measure func(*lab, run) (T, error)) func(*lab, run) (T, error) {
	var found T
	var err error
	isDone := false
	return func(l *lab, r run) (T, error) {
		if !isDone {
			found, err = measure(l, r)
			isDone = true
		}
		return found, err
	}
}

// pick returns one figure of what several experiments share.
func pick[T any](measure func(*lab, run) (T, error), of func(T) figure) func(*lab, run) (figure, error) {
	return func(l *lab, r run) (figure, error) {
		found, err := measure(l, r)
		if err != nil {
			return figure{}, err
		}
		return of(found), nil
	}
}

// figure is the result of an experiment.
type figure struct {
	Value  float64 `json:"value"`
	Unit   string  `json:"unit,omitempty"` // empty for shares and counts
	Share  *share  `json:"share,omitempty"`
	Scores *scores `json:"scores,omitempty"` // scores of the measured packets
}

func shareFigure(s share) figure { return figure{Value: s.value(), Share: &s} }

// String returns the figure with as many digits as are significant, and with its interval if it
// has one.
func (f figure) String() string {
	if f.Share == nil {
		return f.text()
	}
	low, high := f.Share.interval(confidence)
	digits, decimals := 2, 3
	if high < 1.1*low {
		digits = 3
	}
	if high > 0.99 {
		decimals = 4
	}
	return fmt.Sprintf("%s (%s–%s)", shareText(f.Value, digits, decimals), shareText(low, digits, decimals), shareText(high, digits, decimals))
}

// text returns the figure without its interval.
func (f figure) text() string {
	switch {
	case f.Share != nil && f.Value > 0.99:
		return shareText(f.Value, 2, 4)
	case f.Share != nil:
		return shareText(f.Value, 2, 3)
	case f.Unit == "":
		return grouped(int(f.Value))
	case f.Value == math.Trunc(f.Value):
		return grouped(int(f.Value)) + " " + f.Unit
	}
	return strconv.FormatFloat(f.Value, 'f', 3, 64) + " " + f.Unit
}

// shareText formats a share with that many digits, or with that many decimals if it is at least
// 0.1.
func shareText(v float64, digits, decimals int) string {
	switch {
	case v == 0 || v == 1:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case v >= 0.1:
		return strconv.FormatFloat(v, 'f', decimals, 64)
	}
	return shortExponent(strconv.FormatFloat(v, 'e', digits-1, 64))
}

// confidence is the confidence level of the intervals shown.
const confidence = 0.95

// question identifies an experiment and its conditions.
type question struct {
	Table   string `json:"table"`
	Row     string `json:"row"`
	Column  string `json:"column"`
	Flags   string `json:"flags,omitempty"` // other than the defaults
	Packets int    `json:"packets"`
	Bound   bound  `json:"bound,omitzero"` // what must hold
}

func (e *experiment) question() question {
	return question{
		Table: e.table, Row: e.row, Column: e.column, Flags: flagsOf(e.config), Packets: e.packets, Bound: e.bound,
	}
}

// String returns the name of the experiment.
func (q question) String() string { return q.Table + ": " + q.Row + ", " + q.Column }

// result is the figure of the first seed, with the question it answers.
type result struct {
	question
	IsMet bool `json:"met"` // by the figures of all seeds
	figure
	Others []figure `json:"others,omitempty"` // of the other seeds; none if there is no bound
}

// figures returns the figures of all seeds.
func (r *result) figures() []figure { return append([]figure{r.figure}, r.Others...) }

// bound is the range that a figure must be in. A figure is never negative. The zero value
// accepts everything except NaN.
type bound struct {
	Least float64 `json:"least,omitempty"` // 0 for none
	Most  float64 `json:"most,omitempty"`  // the same
}

func atLeast(least float64) bound { return bound{Least: least} }

func atMost(most float64) bound { return bound{Most: most} }

func between(least, most float64) bound { return bound{least, most} }

func (b bound) isMet(value float64) bool {
	return !math.IsNaN(value) && value >= b.Least && (b.Most == 0 || value <= b.Most)
}

func (b bound) isAsked() bool { return b != bound{} }

// margin says how far a value is from what would break the bound: 1 at the bound, more if it is
// met, and less if not.
func (b bound) margin(value float64) float64 {
	margin := math.Inf(1)
	if b.Least > 0 {
		margin = value / b.Least
	}
	if b.Most > 0 {
		margin = min(margin, b.Most/value)
	}
	return margin
}

// String returns the bound as shown in tables; empty for no bound.
func (b bound) String() string {
	switch {
	case b == bound{}:
		return ""
	case b.Most == 0:
		return "≥ " + shortNumber(b.Least)
	case b.Least == 0:
		return "≤ " + shortNumber(b.Most)
	}
	return shortNumber(b.Least) + " to " + shortNumber(b.Most)
}

// shortNumber formats a number without trailing zeros.
func shortNumber(v float64) string {
	if v < 0.01 {
		return shortExponent(strconv.FormatFloat(v, 'e', -1, 64))
	}
	return strconv.FormatFloat(v, 'f', -1, 64)
}

// shortExponent turns 1.0e-04 into 1.0e-4.
func shortExponent(s string) string { return strings.Replace(s, "e-0", "e-", 1) }
