// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	scripts = "../../scripts/"
	mistake = "rec" + "ieve" // in two parts, because this file is checked too
)

// newRepository returns a git repository with check-text.sh and these files, one of which is not
// added yet.
func newRepository(t *testing.T, files map[string]string) (directory string) {
	t.Helper()
	for _, command := range []string{"bash", "codespell", "git"} {
		if _, err := exec.LookPath(command); err != nil {
			t.Skip(err)
		}
	}
	directory = t.TempDir()
	for _, name := range []string{"check-text.sh", "codespell-words"} {
		content, err := os.ReadFile(scripts + name)
		if err != nil {
			t.Fatal(err)
		}
		files["scripts/"+name] = string(content)
	}
	for name, content := range files {
		path := filepath.Join(directory, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"init", "-q"}, {"add", "scripts", "deleted.md"}} {
		if output, err := exec.Command("git", append([]string{"-C", directory}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, output)
		}
	}
	if err := os.Remove(filepath.Join(directory, "deleted.md")); err != nil {
		t.Fatal(err)
	}
	return directory
}

func TestScript(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "checktext")
	if output, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("building checktext: %v\n%s", err, output)
	}
	for _, test := range []struct {
		name, content string
		want          string // part of the output; empty if the check succeeds
	}{
		{"plain words", "The covert collector has a const nowNs.\n", ""},
		{"a spelling mistake", "line\n" + mistake + "\n", "new.md:2: " + mistake + " ==> receive"},
		{"a wording", "learnt\nanew\n", `new.md:2: "anew"`},
		{"as many spelling mistakes as an exit code has values", strings.Repeat(mistake+"\n", 256), "new.md:256: " + mistake},
	} {
		t.Run(test.name, func(t *testing.T) {
			directory := newRepository(t, map[string]string{"new.md": test.content, "deleted.md": "", "go.sum": mistake})
			output, err := exec.Command("bash", filepath.Join(directory, "scripts/check-text.sh"), binary).CombinedOutput()
			if (err == nil) != (test.want == "") || !strings.Contains(string(output), test.want) {
				t.Errorf("got %v and %q, want %q", err, output, test.want)
			}
		})
	}
}
