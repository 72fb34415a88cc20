// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package kernels runs tests of the BPF program and of the built exporter inside other kernels,
// which it boots in an emulator.
package kernels

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/document"
)

// kernel is a series of kernels. The newest that Debian has is tested.
type kernel struct {
	series     string
	isRequired bool // the test fails if Debian does not have it
	groups     []group
	isWhole    bool // groups of others run as well, see [group]
}

// run returns the groups that a guest runs.
func (k kernel) run() []group {
	return slices.DeleteFunc(slices.Clone(k.groups), func(g group) bool {
		return !k.isWhole && g.only != "" && g.only != k.series
	})
}

var kernels = []kernel{
	{"5.10", false, refused, false},
	{"6.1", true, slices.Concat(supported, devices), false},
	{"6.12", true, slices.Concat(supported, since62, devices), false},
	{"6.18", false, slices.Concat(supported, since62), false},
	{"7", false, slices.Concat(supported, since62), false},
}

const (
	bpfTests = "bpf.test"
	e2eTests = "e2e.test"
)

// supported are the tests for a kernel that can run the exporter. Emulation is slow, so these
// are only the tests that may depend on the kernel. None of them depends on the time at which a
// packet arrives, or sends more than it waits for. In CI every kernel runs those of hooks, the
// verifier, maps, rings and privileges. The rest is of paths in the exporter that use what these
// have tested: one kernel runs it, the oldest.
var supported = []group{
	{"load", bpfTests, []string{"TestKernelHasCompareAndSwap", "TestProgramIsBelowTheLimitOfTheVerifier"}, ""},
	{"attach", e2eTests, []string{
		"TestModes", "TestADeviceThatIsTakenIsRefused", "TestARefusalGivesTheReason", "TestJumboFrames", "TestKillLeavesNothing",
	}, ""},
	{"model", bpfTests, []string{"TestProgramEqualsModel", "TestTruncatedFramesAreCountedOnce"}, ""},
	{"exchanges", bpfTests, []string{
		"TestFormsOfExchanges", "TestExchangesEqualModel", "TestProgramOfOutgoingPacketsIsBelowTheLimitOfTheVerifier",
	}, ""},
	{"classes", bpfTests, []string{"TestClassesOfRequests", "TestExchangesOfConnectionsThatAreReset"}, "6.1"},
	{"assessments", e2eTests, []string{"TestLeakVariants", "TestLeakFollowsDevices"}, "6.1"},
	{"judges", e2eTests, []string{"TestLeakRestarts"}, ""},
	{"audit", e2eTests, []string{"TestUDPIsCountedExactly", "TestTCPIsCountedExactly"}, ""},
	{"apart", e2eTests, []string{"TestDevicesAreCountedApart"}, "6.1"},
	{"rings", bpfTests, []string{"TestFlaggedPacketArrivesAsEvent", "TestEveryFlagHasAFate"}, ""},
	{"events", e2eTests, []string{"TestHangupReopensTheTrail"}, "6.1"},
	{"check", e2eTests, []string{"TestCheckInJSON", "TestCheckWithoutPrivilege"}, "6.1"},
	{"hotplug", e2eTests, []string{"TestACPUGoesAndComesBack"}, "6.1"},
	{"restart", e2eTests, []string{"TestRestartsLoseNothing"}, ""},
	{"starts", e2eTests, []string{
		"TestUpgrade", "TestWantedDevicesKeepTheirIndices", "TestAStartThatFailsLateKeepsTheNewMode",
		"TestAStartThatFailsLateReturnsItsIndex", "TestSIGTERMDuringACommit",
	}, "6.1"},
	{"follow", e2eTests, []string{"TestAGlobIsFollowed", "TestStateAndMTUChange"}, ""},
	{"names", e2eTests, []string{"TestAbsentDevicesMayCome", "TestAnAlternativeNameIsFollowed"}, "6.1"},
	{"privileges", e2eTests, []string{
		"TestNoPrivilegeAfterStart", "TestAttacksFromInside", "TestMissingPrivilegeIsRefused", "TestThreeCapabilitiesAreEnough",
		"TestParanoidKernelsNameTheSetting",
	}, ""},
}

// since62 are the tests that need Linux 6.2. Before, a device that is up cannot be renamed.
var since62 = []group{
	{"rename", e2eTests, []string{"TestARenamedDevice"}, ""},
	{"renames", e2eTests, []string{"TestARenamedDeviceWithAnAlternativeName"}, "6.12"},
}

// devices are the tests of all kinds of devices. The newer kernel has all of the kinds.
var devices = []group{{"devices", e2eTests, []string{"TestKindsOfDevice"}, "6.12"}}

// refused are the tests for a kernel that cannot run the exporter.
var refused = []group{{"refusal", e2eTests, []string{"TestAnOldKernelIsRefused"}, ""}}

// choose returns the kernels of a list separated by spaces or commas. A kernel that is named is
// required, and runs all of its groups. With "all" every kernel runs all of its groups. An empty
// list is what CI tests: every kernel, and each group of one kernel in that one.
func choose(list string) (chosen []kernel, err error) {
	names := strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
	if len(names) == 0 {
		return kernels, nil
	}
	if list == "all" {
		for _, k := range kernels {
			k.isWhole = true
			chosen = append(chosen, k)
		}
		return chosen, nil
	}
	for _, name := range names {
		i := slices.IndexFunc(kernels, func(k kernel) bool { return k.series == name })
		if i < 0 {
			return nil, fmt.Errorf("no kernel %s is tested", name)
		}
		k := kernels[i]
		k.isRequired, k.isWhole = true, true
		chosen = append(chosen, k)
	}
	return chosen, nil
}

// needKernels skips a test that boots kernels unless TEST_KERNELS is 1, because it takes minutes
// and needs packages from the network.
func needKernels(t *testing.T) {
	t.Helper()
	if os.Getenv("TEST_KERNELS") != "1" {
		t.Skip("TEST_KERNELS is not 1: make test-kernels runs this")
	}
}

// cacheFolder returns the directory that keeps kernels between runs.
func cacheFolder(t *testing.T) string {
	t.Helper()
	folder, err := filepath.Abs("../../.build/kernels")
	if err != nil {
		t.Fatal(err)
	}
	return folder
}

// TestInsideKernels runs the groups of each kernel in it. KERNELS chooses the kernels. If
// KERNEL_REPORT names the folder of documents, the test writes the tables of kernels.md and
// devices.md; otherwise these must be correct, as far as the groups have run.
func TestInsideKernels(t *testing.T) {
	needKernels(t)
	chosen, err := choose(os.Getenv("KERNELS"))
	if err != nil {
		t.Fatal(err)
	}
	a, err := openArchive(t.Context(), cacheFolder(t))
	if err != nil {
		t.Fatal(err)
	}
	if a.stale != nil {
		t.Logf("the lists of packages are not up to date: %v", a.stale)
	}
	p := buildPrograms(t)
	columns := make([]*column, len(chosen))
	t.Run("Linux", func(t *testing.T) {
		for n, k := range chosen {
			t.Run(k.series, func(t *testing.T) {
				i, err := a.kernel(t.Context(), k.series)
				if err != nil && k.isRequired {
					t.Fatalf("Linux %s has to be tested: %v", k.series, err)
				}
				if err != nil {
					t.Skipf("LINUX %s IS NOT TESTED: %v", k.series, err)
				}
				t.Parallel()
				columns[n] = testInside(t, k, i, p)
			})
		}
	})
	var table table
	for _, c := range columns {
		if c != nil {
			table = append(table, *c)
		}
	}
	if t.Failed() {
		return
	}
	if folder := os.Getenv("KERNEL_REPORT"); folder != "" {
		if len(table) != len(kernels) {
			t.Fatalf("the tables in %s are not written: they are of %d kernels, and %d were tested", folder, len(kernels), len(table))
		}
		if slices.ContainsFunc(table, func(c column) bool { return !c.isWhole }) {
			t.Fatalf("the tables in %s are not written: groups were left out: use KERNELS=all", folder)
		}
		if err := errors.Join(
			document.Update(filepath.Join(folder, kernelsDocument), "kernels", table.markdown()),
			document.Update(filepath.Join(folder, devicesDocument), "devices", table.deviceMarkdown()),
		); err != nil {
			t.Fatal(err)
		}
		return
	}
	for name, differences := range map[string]func(string) []string{
		kernelsDocument: table.differences, devicesDocument: table.deviceDifferences,
	} {
		content, err := os.ReadFile(filepath.Join("../../docs", name))
		if err != nil {
			t.Fatal(err)
		}
		for _, difference := range differences(string(content)) {
			t.Errorf("docs/%s %s: run make kernel-table", name, difference)
		}
	}
}

const (
	kernelsDocument = "kernels.md"
	devicesDocument = "devices.md"
)

// testInside boots a kernel and expects its groups to pass.
func testInside(t *testing.T, k kernel, i image, p programs) *column {
	t.Helper()
	start := time.Now()
	groups := k.run()
	report, console, err := boot(t.Context(), i, p, groups)
	if err != nil {
		t.Fatalf("%v\n%s", err, console)
	}
	r := parse(report, groups)
	for _, failure := range r.failures {
		t.Error(failure)
	}
	if t.Failed() {
		t.Fatalf("Linux %s: the kernel's console ends with\n%s", i.abi, tail(console, 40))
	}
	t.Logf("Linux %s: %d tests passed in %v, the slowest in seconds: %s", r.release(), r.count(), time.Since(start).Round(time.Second), r.slowest(8))
	return &column{k, r}
}

// A failing guest is noticed: one that panics, one in which a test fails, and one without its
// programs.
func TestFailingGuestsAreNoticed(t *testing.T) {
	needKernels(t)
	const series = "6.1"
	a, err := openArchive(t.Context(), cacheFolder(t))
	if err != nil {
		t.Fatal(err)
	}
	good, err := a.kernel(t.Context(), series)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	noModule, noKernel := good, good
	noModule.modules = []string{filepath.Join(folder, "broken.ko")}
	noKernel.kernel = noModule.modules[0]
	if err := os.WriteFile(noKernel.kernel, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	// Programs that behave like a test binary.
	p := programs{folder}
	for _, name := range programFiles {
		script := "#!/bin/sh\necho '--- PASS: TestGood (0.00s)'\nexit 0\n"
		if name == e2eTests {
			script = "#!/bin/sh\necho '--- FAIL: TestBad (0.00s)'\nexit 1\n"
		}
		if err := os.WriteFile(p.path(name), []byte(script), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	goodGroup, badGroup := group{"good", bpfTests, []string{"TestGood"}, ""}, group{"bad", e2eTests, []string{"TestBad"}, ""}
	for _, test := range []struct {
		description string
		image       image
		groups      []group
		failures    int
		want        string // in a failure or in the error
	}{
		{"all is well", good, []group{goodGroup}, 0, ""},
		{"a test fails", good, []group{goodGroup, badGroup}, 1, "--- FAIL: TestBad"},
		{"a module cannot be loaded, and the first process ends", noModule, []group{goodGroup}, 2, "did not come to its end"},
		{"a kernel does not boot", noKernel, []group{goodGroup}, 2, "qemu"},
	} {
		t.Run(test.description, func(t *testing.T) {
			t.Parallel()
			report, console, err := boot(t.Context(), test.image, p, test.groups)
			failures := parse(report, test.groups).failures
			if len(failures) != test.failures || !strings.Contains(fmt.Sprint(failures, err), test.want) {
				t.Errorf("failures are %q, %v; want %d, with %q\n%s", failures, err, test.failures, test.want, tail(console, 20))
			}
		})
	}
}

func TestChoose(t *testing.T) {
	chosen, err := choose("6.18, 5.10")
	if err != nil || len(chosen) != 2 || chosen[0].series != "6.18" || chosen[1].series != "5.10" || !chosen[1].isRequired {
		t.Errorf("got %v, %v", chosen, err)
	}
	for list, isWhole := range map[string]bool{"": false, "all": true} {
		all, err := choose(list)
		if err != nil || len(all) != len(kernels) || all[1].isWhole != isWhole || !all[1].isRequired || all[0].isRequired {
			t.Errorf("%q: got %v, %v", list, all, err)
		}
	}
	if groups := chosen[0].run(); len(groups) != len(chosen[0].groups) {
		t.Errorf("a kernel that is named runs only %v", groups)
	}
	if chosen, err := choose("6.1 2.6"); err == nil || err.Error() != "no kernel 2.6 is tested" {
		t.Errorf("got %v, %v", chosen, err)
	}
}
