// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/prometheus/common/version"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
	"github.com/xdp-audit/xdp_audit_exporter/internal/trail"
)

// checkReport is the answer of --check. docs/check.md describes its JSON form.
type checkReport struct {
	Version    string          `json:"version"`
	Revision   string          `json:"revision"`
	WouldStart bool            `json:"would_start"`
	Errors     []string        `json:"errors"` // why it would not start
	Exporter   []checkFinding  `json:"exporter"`
	Host       []checkFinding  `json:"host"`
	Devices    []checkedDevice `json:"devices"`
}

type checkedDevice struct {
	Name      string         `json:"name"`
	Ifindex   int            `json:"ifindex"`         // 0 if there is no such device
	Mode      string         `json:"mode,omitempty"`  // in which it would be audited
	Error     string         `json:"error,omitempty"` // why it would not be
	Findings  []checkFinding `json:"findings"`
	isLeftOut bool
}

type checkFinding struct {
	Check   string `json:"check"`
	State   string `json:"state"` // ok, warning, failure or unknown
	Found   string `json:"found"`
	Meaning string `json:"meaning"`
	Remedy  string `json:"remedy,omitempty"`
}

// check finds out whether the exporter would start, and prints why. It takes the same steps as a
// start in the same order, but goes on after a failure, and nothing is left of them. It drops the
// privileges of the process.
func check(ctx context.Context, o *options, process Process) error {
	e := &exporter{options: o, process: process, logger: slog.New(slog.DiscardHandler)}
	r := &checkReport{Version: version.Version, Revision: version.GetRevision(), Errors: []string{}, Devices: []checkedDevice{}}
	var invalid error
	o.audit, invalid = o.auditConfig()
	r.exporter("audit flags", o.audited(), "the audit can be configured", invalid)
	r.exporter("web configuration", cmp.Or(*o.web.WebConfigFile, "none"), "the web server can be configured", o.validateWeb())
	if o.trailFile != "" {
		r.exporter("trail", o.trailFile, "flagged packets can be appended", e.checkTrail())
	}
	if o.leakFile != "" || o.rawFile != "" {
		err := o.readLeak()
		r.exporter("leak assessments", cmp.Or(o.leakFile, "none"), "response times can be judged", err)
		if err == nil && o.rawFile != "" {
			r.exporter("raw file", o.rawFile, "response times can be appended", o.checkRaw())
		}
	}
	r.exporter("listen address", o.addresses(), "metrics can be exposed", checkListening(o.web))

	found := bpf.Check(ctx, o.audit)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if invalid == nil { // otherwise that is the error of the audit as well
		r.fail(o.nameFlag(found.Err))
	}
	r.Host = findingsOf(found.Host)
	for i := range found.Devices {
		r.Devices = append(r.Devices, deviceOf(&found.Devices[i]))
	}
	if len(r.Errors) == 0 {
		r.exporter("privileges", o.privileges(), "the exporter can open and write its files after the start", e.checkPrivileges())
	}
	r.WouldStart = len(r.Errors) == 0
	if err := r.write(ctx, process.Stdout, o.log.Format.String() == "json"); err != nil {
		return fmt.Errorf("--check: writing the report: %w", err)
	}
	if !r.WouldStart {
		return fmt.Errorf("--check: the exporter would not start: %s", strings.Join(r.Errors, "; "))
	}
	return nil
}

// addresses returns where the exporter listens.
func (o *options) addresses() string {
	if *o.web.WebSystemdSocket {
		return "sockets of systemd"
	}
	return strings.Join(*o.web.WebListenAddresses, ", ")
}

// audited says which devices the flags choose.
func (o *options) audited() string {
	if o.audit.DefaultRoute {
		return fmt.Sprintf("devices with a default route, mode %s", o.audit.Mode)
	}
	return "valid"
}

// privileges says what the exporter does with its privileges after the start.
func (o *options) privileges() string {
	if o.keepPrivileges {
		return "kept"
	}
	return "dropped"
}

func (e *exporter) checkTrail() error {
	if err := trail.Check(e.options.trailFile); err != nil {
		return flagError("trail.file", err)
	}
	return nil
}

// checkPrivileges drops the privileges as a start does, and checks what has to work without them.
func (e *exporter) checkPrivileges() error {
	if _, err := e.dropPrivileges(); err != nil {
		return err
	}
	return e.options.checkSaving()
}

// fail notes an error with which a start would end.
func (r *checkReport) fail(err error) {
	if err != nil {
		r.Errors = append(r.Errors, printable.Line(OneLine(err)))
	}
}

// exporter adds a finding about the exporter itself.
func (r *checkReport) exporter(name, found, meaning string, err error) {
	f := checkFinding{Check: name, State: string(bpf.FindingOK), Found: printable.Line(found), Meaning: meaning}
	if err != nil {
		f.State, f.Meaning = string(bpf.FindingFailure), printable.Line(OneLine(err))
	}
	r.Exporter = append(r.Exporter, f)
	r.fail(err)
}

func findingsOf(found []bpf.Finding) []checkFinding {
	findings := make([]checkFinding, len(found))
	for i, f := range found {
		findings[i] = checkFinding{f.Name, string(f.State), printable.Line(f.Value), printable.Line(f.Meaning), printable.Line(f.Remedy)}
	}
	return findings
}

func deviceOf(found *bpf.DeviceReport) checkedDevice {
	d := checkedDevice{Name: printable.Line(found.Name), Ifindex: found.Index, Mode: string(found.Mode), Findings: findingsOf(found.Findings), isLeftOut: found.LeftOut}
	if found.Err != nil {
		d.Error = printable.Line(OneLine(found.Err))
	}
	return d
}

// write writes the report, as JSON or as text, unless the context ends before the reader has read
// it.
func (r *checkReport) write(ctx context.Context, to io.Writer, asJSON bool) error {
	var text strings.Builder
	if asJSON {
		encoder := json.NewEncoder(&text)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(r); err != nil {
			return err
		}
	} else {
		r.print(&text)
	}
	written := make(chan error, 1)
	go func() {
		_, err := io.WriteString(to, text.String())
		written <- err
	}()
	select {
	case err := <-written:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// print writes the tables.
func (r *checkReport) print(to *strings.Builder) {
	fmt.Fprintf(to, "%s %s, revision %s\n\nexporter\n", Name, cmp.Or(r.Version, "of no version"), r.Revision)
	printFindings(to, r.Exporter)
	fmt.Fprint(to, "\nhost\n")
	printFindings(to, r.Host)
	for i := range r.Devices {
		d := &r.Devices[i]
		fmt.Fprintf(to, "\ndevice %s\n", d.Name)
		printFindings(to, append(slices.Clone(d.Findings), d.verdict()))
	}
	fmt.Fprintln(to, "\nresult")
	if r.WouldStart {
		fmt.Fprintln(to, "  the exporter would start")
	}
	for _, reason := range r.Errors {
		fmt.Fprintf(to, "  the exporter would not start: %s\n", reason)
	}
}

// verdict says whether a device would be audited.
func (d *checkedDevice) verdict() checkFinding {
	f := checkFinding{Check: "audit", State: string(bpf.FindingUnknown), Found: "not known", Meaning: "the start would end before"}
	switch {
	case d.Mode != "":
		f.State, f.Found, f.Meaning = string(bpf.FindingOK), "mode "+d.Mode, "the device would be audited"
	case d.isLeftOut:
		f.State, f.Found, f.Meaning = string(bpf.FindingOK), "no", d.Error
	case d.Error != "":
		f.State, f.Found, f.Meaning = string(bpf.FindingFailure), "no", d.Error
	}
	return f
}

func printFindings(to io.Writer, findings []checkFinding) {
	table := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		meaning := f.Meaning
		if f.Remedy != "" {
			meaning += ". Remedy: " + f.Remedy
		}
		fmt.Fprintf(table, "  %s\t%s\t%s\t%s\n", f.Check, f.State, f.Found, meaning)
	}
	_ = table.Flush() // a strings.Builder takes everything
}
