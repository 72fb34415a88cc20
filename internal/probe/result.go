// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package probe

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
)

// The exit codes of the command.
const (
	exitNone         = 0
	exitLeak         = 1
	exitError        = 2
	exitInconclusive = 3
)

// The sources of times.
const (
	ofKernel = "kernel"
	ofClient = "client"
)

// result is the outcome of a run.
type result struct {
	Verdict   leak.Verdict `json:"verdict"` // that decides
	ExitCode  int          `json:"exit_code"`
	DecidedBy string       `json:"decided_by"` // kernel or client
	Sentence  string       `json:"sentence"`

	URL         string    `json:"url"`
	Address     string    `json:"address"`
	Order       string    `json:"order"`
	Label       string    `json:"label"`
	Seed        uint64    `json:"seed"`
	Begin       time.Time `json:"begin"`
	Seconds     float64   `json:"seconds"`
	Interrupted bool      `json:"interrupted"`
	Requests    counts    `json:"requests"`
	Faults      []fault   `json:"faults"` // for which there is no verdict
	Notes       []string  `json:"notes"`

	Client leak.Report `json:"client"`
	Kernel *assessment `json:"kernel,omitempty"` // with an exporter
}

// decide sets verdict, sentence and exit code from the reports and the faults.
func (r *result) decide() {
	report := &r.Client
	r.DecidedBy = ofClient
	if r.Kernel != nil {
		report, r.DecidedBy = &r.Kernel.Report, ofKernel
	}
	r.Verdict, r.Sentence = report.Verdict, report.Sentence
	if len(r.Faults) > 0 {
		r.Verdict = leak.Invalid
		r.Sentence = "There is no verdict: " + r.Faults[0].Text + "."
	}
	switch r.Verdict {
	case leak.None, leak.NoDifference:
		r.ExitCode = exitNone
	case leak.Leak, leak.Difference:
		r.ExitCode = exitLeak
	case leak.Waiting, leak.Inconclusive:
		r.ExitCode = exitInconclusive
	default:
		r.ExitCode = exitError
	}
}

const clientCaveat = "These times are the client's: what the path and this machine add is in them."

// write writes the result for people.
func (r *result) write(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "times of\tverdict\teffect\t95 % interval\tfloor\tpairs\tevidence\tpairs needed")
	row := func(name string, report *leak.Report) {
		effect, interval, floor, needed := "-", "-", "-", "-"
		if report.HasInterval {
			effect, floor = leak.FormatNs(report.EffectNs), leak.FormatNs(report.FloorNs)
			interval = leak.FormatNs(report.LowNs) + " to " + leak.FormatNs(report.HighNs)
		}
		switch {
		case report.Verdict == leak.Invalid: // no number of pairs would do
		case report.PairsNeeded == nil:
			needed = "not known"
		case *report.PairsNeeded > 0:
			needed = "about " + leak.FormatCount(*report.PairsNeeded)
		}
		fmt.Fprintf(table, "%s\t%v\t%s\t%s\t%s\t%s\t10^%.1f\t%s\n", name, report.Verdict, effect, interval, floor,
			leak.FormatCount(report.Pairs), report.EvidenceLog10, needed)
	}
	if r.Kernel != nil {
		row(ofKernel, &r.Kernel.Report)
	}
	row(ofClient, &r.Client)
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for i, f := range r.Faults {
		if i > 0 { // the first is in the sentence
			fmt.Fprintf(w, "Also: %s.\n", printable.Line(f.Text))
		}
	}
	for _, note := range r.Notes {
		fmt.Fprintln(w, "Note:", printable.Line(note))
	}
	if r.Kernel != nil && len(r.Faults) == 0 {
		fmt.Fprintf(w, "By the client's times: %s %s\n", printable.Line(r.Client.Sentence), clientCaveat)
	}
	sentence := r.Sentence
	if r.Kernel == nil {
		sentence += " " + clientCaveat
	}
	_, err := fmt.Fprintf(w, "%v (exit code %d, by the times of the %s): %s\n", r.Verdict, r.ExitCode, r.DecidedBy, printable.Line(sentence))
	return err
}

// writeJSON writes the result as JSON.
func (r *result) writeJSON(w io.Writer) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		_, err = w.Write(append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("--json: %w", err)
	}
	return nil
}
