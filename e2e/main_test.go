// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package e2e tests the built exporter from outside, in network namespaces with real packets.
package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
)

// binaries are the programs under test, which are built once. Every user can read their
// directory.
var binaries struct {
	folder, exporter, demo, probe string
}

// binariesVariable names a directory with the programs, for a machine without a compiler.
// Missing programs are built into it and kept.
const binariesVariable = "E2E_BINARIES"

// variant is a build of a program other than a plain go build. Those with the flags of a release
// use the packages that make build has compiled.
type variant struct {
	name        string   // of its file
	source      string   // folder of its main package
	arguments   []string // of go build
	environment []string
}

const upgradedVersion = "99.0.0"

var (
	released      = variant{"released", "..", []string{"-trimpath", "-tags=netgo,osusergo", "-ldflags=-s -w"}, []string{"CGO_ENABLED=0"}}
	releasedProbe = variant{"released_probe", "../cmd/xdp_audit_probe", released.arguments, released.environment}
	attackable    = variant{"attackable", "attackable", []string{"-trimpath", "-tags=netgo,osusergo"}, []string{"CGO_ENABLED=0"}}
	upgraded      = variant{"upgraded", "..", []string{"-ldflags=-s -w -X github.com/prometheus/common/version.Version=" + upgradedVersion}, nil}
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if cannotRun() != nil {
		return m.Run() // every test gives the reason
	}
	binaries.folder = os.Getenv(binariesVariable)
	if binaries.folder == "" {
		var err error
		if binaries.folder, err = os.MkdirTemp("", "xdp-audit-e2e-"); err != nil {
			return fail(err)
		}
		defer func() { _ = os.RemoveAll(binaries.folder) }()
	}
	binaries.exporter = filepath.Join(binaries.folder, "xdp_audit_exporter")
	binaries.demo = filepath.Join(binaries.folder, "demo")
	binaries.probe = filepath.Join(binaries.folder, "xdp_audit_probe")
	for binary, source := range map[string]string{
		binaries.exporter: "..", binaries.demo: "../examples/demo", binaries.probe: "../cmd/xdp_audit_probe",
	} {
		if err := buildOnce(binary, source, variant{}); err != nil {
			return fail(err)
		}
	}
	if err := os.Chmod(binaries.folder, 0o755); err != nil {
		return fail(err)
	}
	return m.Run()
}

// path returns the file of a variant.
func (v variant) path(t *testing.T) string {
	t.Helper()
	path := filepath.Join(binaries.folder, v.name)
	if err := buildOnce(path, v.source, v); err != nil {
		t.Fatal(err)
	}
	return path
}

// buildOnce builds a program unless it exists.
func buildOnce(binary, folder string, v variant) error {
	if _, err := os.Stat(binary); err == nil {
		return nil
	}
	return build(binary, folder, v)
}

// build compiles the program in a directory, which may belong to another module.
func build(binary, folder string, v variant) error {
	cmd := exec.Command("go", slices.Concat([]string{"build", "-o", binary}, v.arguments, []string{"."})...)
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), v.environment...)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", folder, err, output)
	}
	return nil
}

func TestVariants(t *testing.T) {
	if err := cannotRun(); err != nil {
		skip(t, err)
	}
	for _, v := range []variant{released, attackable, upgraded} {
		output, err := exec.Command(v.path(t), "--version").Output()
		if err != nil || !strings.HasPrefix(string(output), "xdp_audit_exporter, version") {
			t.Errorf("%s: %v: %s", v.name, err, output)
		}
	}
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// cannotRun returns the reason for which the tests cannot run here, or nil.
func cannotRun() error {
	if os.Geteuid() != 0 {
		return errors.New("only root may make network namespaces and load BPF programs")
	}
	if err := features.HaveProgramType(ebpf.XDP); err != nil {
		return fmt.Errorf("XDP programs cannot be loaded: %w", err)
	}
	return nil
}

// skip skips a test for a missing requirement. REQUIRE_BPF=1 turns the skip into a failure.
func skip(t *testing.T, reason error) {
	t.Helper()
	if os.Getenv("REQUIRE_BPF") == "1" {
		t.Fatalf("REQUIRE_BPF=1, but %v", reason)
	}
	t.Skip(reason)
}
