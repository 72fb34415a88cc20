// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package e2e tests the built exporter from outside, on network namespaces with real packets.
package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
)

// binaries are the programs under test, built once. Their folder is readable by every user.
var binaries struct {
	folder, exporter, demo string
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if cannotRun() != nil {
		return m.Run() // every test says so
	}
	folder, err := os.MkdirTemp("", "xdp-audit-e2e-")
	if err != nil {
		return fail(err)
	}
	defer func() { _ = os.RemoveAll(folder) }()
	binaries.folder = folder
	binaries.exporter = filepath.Join(folder, "xdp_audit_exporter")
	binaries.demo = filepath.Join(folder, "demo")
	for binary, source := range map[string]string{binaries.exporter: "..", binaries.demo: "../examples/demo"} {
		if err := build(binary, source); err != nil {
			return fail(err)
		}
	}
	if err := os.Chmod(folder, 0o755); err != nil {
		return fail(err)
	}
	return m.Run()
}

// build compiles the program in a folder, which may be in a module of its own.
func build(binary, folder string) error {
	cmd := exec.Command("go", "build", "-o", binary, ".")
	cmd.Dir = folder
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", folder, err, output)
	}
	return nil
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// cannotRun is why the tests cannot run here, or nil.
func cannotRun() error {
	if os.Geteuid() != 0 {
		return errors.New("only root may make network namespaces and load BPF programs")
	}
	if err := features.HaveProgramType(ebpf.XDP); err != nil {
		return fmt.Errorf("XDP programs cannot be loaded: %w", err)
	}
	return nil
}

// skip skips a test for something that is missing here; REQUIRE_BPF=1 turns that into a failure.
func skip(t *testing.T, reason error) {
	t.Helper()
	if os.Getenv("REQUIRE_BPF") == "1" {
		t.Fatalf("REQUIRE_BPF=1, but %v", reason)
	}
	t.Skip(reason)
}
