// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"slices"
	"strings"
	"text/template"

	"github.com/alecthomas/kingpin/v2"

	"github.com/xdp-audit/xdp_audit_exporter/internal/manpage"
)

// flagGroup is a part of --help and of the man page.
type flagGroup struct {
	Title string
	Flags []*kingpin.FlagModel
}

// groupFlags returns the flags that are not hidden in the order of the help: those whose names
// begin with a prefix of a group, and then all others.
func groupFlags(flags []*kingpin.FlagModel) (groups []flagGroup) {
	rest := slices.DeleteFunc(slices.Clone(flags), func(f *kingpin.FlagModel) bool { return f.Hidden })
	for _, group := range []struct {
		title    string
		prefixes []string
	}{
		{"Audit", []string{"audit.", "bpf."}},
		{"Leak assessments", []string{"leak."}},
		{"Collectors and trail", []string{"collector.", "trail."}},
		{"Web server", []string{"web."}},
		{"Privileges", []string{"privileges."}},
		{"Other flags", []string{""}},
	} {
		isIn := func(f *kingpin.FlagModel) bool {
			return slices.ContainsFunc(group.prefixes, func(prefix string) bool { return strings.HasPrefix(f.Name, prefix) })
		}
		g := flagGroup{Title: group.title}
		for _, f := range rest {
			if isIn(f) {
				g.Flags = append(g.Flags, f)
			}
		}
		rest = slices.DeleteFunc(rest, isIn)
		if len(g.Flags) > 0 {
			groups = append(groups, g)
		}
	}
	return groups
}

const helpTemplate = `usage: {{.App.Name}} [<flags>]

{{.App.Help|Wrap 0}}
Without --audit.device it audits the devices that hold a default route.
{{range .Context.Flags|Groups}}
{{.Title}}:
{{.Flags|FlagsToTwoColumns|FormatTwoColumns -}}
{{end}}`

// manTemplate is the man page.
const manTemplate = manpage.Title + `.SH NAME
{{.App.Name}} \- audits packet timing with XDP, for Prometheus
.SH SYNOPSIS
.B {{.App.Name}}
[\fIflags\fR]
.SH DESCRIPTION
{{.App.Help|Roff}}
An XDP program keeps a timing baseline for each flow, scores every received packet against the
baseline and counts the result.
It never changes or drops a packet.
The metrics are served at http://localhost:9400/metrics.
.PP
Without \fB\-\-audit.device\fR the exporter audits the devices that hold a default route, in generic
mode.
.SH OPTIONS
A flag that is on or off takes no value, and is negated by \fBno\-\fR after the dashes.
An environment variable applies if its flag is not given.
{{- range .App.Flags|Groups}}
.SS {{.Title}}
{{- range .Flags}}` + manpage.Option + `
{{- end}}
{{- end}}
.SH SIGNALS
.TP
.B SIGTERM, SIGINT
Detach the program, unless it is pinned, and end.
.TP
.B SIGHUP
Reopen the audit trail and raw files, and read the leak assessments again.
.SH EXIT STATUS
0 after a signal, and if \fB\-\-check\fR or \fB\-\-healthcheck\fR succeed; 1 after an error, which is
one line on standard error.
.SH FILES
.TP
.I /etc/default/xdp_audit_exporter
Settings of the systemd unit.
.TP
.I /usr/share/xdp\-audit\-exporter
Recording rules, alerts and dashboards.
.TP
.I /usr/share/doc/xdp\-audit\-exporter
Documentation.
.SH SEE ALSO
https://github.com/xdp\-audit/xdp_audit_exporter
`

// helpFuncs are the functions of the templates of the help and of the man page.
func helpFuncs() template.FuncMap { return template.FuncMap{"Groups": groupFlags} }
