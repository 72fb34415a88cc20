// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// withFilter calls f while a seccomp filter refuses a system call with an error number. Only the
// calling thread has that filter.
func withFilter(t *testing.T, call uint32, errno unix.Errno, f func()) {
	t.Helper()
	const seccompSetModeFilter = 1
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number of the system call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	done := make(chan error)
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked, so that the thread ends with the goroutine
		program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		_, _, refused := unix.Syscall(unix.SYS_SECCOMP, seccompSetModeFilter, 0, uintptr(unsafe.Pointer(&program)))
		if refused != 0 {
			done <- refused
			return
		}
		f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// expectCause expects an error with all parts, that blames neither the verifier, nor the limit of
// locked memory, nor the version of the kernel.
func expectCause(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", parts)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not contain %q: %v", part, err)
		}
	}
	for _, wrong := range []string{"verifier", "locked memory", "MEMLOCK", "requires >=", "compare-and-swap", "cgroup", "\n"} {
		if strings.Contains(err.Error(), wrong) {
			t.Errorf("the error contains %q: %v", wrong, err)
		}
	}
}

// A container engine or a unit may refuse system calls. The error says so, whatever error number
// the filter returns.
func TestFilteredCallsAreNamed(t *testing.T) {
	needBPF(t)
	for _, errno := range []unix.Errno{unix.EPERM, unix.ENOSYS, unix.EACCES} {
		t.Run(errno.Error(), func(t *testing.T) {
			config := testConfig()
			open := func() error {
				audit, err := load(config, config.Devices, testKeys(), slog.New(slog.DiscardHandler))
				if err != nil {
					return err
				}
				return audit.Close()
			}
			withFilter(t, unix.SYS_BPF, errno, func() {
				expectCause(t, open(), "bpf(2)", "seccomp", "SystemCallFilter=bpf")
			})
			withFilter(t, unix.SYS_PERF_EVENT_OPEN, errno, func() {
				expectCause(t, open(), "rings", "perf_event_open(2)", "seccomp", "SystemCallFilter=perf_event_open", "--audit.event-rate=0")
				config.EventRate = 0
				if err := open(); err != nil {
					t.Errorf("without events: %v", err)
				}
			})
		})
	}
}

// Without a filter, the same error numbers have other causes.
func TestRefusedCallsNameTheRemedy(t *testing.T) {
	if hasSeccompFilter() {
		t.Skip("system calls of the test are filtered")
	}
	inText := func(errno unix.Errno) error { // as cilium/ebpf reports it
		return errors.New("failed to create perf ring for CPU 0: can't create perf event: " + errno.Error())
	}
	for _, test := range []struct {
		err  error
		want []string
	}{
		{explainRings(inText(unix.EACCES)), []string{"rings", "kernel.perf_event_paranoid", "CAP_SYS_ADMIN", "--audit.event-rate=0"}},
		{explainRings(inText(unix.EPERM)), []string{"rings", "kernel.perf_event_paranoid", "CAP_SYS_ADMIN", "--audit.event-rate=0"}},
		{explainRings(inText(unix.EMFILE)), []string{"rings", "open files", "ulimit -n"}},
		{explainRings(errors.New("can't mmap: operation not permitted")), []string{"kernel.perf_event_mlock_kb", "CAP_IPC_LOCK", "--audit.event-rate=0"}},
		{errors.New(causeOfFiltered("perf_event_open", "CONFIG_PERF_EVENTS", unix.ENOSYS)), []string{"the kernel has no perf_event_open(2)", "CONFIG_PERF_EVENTS"}},
		{errors.New(causeOfFiltered("bpf", "CONFIG_BPF_SYSCALL", unix.EPERM)), []string{"bpf(2)", "security module"}},
		{explainCPUs(fmt.Errorf("open possible: %w", unix.ENOENT)), []string{"CPUs", "mount it at /sys"}},
		{explainMap("flow_sets", 8, fmt.Errorf("map create: %w", unix.EMFILE)), []string{"flow_sets", "open files", "ulimit -n", "LimitNOFILE="}},
		{explainMap("flow_sets", 8, fmt.Errorf("map create: %w", unix.ENFILE)), []string{"flow_sets", "fs.file-max"}},
		{explainMap("flow_sets", 8, fmt.Errorf("map create: %w (MEMLOCK may be too low)", unix.EPERM)), []string{"flow_sets", "CAP_BPF", "operation not permitted"}},
		{explainLoad(fmt.Errorf("load program: %w (MEMLOCK may be too low)", unix.EPERM)), []string{"program", "CAP_BPF"}},
		{explainLoad(&ebpf.VerifierError{Cause: fmt.Errorf("load program: %w", unix.EMFILE), Log: []string{"Func#9 is safe"}}), []string{"program", "open files", "ulimit -n"}},
	} {
		expectCause(t, test.err, test.want...)
	}
}

// A setting of the kernel that allows the rings to CAP_PERFMON is not blamed for their refusal.
func TestRefusedRingsNeedPerfmonFirst(t *testing.T) {
	if hasSeccompFilter() {
		t.Skip("system calls of the test are filtered")
	}
	refused := fmt.Errorf("can't create perf event: %w", unix.EACCES)
	for setting, want := range map[string]string{
		"3": "set kernel.perf_event_paranoid to 2 or less",
		"2": "grant CAP_PERFMON, or use --audit.event-rate=0",
	} {
		// In a thread of its own.
		withFile(t, "/proc/sys/kernel/perf_event_paranoid", setting, func() {
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var none [2]unix.CapUserData // of this thread, which ends with the function
			if err := unix.Capset(&header, &none[0]); err != nil {
				t.Error(err)
			}
			expectCause(t, explainRings(refused), want)
		})
	}
}

// Without /proc, missing capabilities are still named.
func TestCapabilitiesAreReadWithoutProc(t *testing.T) {
	needBPF(t)
	withFile(t, "/proc/self/status", "", func() {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var words [2]unix.CapUserData
		if err := unix.Capget(&header, &words[0]); err != nil {
			t.Error(err)
			return
		}
		words[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		words[1].Effective &^= 1 << (unix.CAP_PERFMON - 32)
		words[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
		if err := unix.Capset(&header, &words[0]); err != nil { // of this thread
			t.Error(err)
			return
		}
		expectCause(t, checkCapabilities(), "CAP_PERFMON", "CAP_NET_ADMIN")
	})
}
