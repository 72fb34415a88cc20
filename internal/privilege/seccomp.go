// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package privilege

import (
	"fmt"
	"log/slog"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// refusedCommands are the commands of bpf(2) that use an open program without a capability: they
// attach it elsewhere, or let it pass frames on to the host as if a device had received them.
// Every other command needs a capability, or only acts on what is open.
var refusedCommands = []uint32{
	unix.BPF_PROG_ATTACH, unix.BPF_PROG_TEST_RUN, unix.BPF_RAW_TRACEPOINT_OPEN, unix.BPF_LINK_CREATE,
}

// nativeCalls are the architectures whose system calls the filter knows, see seccomp(2). All of
// them are little-endian.
var nativeCalls = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// Offsets in struct seccomp_data.
const (
	offsetNumber   = 0
	offsetArch     = 4
	offsetArgument = 16 // the lower half of the first argument
)

// x32Bit marks the system calls of another ABI of amd64.
const x32Bit = 0x40000000

// RefusePrograms refuses new uses of the BPF programs that are open: in all threads the commands of
// bpf(2) that attach or run them fail with EPERM, and so do all system calls of another
// architecture. A kernel without filters of system calls causes one log line. It is to be called
// after [Drop], once the process attaches nothing more.
func RefusePrograms(logger *slog.Logger) {
	if err := installFilter(); err != nil {
		logger.Warn("Open BPF programs can be attached to other devices by an attacker inside this process: "+
			"the kernel takes no filter of system calls", "err", err)
	}
}

func installFilter() error {
	arch, isKnown := nativeCalls[runtime.GOARCH]
	if !isKnown {
		return fmt.Errorf("the numbers of system calls on %s are not known", runtime.GOARCH)
	}
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	end := func(action uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
	}
	const equal, atLeast = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	refuse, allow := end(unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM)), end(unix.SECCOMP_RET_ALLOW)
	// Jt and Jf are the numbers of instructions to skip.
	filter := []unix.SockFilter{
		load(offsetArch), {Code: equal, K: arch, Jt: 1}, refuse,
		load(offsetNumber), {Code: atLeast, K: x32Bit, Jf: 1}, refuse,
		{Code: equal, K: unix.SYS_BPF, Jt: 1}, allow,
		load(offsetArgument),
	}
	for _, command := range refusedCommands {
		filter = append(filter, unix.SockFilter{Code: equal, K: command, Jf: 1}, refuse)
	}
	filter = append(filter, allow)
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(&filter)
	if errno != 0 {
		return errno
	}
	return nil
}
