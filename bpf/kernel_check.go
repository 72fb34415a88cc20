// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// checkKernel returns an error if the kernel lacks atomic instructions that return the old
// value, which the program needs: it locks the sets of the flow table with compare-and-swap.
// Kernels have all of these instructions or none, so compare-and-swap is tried for all. Loading
// leaves out whatever else an older kernel lacks.
func checkKernel() error {
	if err := probeCompareAndSwap(); err != nil {
		return explainProbe(err, kernelRelease())
	}
	return nil
}

// stackOffset is the offset of the word that compareAndSwap changes, from the frame pointer.
const stackOffset = -8

// compareAndSwap returns the instruction. cilium/ebpf encodes an atomic operation by the
// constant of the instruction, which it sets only for instructions of an object file. Without
// the constant, the instruction would be an addition.
func compareAndSwap() asm.Instruction {
	instruction := asm.CmpXchg.Mem(asm.RFP, asm.R1, asm.DWord, stackOffset)
	instruction.Constant = int64(asm.CmpXchg >> 8)
	return instruction
}

// probeCompareAndSwap loads a minimal program with compare-and-swap.
func probeCompareAndSwap() error {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R0, 0),
			asm.StoreMem(asm.RFP, stackOffset, asm.R0, asm.DWord),
			asm.Mov.Imm(asm.R1, 1),
			compareAndSwap(),
			asm.Return(),
		},
	})
	if err != nil {
		return err
	}
	return program.Close()
}

// explainProbe returns an error if the kernel rejected the minimal program for its instruction.
// It returns nil for any other reason, such as a missing privilege: loading the real program
// reports that with more context.
func explainProbe(err error, release string) error {
	var verifier *ebpf.VerifierError
	if !errors.As(err, &verifier) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return fmt.Errorf("the kernel %s has no compare-and-swap in BPF programs: use Linux 5.12 or later, on arm64 5.18 or later: %w", release, err)
}

// needsPrivilege reports whether bpf(2) needs capabilities even for maps and links that are
// open, on a kernel of that release. Linux 5.19 ended that.
func needsPrivilege(release string) bool { return isBefore(release, 5, 19) }

// isBefore reports whether a kernel of that release is older than a version. It takes a release
// that it cannot read for a newer one.
func isBefore(release string, major, minor int) bool {
	var ma, mi int
	if n, _ := fmt.Sscanf(release, "%d.%d", &ma, &mi); n != 2 {
		return false
	}
	return ma < major || ma == major && mi < minor
}

// kernelRelease returns the output of uname -r.
func kernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "in use"
	}
	return unix.ByteSliceToString(name.Release[:])
}
