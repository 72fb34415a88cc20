// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package manpage writes the man pages of the commands from their flags.
package manpage

import (
	"io"
	"maps"
	"strings"
	"text/template"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/version"
)

// Title is the first line of a template. Its macros are those of man(7).
const Title = `.TH "{{.App.Name|ToUpper}}" 1 "{{ManDate}}" "{{.App.Name}} {{ManVersion}}" "User Commands"
.nh
`

// Option is the part of a template that describes one flag.
const Option = `
.TP
\fB{{if .Short}}\-{{.Short|Char}}\fR, \fB{{end}}\-\-{{.Name|Roff}}{{if not .IsBoolFlag}}=\fI{{.FormatPlaceHolder|Roff}}{{end}}\fR
{{.Help|Roff}}
{{- if .Envar}}
Environment variable: \fB{{.Envar|Roff}}\fR.
{{- end}}`

// Write writes the page of an application from a template, which may use more functions.
func Write(app *kingpin.Application, to io.Writer, page string, more template.FuncMap) error {
	context, err := app.ParseContext(nil)
	if err != nil {
		return err
	}
	functions := template.FuncMap{
		"Roff": roff, "ToUpper": strings.ToUpper,
		"ManVersion": func() string { return roff(version.Version) },
		"ManDate": func() string {
			built, err := time.Parse("20060102-15:04:05", version.BuildDate)
			if err != nil {
				return ""
			}
			return built.Format(time.DateOnly)
		},
	}
	maps.Copy(functions, more)
	return app.UsageWriter(to).UsageFuncs(functions).UsageForContextWithTemplate(context, 0, page)
}

// roff returns a text as roff shows it: with dashes that can be searched for, paths that can be
// broken, and without a line that begins with a control character.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "/", `/\:`, "-", `\-`, "'", `\(aq`, "`", "").Replace(text)
	if strings.HasPrefix(text, ".") {
		text = `\&` + text
	}
	return text
}
