// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -output-stem syscalls -output-suffix _test syscalls syscalls.bpf.c -- -O3 -mcpu=v3 -Wall -Wextra -Werror -Wpadded -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu

// systemCalls are the system calls of a process.
type systemCalls struct {
	all uint64
	bpf uint64 // bpf(2)
}

// countSystemCalls counts the system calls of a process from now on. The returned function
// returns their number so far.
func countSystemCalls(t *testing.T, p *process) (calls func() systemCalls) {
	t.Helper()
	var namespace unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &namespace); err != nil {
		t.Fatal(err)
	}
	spec, err := loadSyscalls()
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]any{
		"namespace_device": namespace.Dev, "namespace_inode": namespace.Ino,
		"process": uint32(p.cmd.Process.Pid), "number": uint32(unix.SYS_BPF),
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			t.Fatal(err)
		}
	}
	var objects syscallsObjects
	if err := spec.LoadAndAssign(&objects, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := objects.Close(); err != nil {
			t.Error(err)
		}
	})
	attached, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sys_enter", Program: objects.CountCall})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := attached.Close(); err != nil {
			t.Error(err)
		}
	})
	return func() (n systemCalls) {
		t.Helper()
		if err := errors.Join(objects.AllCalls.Get(&n.all), objects.Calls.Get(&n.bpf)); err != nil {
			t.Fatal(err)
		}
		return n
	}
}
