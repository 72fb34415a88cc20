// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/xdp-audit/xdp_audit_exporter/internal/document"
)

// Paths of the documents that contain figures, relative to the repository.
const (
	statisticsDocument = "docs/statistics.md"
	limitsDocument     = "docs/limits.md"
	figuresFile        = "docs/statistics.json"
	imagesFolder       = "docs/images"
)

// report has all results of a run.
type report struct {
	Seed    uint64   `json:"seed"`
	Results []result `json:"results"`
}

// in returns the results of a table, in their order.
func (r *report) in(table string) []result {
	var all []result
	for _, result := range r.Results {
		if result.Table == table {
			all = append(all, result)
		}
	}
	return all
}

// find returns the result of a row and a column, or nil.
func (r *report) find(table, row, column string) *result {
	for i := range r.Results {
		q := r.Results[i].question
		if q.Table == table && q.Row == row && q.Column == column {
			return &r.Results[i]
		}
	}
	return nil
}

// failed returns an error that names every bound that is not met.
func (r *report) failed() error {
	var errs []error
	for _, result := range r.Results {
		if !result.IsMet {
			errs = append(errs, fmt.Errorf("%v: %v, want %s", result.question, result.figure, result.Bound))
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
		{statisticsDocument, tableShifts, r.pivot(tableShifts, figure.String, columnFlags, columnFlagsLog2, columnMean)},
		{statisticsDocument, tableCalibrated, r.pivot(tableCalibrated, figure.String, columnFlagged, columnEvents, columnLateFrom)},
		{statisticsDocument, tableRare, r.pivot(tableRare, figure.String, columnFlagged, columnEvents)},
		{statisticsDocument, tableLegitimate, r.pivot(tableLegitimate, figure.String, columnByFirst, columnInTurn)},
		{statisticsDocument, tableChannels, r.pivot(tableChannels, figure.String, columnByFirst, columnInTurn)},
		{statisticsDocument, tableUnchanged, r.pivot(tableUnchanged, figure.String, pairNames()...)},
		{statisticsDocument, tableOneOf3, r.pivot(tableOneOf3, figure.String, pairNames()...)},
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

// bounds returns a Markdown table of all bounds and whether they are met.
func (r *report) bounds() string {
	var b strings.Builder
	b.WriteString("| | traffic | | packets | counted | found | bound | met |\n| --- | --- | --- | --: | --: | --- | --- | --- |\n")
	for _, result := range r.Results {
		if result.Bound == "" {
			continue
		}
		met := "yes"
		if !result.IsMet {
			met = "**no**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %v | %s | %s |\n",
			result.Table, result.Row, result.Column, grouped(result.Packets), result.counted(), result.figure, result.Bound, met)
	}
	return b.String()
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
