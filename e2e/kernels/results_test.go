// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package kernels

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// group is a set of tests that a guest runs together.
type group struct {
	name    string
	program string // the package's test binary
	tests   []string
	only    string // the kernel that runs it in CI; empty for every kernel
}

// pattern matches exactly the tests of the group.
func (g group) pattern() string { return "^(" + strings.Join(g.tests, "|") + ")$" }

// results are the results that a guest reported.
type results struct {
	kernel       string // output of uname -rv
	passed       map[string]bool
	seconds      map[string]float64 // that each took
	failures     []string           // each with the output of the tests
	instructions map[string]int     // verified instructions, by variant of the program
	landlock     int
	devices      []device
}

var (
	passLine        = regexp.MustCompile(`^\s*--- PASS: (\S+) \(([0-9.]+)s\)`)
	instructionLine = regexp.MustCompile(`^\s+\S+\.go:\d+: (.+): verified instructions (\d+),`)
	landlockLine    = regexp.MustCompile(`^\s+\S+\.go:\d+: Landlock is version (\d+)$`)
)

// parse reads the report of a guest. A group has passed if it ended with status 0 and every one
// of its tests passed. A skipped or missing test is a failure, and so is a guest that did not
// finish.
func parse(report string, groups []group) *results {
	r := &results{passed: map[string]bool{}, seconds: map[string]float64{}, instructions: map[string]int{}}
	statuses, written := map[string]string{}, map[string]*strings.Builder{}
	current, isDone := "", false
	for line := range strings.Lines(report) {
		line = strings.TrimRight(line, "\n")
		switch words := strings.Fields(line); {
		case strings.HasPrefix(line, "@kernel "):
			r.kernel = strings.TrimPrefix(line, "@kernel ")
		case strings.HasPrefix(line, "@begin ") && len(words) == 2:
			current = words[1]
			written[current] = &strings.Builder{}
		case strings.HasPrefix(line, "@end ") && len(words) == 3:
			statuses[words[1]] = words[2]
			current = ""
		case line == "@done":
			isDone = true
		default:
			if b := written[current]; b != nil {
				fmt.Fprintln(b, line)
			}
			r.read(line)
		}
	}
	for _, g := range groups {
		missing := slices.DeleteFunc(slices.Clone(g.tests), func(name string) bool { return r.passed[name] })
		if status, ended := statuses[g.name]; ended && status == "0" && len(g.tests) > 0 && len(missing) == 0 {
			continue
		}
		b := written[g.name]
		if b == nil {
			r.failures = append(r.failures, fmt.Sprintf("group %s: not begun", g.name))
			continue
		}
		r.failures = append(r.failures, fmt.Sprintf("group %s: not passed: %s; exit status %q\n%s",
			g.name, strings.Join(missing, ", "), statuses[g.name], b))
	}
	if !isDone {
		r.failures = append(r.failures, "the guest did not come to its end; its report ends with\n"+tail(report, 20))
	}
	return r
}

// read reads one line of the output of a test.
func (r *results) read(line string) {
	if r.readDevice(line) {
		return
	}
	if match := passLine.FindStringSubmatch(line); match != nil {
		r.passed[match[1]] = true
		r.seconds[match[1]], _ = strconv.ParseFloat(match[2], 64)
	} else if match := instructionLine.FindStringSubmatch(line); match != nil {
		r.instructions[match[1]], _ = strconv.Atoi(match[2])
	} else if match := landlockLine.FindStringSubmatch(line); match != nil {
		r.landlock, _ = strconv.Atoi(match[1])
	}
}

// slowest returns the tests that took longest, without subtests.
func (r *results) slowest(n int) string {
	var names, texts []string
	for name := range r.seconds {
		if !strings.Contains(name, "/") {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(r.seconds[b], r.seconds[a]), strings.Compare(a, b))
	})
	for _, name := range names[:min(n, len(names))] {
		texts = append(texts, fmt.Sprintf("%s %.0f", name, r.seconds[name]))
	}
	return strings.Join(texts, ", ")
}

// release returns the version of the kernel, without that of its package.
func (r *results) release() string {
	if match := regexp.MustCompile(`Debian ([0-9.]*[0-9])`).FindStringSubmatch(r.kernel); match != nil {
		return match[1]
	}
	release, _, _ := strings.Cut(r.kernel, " ")
	return release
}

// tail returns the last lines of a text.
func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func TestParse(t *testing.T) {
	groups := []group{{"load", "bpf.test", []string{"TestA", "TestB"}, ""}, {"attach", "e2e.test", []string{"TestC"}, ""}}
	const (
		begin = "@kernel 6.1.0-56-cloud-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-10-01)\n"
		load  = `@begin load
=== RUN   TestA
    program_test.go:126: linear, by flow: verified instructions 28446, 2315 after it, 10709 bytes compiled
    program_test.go:126: log2, by flow: verified instructions 40786, 2424 after it, 10972 bytes compiled
--- PASS: TestA (1.55s)
=== RUN   TestB
--- PASS: TestB (0.00s)
PASS
@end load 0
`
		attach = `@begin attach
=== RUN   TestC
=== RUN   TestC/native
    privilege_test.go:1: Landlock is version 2
--- PASS: TestC (1.00s)
    --- PASS: TestC/native (0.50s)
PASS
@end attach 0
`
		done = "@done\n"
	)
	good := parse(begin+load+attach+done, groups)
	if len(good.failures) != 0 {
		t.Errorf("failures: %q", good.failures)
	}
	if got := good.release(); got != "6.1.192" {
		t.Errorf("release %s", got)
	}
	if want := map[string]int{"linear, by flow": 28446, "log2, by flow": 40786}; !maps.Equal(good.instructions, want) || good.landlock != 2 {
		t.Errorf("instructions %v, Landlock %d", good.instructions, good.landlock)
	}
	if want := map[string]bool{"TestA": true, "TestB": true, "TestC": true, "TestC/native": true}; !maps.Equal(good.passed, want) {
		t.Errorf("passed are %v", good.passed)
	}
	if got := good.slowest(2); got != "TestA 2, TestC 1" {
		t.Errorf("the slowest are %s", got)
	}
	for _, g := range slices.Concat(supported, since62, devices, refused) {
		if strings.ContainsRune(g.name, ' ') {
			t.Errorf("a report cannot name the group %q: its lines consist of words", g.name)
		}
		if g.only == "" {
			continue
		}
		runs := func(k kernel) bool {
			return k.isRequired && slices.ContainsFunc(k.run(), func(other group) bool { return other.name == g.name })
		}
		if !slices.ContainsFunc(kernels, runs) {
			t.Errorf("no kernel that has to be available runs the group %s", g.name)
		}
	}
	for _, test := range []struct {
		description, report string
		want                []string // a part of each failure
	}{
		{"no report", "", []string{"group load: not begun", "group attach: not begun", "did not come to its end"}},
		{"a panic after the last test", begin + load + attach, []string{"did not come to its end"}},
		{"a panic in a group", begin + load + "@begin attach\n=== RUN   TestC\n", []string{"group attach: not passed: TestC; exit status \"\"\n=== RUN   TestC", "did not come to its end"}},
		{
			"a test that fails", begin + load + strings.NewReplacer("PASS: TestC (", "FAIL: TestC (", "attach 0", "attach 1").Replace(attach) + done,
			[]string{`group attach: not passed: TestC; exit status "1"` + "\n=== RUN   TestC"},
		},
		{"a test that is skipped", begin + load + strings.Replace(attach, "PASS: TestC (", "SKIP: TestC (", 1) + done, []string{"not passed: TestC; exit status \"0\""}},
		{"a test that is not there", begin + load + "@begin attach\ntesting: warning: no tests to run\nPASS\n@end attach 0\n" + done, []string{"not passed: TestC"}},
		{"a status after passed tests", begin + strings.Replace(load, "load 0", "load 2", 1) + attach + done, []string{`exit status "2"`}},
		{"a group that was left out", begin + load + done, []string{"group attach: not begun"}},
	} {
		t.Run(test.description, func(t *testing.T) {
			got := parse(test.report, groups).failures
			if len(got) != len(test.want) {
				t.Fatalf("got %q", got)
			}
			for i, want := range test.want {
				if !strings.Contains(got[i], want) {
					t.Errorf("got %q, want %q in it", got[i], want)
				}
			}
		})
	}
}
