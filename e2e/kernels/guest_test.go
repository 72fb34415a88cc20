// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package kernels

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

//go:embed testdata/init.sh
var initScript []byte

// bootTimeout bounds a guest from power-on to power-off.
const bootTimeout = 8 * time.Minute

// programs is a directory with the programs of a guest: the tests, and the exporters under test.
type programs struct{ folder string }

// programFiles are their names.
var programFiles = []string{bpfTests, e2eTests, "xdp_audit_exporter", "xdp_audit_probe", "demo", "released", "attackable", "upgraded"}

// buildPrograms builds the programs without cgo, because a guest has no libraries.
func buildPrograms(t *testing.T) programs {
	t.Helper()
	p := programs{t.TempDir()}
	// With the flags of a release, packages are used that make build has compiled.
	environment := append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath -tags=netgo,osusergo '-ldflags=-s -w'", "E2E_BINARIES="+p.folder, "REQUIRE_BPF=1")
	for _, args := range [][]string{
		{"go", "test", "-c", "-o", p.path(bpfTests), "./bpf"},
		{"go", "test", "-c", "-o", p.path(e2eTests), "./e2e"},
		{p.path(e2eTests), "-test.run=^TestVariants$"}, // builds the exporters
	} {
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Env, cmd.Dir = environment, "../.."
		if args[0] != "go" {
			cmd.Dir = ".."
		}
		if output, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, output)
		}
	}
	return p
}

func (p programs) path(name string) string { return filepath.Join(p.folder, name) }

// boot runs groups of tests inside a kernel. It returns their report and the console of the
// kernel. The error is not nil only if the machine could not run.
func boot(ctx context.Context, i image, p programs, groups []group) (report, console string, err error) {
	folder, err := os.MkdirTemp("", "xdp-audit-guest-")
	if err != nil {
		return "", "", err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	initramfs, reportPath := filepath.Join(folder, "initramfs"), filepath.Join(folder, "report")
	if err := writeInitramfs(ctx, initramfs, i, p, groups); err != nil {
		return "", "", err
	}
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	// The guest is emulated, so that every machine can run it. Its two CPUs share one thread.
	// With a thread for each, QEMU of Debian 12 sometimes executes a breakpoint that the kernel
	// has already removed, while the kernel swaps the program of a hook, and the kernel panics
	// with "int3".
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", "1024",
		"-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio", "-serial", "file:"+reportPath,
		"-kernel", i.kernel, "-initrd", initramfs, "-append", "console=ttyS0 quiet panic=-1 mitigations=off nokaslr")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig follows the thread
	err = cmd.Run()
	runtime.UnlockOSThread()
	if err != nil && ctx.Err() == nil {
		return "", output.String(), fmt.Errorf("qemu: %w", err)
	}
	text, err := os.ReadFile(reportPath)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", "", err
	}
	if ctx.Err() != nil {
		fmt.Fprintf(&output, "\nno power-off within %v\n", bootTimeout)
	}
	clean := func(s string) string { return strings.ReplaceAll(s, "\r", "") }
	return clean(string(text)), clean(output.String()), nil
}

// writeInitramfs packs all files of a guest.
func writeInitramfs(ctx context.Context, path string, i image, p programs, groups []group) error {
	root := path + ".root"
	for _, folder := range []string{"bin", "dev", "etc", "proc", "programs", "sys", "tmp", i.moduleFolder()} {
		if err := os.MkdirAll(filepath.Join(root, folder), 0o755); err != nil {
			return err
		}
	}
	var lines strings.Builder
	for _, g := range groups {
		fmt.Fprintf(&lines, "%s %s %s\n", g.name, g.program, g.pattern())
	}
	for name, file := range map[string]struct {
		text string
		mode os.FileMode
	}{
		"init":       {string(initScript), 0o755},
		"groups":     {lines.String(), 0o644},
		"etc/passwd": {"root:x:0:0:root:/:/bin/sh\n", 0o644},
		"etc/shadow": {"root:*:::::::\n", 0o600}, // the exporter must not read it
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(file.text), file.mode); err != nil {
			return err
		}
	}
	copies := map[string]string{"/bin/busybox": "bin/busybox"}
	ip, err := filesOf(ctx, "ip")
	if err != nil {
		return err
	}
	maps.Copy(copies, ip)
	for _, module := range i.modules {
		copies[module] = filepath.Join(i.moduleFolder(), filepath.Base(module))
	}
	for _, name := range programFiles {
		copies[p.path(name)] = "programs/" + name
	}
	for from, to := range copies {
		content, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		path := filepath.Join(root, to)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o755)); err != nil {
			return err
		}
	}
	if _, err := output(exec.CommandContext(ctx, "busybox", "depmod", "-b", root, i.abi)); err != nil {
		return err
	}
	var names bytes.Buffer
	err = filepath.Walk(root, func(path string, _ os.FileInfo, err error) error {
		name, _ := filepath.Rel(root, path)
		fmt.Fprintln(&names, name)
		return err
	})
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "cpio", "--create", "--format=newc", "--quiet", "--owner=0:0", "--file="+path)
	cmd.Dir, cmd.Stdin = root, &names
	_, err = output(cmd)
	return err
}

// moduleFolder returns the folder of the modules in a guest, as modprobe expects it.
func (i image) moduleFolder() string { return filepath.Join("lib/modules", i.abi, "kernel") }

// filesOf returns the files of a program of this machine with its libraries, each with its path in
// a guest.
func filesOf(ctx context.Context, program string) (map[string]string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, err
	}
	files := map[string]string{path: "sbin/" + program}
	libraries, err := output(exec.CommandContext(ctx, "ldd", path))
	if err != nil {
		return nil, err
	}
	for _, match := range regexp.MustCompile(`(/\S+) \(0x`).FindAllStringSubmatch(libraries, -1) {
		files[match[1]] = match[1]
	}
	return files, nil
}
