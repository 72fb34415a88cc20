// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"
)

// docs/flags.md has each flag with its environment variable and its default.
func TestFlagsAreDocumented(t *testing.T) {
	var help bytes.Buffer
	if err := Run(t.Context(), []string{"--help"}, Process{Stdout: &help, Stderr: &help}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../docs/flags.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if name, _, isFlag := strings.Cut(strings.TrimPrefix(line, "| `--"), "`"); isFlag && strings.HasPrefix(line, "| `--") {
			rows[name] = line
		}
	}
	flag := regexp.MustCompile(`(?m)^ {2,6}(?:-h, )?--(?:\[no-\])?([a-z0-9.-]+)(?:=(\S+))?`)
	variable, placeholder := regexp.MustCompile(`\(\$(\w+)\)`), regexp.MustCompile(`^[A-Z]*$`)
	starts := flag.FindAllStringSubmatchIndex(help.String(), -1)
	if len(starts) < 30 {
		t.Fatalf("only %d flags in\n%s", len(starts), help.String())
	}
	for i, start := range starts {
		end := help.Len()
		if i+1 < len(starts) {
			end = starts[i+1][0]
		}
		entry := help.String()[start[0]:end]
		found := flag.FindStringSubmatch(entry)
		name, value := found[1], strings.Trim(found[2], `"`)
		if name == "help" || name == "version" {
			continue
		}
		if collector, isCollector := strings.CutPrefix(name, "collector."); isCollector && rows[name] == "" {
			if !strings.Contains(rows["collector.NAME"], "`"+collector+"`") {
				t.Errorf("docs/flags.md lacks the collector %s", collector)
			}
			continue
		}
		row, isListed := rows[name]
		if !isListed {
			t.Errorf("docs/flags.md lacks --%s", name)
			continue
		}
		if !placeholder.MatchString(value) && !strings.Contains(row, "| `"+value+"` |") {
			t.Errorf("docs/flags.md has another default of --%s than %s", name, value)
		}
		if v := variable.FindStringSubmatch(entry); v != nil && !strings.Contains(row, "| `"+v[1]+"` |") {
			t.Errorf("docs/flags.md lacks the variable %s of --%s", v[1], name)
		}
		delete(rows, name)
	}
	delete(rows, "collector.NAME")
	for name := range rows {
		t.Errorf("docs/flags.md has --%s, which is not a flag", name)
	}
}
