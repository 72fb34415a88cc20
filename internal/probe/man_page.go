// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package probe

import "github.com/xdp-audit/xdp_audit_exporter/internal/manpage"

// manTemplate is the man page.
const manTemplate = manpage.Title + `.SH NAME
{{.App.Name}} \- says whether the response time of a service depends on the class of the request
.SH SYNOPSIS
.B {{.App.Name}}
\fB\-\-url\fR=\fIURL\fR [\fIflags\fR]
.SH DESCRIPTION
Sends requests of two classes, X and Y, in random order to a service, and says whether the response
time depends on the class.
Use it only for services that you are allowed to test: it sends to the named host and to no other,
and follows no redirect.
It needs no privilege.
.PP
With \fB\-\-report\fR the verdict is that of an exporter that measures the service in its kernel, and
the exporter gives the marks, the order and the target.
Without it, the command judges its own times, in which the path is.
.PP
It sends 200 requests a second on one connection, and ends at a verdict.
.SH OPTIONS
A flag that is on or off takes no value, and is negated by \fBno\-\fR after the dashes.
{{- range .App.Flags}}{{if not .Hidden}}` + manpage.Option + `
{{- end}}
{{- end}}
.SH SIGNALS
.TP
.B SIGTERM, SIGINT
End with the result so far, when requests that are underway have their answers.
A second signal ends the process.
.SH EXIT STATUS
.TP
.B 0
The response time does not depend on the class by more than the target.
.TP
.B 1
It does: a leak, or a difference that nobody assigned.
.TP
.B 2
An error, which is one line on standard error, or data that cannot be judged.
.TP
.B 3
No verdict yet.
.SH EXAMPLES
.TP
Two wrong tokens, judged by the times of an exporter:
.EX
{{.App.Name}} \-\-url=https://login.example.org/session \-\-report=http://server.example.org:9400 \e
  \-\-x.header=\(aqX\-Token: Aaaaaaaa\(aq \-\-y.header=\(aqX\-Token: s3creaaa\(aq
.EE
.SH FILES
.TP
.I /usr/share/doc/xdp\-audit\-exporter/docs/probe.md
Documentation.
.SH SEE ALSO
.BR xdp_audit_exporter (1),
https://github.com/xdp\-audit/xdp_audit_exporter
`
