// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/xdp-audit/xdp_audit_exporter/internal/covert/trial"
	"github.com/xdp-audit/xdp_audit_exporter/internal/document"
)

// Paths of the documents that contain figures, relative to the repository.
const (
	statisticsDocument = "docs/statistics.md"
	limitsDocument     = "docs/limits.md"
	leakDocument       = "docs/leak.md"
	figuresFile        = "docs/statistics.json"
	imagesFolder       = "docs/images"
)

// report has all results of a run. Those of recordings need no seed. A run without recordings
// keeps those of an earlier one in the documents.
type report struct {
	Seeds      []uint64 `json:"seeds"`
	Results    []result `json:"results"`
	Recordings []result `json:"recordings,omitempty"`
}

// all returns the results of all experiments.
func (r *report) all() []result { return slices.Concat(r.Results, r.Recordings) }

// add adds the results of another seed. The plots show the scores of the first seed only.
func (r *report) add(results []result) {
	for _, found := range results {
		first := r.find(found.Table, found.Row, found.Column)
		found.Scores = nil
		first.Others = append(first.Others, found.figure)
		first.IsMet = first.IsMet && found.IsMet
	}
}

// in returns the results of a table, in their order.
func (r *report) in(table string) []result {
	var all []result
	for _, result := range r.all() {
		if result.Table == table {
			all = append(all, result)
		}
	}
	return all
}

// find returns the result of a row and a column, or nil.
func (r *report) find(table, row, column string) *result {
	for _, results := range [][]result{r.Results, r.Recordings} {
		for i := range results {
			q := results[i].question
			if q.Table == table && q.Row == row && q.Column == column {
				return &results[i]
			}
		}
	}
	return nil
}

// failed returns an error that names every bound that is not met.
func (r *report) failed() error {
	var errs []error
	for _, result := range r.all() {
		if !result.IsMet {
			errs = append(errs, fmt.Errorf("%v: %v with the seeds %v, want %s", result.question, result.figures(), r.Seeds, result.Bound))
		}
	}
	return errors.Join(errs...)
}

// block is a part of a document that is generated from results.
type block struct {
	document, name string
	text           string
}

// blocks returns all generated blocks.
func (r *report) blocks() []block {
	return []block{
		{statisticsDocument, tableFalseFlags, r.pivot(tableFalseFlags, figure.String, columnPlain, "linear", "log2")},
		{statisticsDocument, tableDetection, r.pivot(tableDetection, figure.String, "+3σ", "+5σ", "+8σ", "+20σ")},
		{statisticsDocument, tableCommon, r.pivot(tableCommon, figure.String, "+8σ", "+20σ", "+1000σ")},
		{statisticsDocument, tableRuns, r.pivot(tableRuns, figure.String, "+8σ", "+20σ", "restarts, +8σ", "restarts, +20σ")},
		{statisticsDocument, tableShifts, r.pivot(tableShifts, figure.String, columnFlags, columnFlagsLog2, columnDeviation, columnMean)},
		{statisticsDocument, tableRestarts, r.pivot(tableRestarts, figure.String, columnRestarts)},
		{statisticsDocument, tableCalibrated, r.pivot(tableCalibrated, figure.String, columnFlagged, columnEvents, columnWorstBlock)},
		{statisticsDocument, tableRare, r.pivot(tableRare, figure.String, columnFlagged, columnEvents)},
		{statisticsDocument, tableNeighbours, r.pivot(tableNeighbours, figure.String, columnLeaks, columnLeast, columnMost)},
		{statisticsDocument, tableOwnLeaks, r.pivot(tableOwnLeaks, figure.String, columnFlagged, columnEvents, columnHourly)},
		{statisticsDocument, tableFirst, r.pivot(tableFirst, figure.String, columnEvents)},
		{statisticsDocument, tableLegitimate, r.pivot(tableLegitimate, figure.String, columnByFirst, columnInTurn)},
		{statisticsDocument, tableChannels, r.pivot(tableChannels, figure.String, columnByFirst, columnInTurn)},
		{statisticsDocument, tableNothingHidden, r.pivot(tableNothingHidden, figure.String, columnWindows, columnPages)},
		{statisticsDocument, tableSweeps, r.pivot(tableSweeps, figure.String, columnWindows, columnSymbols, columnPages)},
		{statisticsDocument, tableAmbiguous, r.pivot(tableAmbiguous, figure.String, columnWindows, columnSymbols, columnPages)},
		{statisticsDocument, tableJittered, r.pivot(tableJittered, figure.String, parametersOf(trial.Jittered(), "")...)},
		{statisticsDocument, tableMemory, r.pivot(tableMemory, figure.String, parametersOf(trial.JitterBug(true), " ms")...)},
		{statisticsDocument, tableNoMemory, r.pivot(tableNoMemory, figure.String, parametersOf(trial.JitterBug(false), " ms")...)},
		{statisticsDocument, tableRecorded, r.pivot(tableRecorded, figure.String, columnRight, columnNearest)},
		{statisticsDocument, tableUnchanged, r.pivot(tableUnchanged, figure.String, pairNames()...)},
		{statisticsDocument, tableOneOf3, r.pivot(tableOneOf3, figure.String, pairNames()...)},
		{leakDocument, tableLeakNone, r.pivot(tableLeakNone, figure.String, columnEver20, columnEver1e5)},
		{leakDocument, tableLeakFound, r.pivot(tableLeakFound, figure.String, columnRandom, columnBlocks)},
		{leakDocument, tableLeakInterval, r.pivot(tableLeakInterval, figure.String, columnRandom, columnBlocks)},
		{leakDocument, tableLeakLabels, r.pivot(tableLeakLabels, figure.String, columnOfChecks)},
		{leakDocument, tableResponses, r.pivot(tableResponses, figure.String, columnEvidence, columnResponses, columnMedian, columnFloor)},
		{statisticsDocument, "bounds", r.bounds()},
		{limitsDocument, tableFalseFlags, r.pivot(tableFalseFlags, figure.text, "linear", "log2")},
	}
}

// pivot returns a Markdown table with a line for each row and these columns.
func (r *report) pivot(table string, text func(figure) string, columns ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| traffic | %s |\n|%s\n", strings.Join(columns, " | "), strings.Repeat(" --- |", 1+len(columns)))
	var rows []string
	for _, result := range r.in(table) {
		if !slices.Contains(rows, result.Row) {
			rows = append(rows, result.Row)
		}
	}
	for _, row := range rows {
		fmt.Fprintf(&b, "| %s |", row)
		for _, column := range columns {
			if result := r.find(table, row, column); result != nil {
				fmt.Fprintf(&b, " %s", text(result.figure))
			}
			b.WriteString(" |")
		}
		b.WriteString("\n")
	}
	return b.String()
}

// bounds returns a Markdown table of all bounds. A line is of the experiments of a table that have
// the same bound in the same column, with the figure of each seed that is closest to the bound.
func (r *report) bounds() string {
	var b strings.Builder
	b.WriteString("| | traffic | bound |")
	for _, seed := range r.Seeds {
		fmt.Fprintf(&b, " seed %d |", seed)
	}
	fmt.Fprintf(&b, "\n|%s\n", strings.Repeat(" --- |", 3+len(r.Seeds)))
	for _, lines := range r.bounded() {
		first := lines[0]
		rows := first.Row
		if len(lines) > 1 {
			rows = fmt.Sprintf("the worst of %d", len(lines))
		}
		fmt.Fprintf(&b, "| %s, %s | %s | %s |", first.Table, first.Column, rows, first.Bound)
		for seed := range r.Seeds {
			fmt.Fprintf(&b, " %s |", worst(lines, seed))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// bounded returns the results with a bound. Those of a table that have the same bound in the same
// column are together.
func (r *report) bounded() (groups [][]result) {
	numbers := map[question]int{}
	for _, result := range r.Results {
		if !result.Bound.isAsked() {
			continue
		}
		of := question{Table: result.Table, Column: result.Column, Bound: result.Bound}
		number, isKnown := numbers[of]
		if !isKnown {
			number = len(groups)
			numbers[of] = number
			groups = append(groups, nil)
		}
		groups[number] = append(groups[number], result)
	}
	return groups
}

// worst returns the figure of a seed that is closest to the bound of the results. It is bold if it
// breaks the bound.
func worst(results []result, seed int) string {
	found, margin := figure{}, math.Inf(1)
	for _, result := range results {
		f := result.figures()[seed]
		if m := result.Bound.margin(f.Value); m < margin || math.IsNaN(m) {
			found, margin = f, m
		}
	}
	if margin >= 1 {
		return found.text()
	}
	return "**" + found.text() + "**"
}

// counted returns the counts of a share; empty for other figures.
func (f figure) counted() string {
	if f.Share == nil {
		return ""
	}
	return fmt.Sprintf("%s of %s", grouped(int(f.Share.Hits)), grouped(int(f.Share.Trials)))
}

// grouped formats a number with commas between thousands.
func grouped(n int) string {
	digits := fmt.Sprint(n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// write puts the results into the documents of a repository, and into a JSON file from which
// the plots are drawn.
func (r *report) write(repository string) error {
	if r.Recordings == nil {
		before, err := readReport(repository)
		if err != nil {
			return err
		}
		r.Recordings = before.Recordings
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	// One result per line keeps differences readable.
	lines := strings.ReplaceAll(string(text), `{"table"`, "\n"+`{"table"`) + "\n"
	if err := os.WriteFile(filepath.Join(repository, figuresFile), []byte(lines), 0o644); err != nil { //nolint:gosec // documents are readable for all
		return err
	}
	for _, b := range r.blocks() {
		if err := document.Update(filepath.Join(repository, b.document), b.name, b.text); err != nil {
			return err
		}
	}
	return r.writeCharts(filepath.Join(repository, imagesFolder))
}

// readReport reads the JSON file of write.
func readReport(repository string) (*report, error) {
	text, err := os.ReadFile(filepath.Join(repository, figuresFile))
	if err != nil {
		return nil, err
	}
	r := &report{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("reading %s: %w", figuresFile, err)
	}
	return r, nil
}
