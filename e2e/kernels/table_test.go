// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package kernels

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// column is a kernel of the table, with its results.
type column struct {
	kernel
	*results
}

type table []column

// isRefused reports whether the exporter refuses the kernel.
func (c column) isRefused() bool {
	return !slices.ContainsFunc(c.groups, func(g group) bool { return g.name == "load" })
}

// leftOut reports whether a test or subtest is of a group that only another kernel runs.
func (c column) leftOut(name string) bool {
	name, _, _ = strings.Cut(name, "/")
	has := func(g group) bool { return slices.Contains(g.tests, name) }
	return slices.ContainsFunc(c.groups, has) && !slices.ContainsFunc(c.run(), has)
}

// count returns the number of tests that passed, without subtests.
func (r *results) count() (n int) {
	for name := range r.passed {
		if !strings.Contains(name, "/") {
			n++
		}
	}
	return n
}

// feature is a row of the table.
type feature struct {
	title string
	cell  func(column) string
}

// shown returns a feature that is present if tests passed. It is not known if one of them is of a
// group that was left out.
func shown(title string, tests ...string) feature {
	return feature{title, func(c column) string {
		for _, name := range tests {
			if c.leftOut(name) {
				return notKnown
			}
			if !c.passed[name] {
				return "no"
			}
		}
		return "yes"
	}}
}

// landlock returns a feature of a version of Landlock.
func landlock(title string, version int) feature {
	return feature{title, func(c column) string {
		if c.landlock < version {
			return "no"
		}
		return "yes"
	}}
}

// features are the rows that change only with the exporter or with a series of kernels.
var features = []feature{
	shown("program loads", "TestProgramIsBelowTheLimitOfTheVerifier"),
	shown("native mode on a veth", "TestModes/native_on_a_device_that_has_it"),
	shown("generic mode", "TestModes/generic_on_a_device_that_has_native_too"),
	shown("native mode with jumbo frames", "TestJumboFrames", "TestStateAndMTUChange"),
	shown("the driver's reason in a refusal", "TestARefusalGivesTheReason"),
	shown("each packet counted once, as in the model", "TestUDPIsCountedExactly", "TestTCPIsCountedExactly", "TestProgramEqualsModel"),
	shown("events of flagged packets", "TestFlaggedPacketArrivesAsEvent", "TestEveryFlagHasAFate", "TestHangupReopensTheTrail"),
	shown("response times, as in the model", "TestFormsOfExchanges", "TestExchangesEqualModel", "TestExchangesOfConnectionsThatAreReset",
		"TestLeakVariants", "TestLeakRestarts", "TestLeakFollowsDevices"),
	shown("a new ring for a CPU that was offline", "TestACPUGoesAndComesBack"),
	shown("restart and upgrade without loss", "TestRestartsLoseNothing", "TestUpgrade"),
	shown("devices followed as they come and go", "TestAGlobIsFollowed", "TestAbsentDevicesMayCome"),
	shown("a device renamed while it is up", "TestARenamedDevice"),
	shown("no capability after start", "TestNoPrivilegeAfterStart", "TestAttacksFromInside"),
	shown("three capabilities suffice, from `kernel.perf_event_paranoid` 2 down", "TestThreeCapabilitiesAreEnough"),
	shown("above that refused in one line, without `CAP_SYS_ADMIN`", "TestParanoidKernelsNameTheSetting"),
	landlock("files confined (Landlock 1)", 1),
	landlock("trail cannot be emptied (Landlock 3)", 3),
	landlock("no new TCP (Landlock 4)", 4),
	{"version of Landlock", func(c column) string { return strconv.Itoa(c.landlock) }},
}

const (
	refusedFeature = "exporter starts"
	notThere       = "–"
	notKnown       = "" // in tables that are not written
)

// rows returns the rows of the table, each with its title first. The first rows are those of
// [features].
func (t table) rows() (fixed, varying [][]string) {
	row := func(title string, cell func(column) string) []string {
		cells := []string{title}
		for _, c := range t {
			cells = append(cells, cell(c))
		}
		return cells
	}
	unlessRefused := func(cell func(column) string) func(column) string {
		return func(c column) string {
			if c.isRefused() {
				return notThere
			}
			return cell(c)
		}
	}
	fixed = append(fixed, row(refusedFeature, func(c column) string {
		if c.isRefused() {
			return "refused"
		}
		return "yes"
	}))
	for _, f := range features {
		fixed = append(fixed, row(f.title, unlessRefused(f.cell)))
	}
	variants := map[string]bool{}
	for _, c := range t {
		for variant := range c.instructions {
			variants[variant] = true
		}
	}
	for _, variant := range slices.Sorted(maps.Keys(variants)) {
		varying = append(varying, row("instructions verified: "+variant, unlessRefused(func(c column) string {
			return strconv.Itoa(c.instructions[variant])
		})))
	}
	varying = append(varying, row("tests passed", func(c column) string { return strconv.Itoa(c.count()) }))
	return fixed, varying
}

func (t table) markdown() string {
	var b strings.Builder
	head := []string{"Linux"}
	for _, c := range t {
		head = append(head, c.release())
	}
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(head)
	line(append([]string{"---"}, slices.Repeat([]string{"---"}, len(t))...))
	fixed, varying := t.rows()
	for _, cells := range slices.Concat(fixed, varying) {
		line(cells)
	}
	return b.String()
}

// differences returns where a document differs in a feature of a kernel that is known. Releases and
// numbers of instructions may differ, because they change by themselves.
func (t table) differences(document string) (differences []string) {
	var head []string
	written := map[string][]string{} // cells, by the title of their row
	for line := range strings.Lines(document) {
		cells := strings.Split(strings.Trim(line, "| \n"), " | ")
		if cells[0] == "Linux" {
			head = cells
		} else if len(cells) == len(head) {
			written[cells[0]] = cells
		}
	}
	fixed, _ := t.rows()
	for i, c := range t {
		at := slices.IndexFunc(head, func(release string) bool { return strings.HasPrefix(release, c.series+".") })
		if at < 0 {
			differences = append(differences, "has no Linux "+c.series)
			continue
		}
		for _, cells := range fixed {
			title, found := cells[0], cells[1+i]
			if was := written[title]; was == nil {
				differences = append(differences, fmt.Sprintf("has no row %q", title))
			} else if found != notKnown && was[at] != found {
				differences = append(differences, fmt.Sprintf("says %q of %q for Linux %s, and found is %q", was[at], title, c.series, found))
			}
		}
	}
	return differences
}

func TestTable(t *testing.T) {
	loaded := parse("@kernel 6.1.0-56-cloud-amd64 #1 SMP Debian 6.1.192-2 (2026-10-01)\n"+
		"@begin load\n    a_test.go:1: linear, by flow: verified instructions 28446, 2315 after it\n    a_test.go:1: Landlock is version 3\n"+
		"--- PASS: TestProgramIsBelowTheLimitOfTheVerifier (1.55s)\n@end load 0\n@done\n", supported)
	old := parse("@kernel 5.10.0-46-cloud-amd64 #1 SMP Debian 5.10.262-1\n@begin refusal\n--- PASS: TestAnOldKernelIsRefused (1.55s)\n@end refusal 0\n@done\n", refused)
	got := table{{kernels[0], old}, {kernels[1], loaded}}
	text := got.markdown()
	for _, want := range []string{
		"| Linux | 5.10.262 | 6.1.192 |\n| --- | --- | --- |\n| exporter starts | refused | yes |\n| program loads | – | yes |\n| native mode on a veth | – | no |\n",
		"| trail cannot be emptied (Landlock 3) | – | yes |\n| no new TCP (Landlock 4) | – | no |\n| version of Landlock | – | 3 |\n",
		"| instructions verified: linear, by flow | – | 28446 |\n| tests passed | 1 | 1 |\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("got:\n%s\nwant in it:\n%s", text, want)
		}
	}
	if differences := got.differences("# Kernels\n\n" + text); len(differences) != 0 {
		t.Errorf("differences of the table from itself: %q", differences)
	}
	changed := strings.NewReplacer("5.10.262", "5.10.300", "28446", "30000", "program loads | – | yes", "program loads | – | no").Replace(text)
	const want = `says "no" of "program loads" for Linux 6.1, and found is "yes"`
	if differences := got.differences(changed); len(differences) != 1 || differences[0] != want {
		t.Errorf("got %q, want %s", differences, want)
	}
	// What only another kernel tests is not known of a kernel, unless it runs all of its tests.
	part, whole := kernels[3], kernels[3]
	whole.isWhole = true
	const hotplug = "| Linux | 6.18.15 |\n| a new ring for a CPU that was offline | yes |\n"
	for k, want := range map[*kernel]bool{&part: false, &whole: true} {
		differences := strings.Join(table{{*k, loaded}}.differences(hotplug), "\n")
		if strings.Contains(differences, `of "a new ring`) != want {
			t.Errorf("whole is %t: %s", k.isWhole, differences)
		}
	}
	if differences := got[1:].differences("# Kernels\n"); len(differences) != 1 || differences[0] != "has no Linux 6.1" {
		t.Errorf("got %q", differences)
	}
}
