// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Finds out why the kernel refuses a system call. The same error number may come from a missing
// privilege, a user namespace, a seccomp filter or a security module, and libraries take a refusal
// for an old kernel.

// spareFiles is the number of files that a start opens at most at a time, except for its maps and
// rings. Libraries that try out features of the kernel take a lack of files for a lack of features.
const spareFiles = 24

// checkBPF returns an error that says why if the kernel refuses bpf(2) to this process.
func checkBPF() error {
	if err := checkFiles(spareFiles); err != nil {
		return err
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err == nil {
		return m.Close()
	}
	if cause := causeOfBPF(err); cause != "" {
		return fmt.Errorf("%s: %w", cause, withoutAdvice(err))
	}
	return fmt.Errorf("creating a BPF map: %w", err)
}

// withoutAdvice returns the error number of a refusal for want of privilege, to which cilium/ebpf
// adds that the limit of locked memory may be too low.
func withoutAdvice(err error) error {
	if errors.Is(err, unix.EPERM) {
		return rootCause(err)
	}
	return err
}

// checkFiles returns an error if this process cannot open that many more files.
func checkFiles(n int) (err error) {
	for range n {
		file, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
		if cause := causeOfFiles(err); cause != "" {
			return fmt.Errorf("%s: opening %d files: %w", cause, n, err)
		}
		if err != nil {
			return fmt.Errorf("opening %d files: %w", n, err)
		}
		defer unix.Close(file)
	}
	return nil
}

// hasErrno reports whether an error has an error number. Some errors of cilium/ebpf have it in
// their text only.
func hasErrno(err error, errno unix.Errno) bool {
	return errors.Is(err, errno) || strings.HasSuffix(err.Error(), errno.Error())
}

// causeOfFiles returns cause and remedy of a lack of files, and "" for another error.
func causeOfFiles(err error) string {
	switch {
	case err == nil:
		return ""
	case hasErrno(err, unix.EMFILE):
		var limit unix.Rlimit
		if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
			return "too many open files: raise the limit (ulimit -n, in a systemd unit LimitNOFILE=)"
		}
		return fmt.Sprintf("the limit of %d open files is too low: raise it (ulimit -n, in a systemd unit LimitNOFILE=)", limit.Cur)
	case hasErrno(err, unix.ENFILE):
		return "the machine has too many open files: raise fs.file-max"
	}
	return ""
}

// causeOfBPF returns cause and remedy of a refused bpf(2), and "" if they are not known.
func causeOfBPF(err error) string {
	if cause := causeOfFiles(err); cause != "" {
		return cause
	}
	if _, missing := os.Stat("/proc/self/mountinfo"); missing != nil && errors.Is(err, unix.ENOENT) {
		return "/proc is not mounted, and BPF maps cannot be created without it: mount it"
	}
	if !hasErrno(err, unix.EPERM) && !hasErrno(err, unix.EACCES) && !hasErrno(err, unix.ENOSYS) {
		return ""
	}
	isForeign := isInUserNamespace()
	if !isForeign || !needsPrivilege(kernelRelease()) {
		// An unknown command is refused to everyone, but with this error number only.
		_, _, errno := unix.Syscall(unix.SYS_BPF, math.MaxInt32, 0, 0)
		if cause := causeOfFiltered("bpf", "CONFIG_BPF_SYSCALL", errno); cause != "" {
			return cause
		}
	}
	if isForeign {
		return "bpf(2) is refused in a user namespace: start the exporter outside of it (no rootless or remapped container, no PrivateUsers= in a systemd unit)"
	}
	return privilegeRemedy + "; with these, a security module (SELinux, AppArmor) refuses bpf(2)"
}

// causeOfRings returns cause and remedy of a refused perf_event_open(2), and "" if they are not
// known. CAP_PERFMON does not suffice if kernel.perf_event_paranoid is above 2, as it is by default
// on Debian; otherwise the setting is not the cause.
func causeOfRings(err error) string {
	if cause := causeOfFiles(err); cause != "" {
		return cause
	}
	const without = ", or use --audit.event-rate=0"
	if strings.Contains(err.Error(), "mmap") && hasErrno(err, unix.EPERM) {
		return "raise kernel.perf_event_mlock_kb, or grant CAP_IPC_LOCK" + without
	}
	if hasErrno(err, unix.EPERM) || hasErrno(err, unix.EACCES) || hasErrno(err, unix.ENOSYS) {
		// Unknown flags are refused to everyone, but with this error number only.
		_, errno := unix.PerfEventOpen(&unix.PerfEventAttr{}, -1, 0, -1, math.MaxInt32)
		if cause := causeOfFiltered("perf_event_open", "CONFIG_PERF_EVENTS", errno); cause != "" {
			return cause + without
		}
		if isInUserNamespace() {
			return "perf_event_open(2) is refused in a user namespace: start the exporter outside of it" + without
		}
		setting, unknown := strconv.Atoi(readWord("/proc/sys/kernel/perf_event_paranoid"))
		if lacks := slices.Contains(missingCapabilities(effectiveCapabilities()), "CAP_PERFMON"); lacks && unknown == nil && setting <= 2 {
			return "grant CAP_PERFMON" + without
		}
		return "set kernel.perf_event_paranoid to 2 or less, or grant CAP_SYS_ADMIN" + without
	}
	return ""
}

// causeOfFiltered returns cause and remedy if a system call does not reach the kernel. err is the
// error of a call that the kernel refuses to everyone with EINVAL.
func causeOfFiltered(call, config string, err error) string {
	switch {
	case errors.Is(err, unix.EINVAL):
		return ""
	case hasSeccompFilter():
		return fmt.Sprintf("%s(2) is refused by a seccomp filter: allow it (in a systemd unit SystemCallFilter=%s, in a container another seccomp profile)", call, call)
	case errors.Is(err, unix.ENOSYS):
		return fmt.Sprintf("the kernel has no %s(2): use one with %s", call, config)
	}
	return fmt.Sprintf("%s(2) is refused by a security module: allow it", call)
}

// hasSeccompFilter reports whether the system calls of this thread are filtered.
func hasSeccompFilter() bool {
	const modeFilter = 2
	mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0)
	return err == nil && mode == modeFilter
}

// isInUserNamespace reports whether this process is in another user namespace than that of the
// machine. Without /proc it does not know.
func isInUserNamespace() bool {
	var namespace unix.Stat_t
	err := unix.Stat("/proc/self/ns/user", &namespace)
	return err == nil && namespace.Ino != initialUserNamespace
}

// explainCPUs returns an error that says why the possible CPUs of the machine cannot be counted.
func explainCPUs(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the number of CPUs is not known without sysfs: mount it at /sys: %w", err)
	}
	return fmt.Errorf("counting the possible CPUs: %w", err)
}
