// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// standInMake makes a target. Those of a step that run together wait for each other.
const standInMake = `#!/bin/sh
echo "made $1"
cd "$(dirname "$0")"
case $1 in
together-*) : >"$1"; for i in $(seq 500); do [ -e together-1 ] && [ -e together-2 ] && exit; sleep .02; done; exit 1 ;;
failing) exit 3 ;;
esac
`

// The steps of make test run in turn, and the targets of a step together. A target that fails ends
// the run after its step.
func TestTimed(t *testing.T) {
	for _, test := range []struct {
		description, steps string
		code               int
		want               string // what is written of each target
	}{
		{"in turn", "a b", 0, "made a, s a, made b, s b, s a, s b"},
		{"together", "a together-1,together-2 b", 0,
			"made a, s a, made together-1, made together-2, s together-1, s together-2, made b, s b, s a, s together-1, s together-2, s b"},
		{"the first fails", "failing,a b", 3, "made failing, made a, s failing, s a"},
		{"another fails", "a,failing b", 3, "made a, made failing, s a, s failing"},
	} {
		t.Run(test.description, func(t *testing.T) {
			program := filepath.Join(t.TempDir(), "make")
			if err := os.WriteFile(program, []byte(standInMake), 0o755); err != nil { //nolint:gosec // a program
				t.Fatal(err)
			}
			cmd := exec.Command("../scripts/timed.sh", append([]string{program}, strings.Fields(test.steps)...)...)
			output, _ := cmd.CombinedOutput()
			var got []string
			for _, line := range regexp.MustCompile(`(?m)^(?:>> )? *(?:\d+ )?(made|s) +(\S+)$`).FindAllStringSubmatch(string(output), -1) {
				got = append(got, line[1]+" "+line[2])
			}
			if code := cmd.ProcessState.ExitCode(); code != test.code || strings.Join(got, ", ") != test.want {
				t.Errorf("exit code %d, want %d, got %s, want %s:\n%s", code, test.code, strings.Join(got, ", "), test.want, output)
			}
		})
	}
}
