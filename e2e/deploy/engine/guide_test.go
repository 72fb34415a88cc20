// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package engine

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// guide has the shell commands of deploy/README.md, by section.
type guide map[string]string

// restartOfOthers is the command to run after a restart of the enclave.
const restartOfOthers = "docker compose restart xdp-auditor prometheus grafana gateway"

var (
	heading = regexp.MustCompile(`^#+ (.+)\n`)
	block   = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")
)

func readGuide(t *testing.T) guide {
	t.Helper()
	text, err := os.ReadFile("../../../deploy/README.md")
	if err != nil {
		t.Fatal(err)
	}
	g := guide{}
	for _, section := range regexp.MustCompile(`(?m)^#`).Split(string(text), -1) {
		title := heading.FindStringSubmatch("#" + section)
		if title == nil {
			continue
		}
		for _, found := range block.FindAllStringSubmatch(section, -1) {
			g[title[1]] += found[1]
		}
	}
	// The test must cover every section.
	want := []string{"By hand", "Certificate", "Prerequisites", "Remove", "Settings", "Start", "Verify"}
	if sections := slices.Sorted(maps.Keys(g)); !slices.Equal(sections, want) {
		t.Fatalf("README.md has commands in the sections %q, want %q", sections, want)
	}
	if !strings.Contains(string(text), "\n"+restartOfOthers+"\n") {
		t.Errorf("README.md does not say %q", restartOfOthers)
	}
	return g
}

// The guide can be checked without root and without an engine.
func TestGuideIsWhole(t *testing.T) { readGuide(t) }

// block returns the commands of a section.
func (g guide) block(t *testing.T, section string) string {
	t.Helper()
	commands := g[section]
	if strings.TrimSpace(commands) == "" {
		t.Fatalf("README.md has no commands in the section %q", section)
	}
	return commands
}

// run runs the commands of a section in the copy of deploy/, and returns their output.
func (g guide) run(t *testing.T, e *engine, section string) string {
	t.Helper()
	return e.shell(t, g.block(t, section))
}
