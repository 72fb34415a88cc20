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

// checkKernel returns an error if the kernel lacks what the program cannot do without: atomic instructions that return what was
// there, of which compare-and-swap stands for all. The sets of the flow table are locked with one. All else that an older
// kernel lacks is left out when the program is loaded.
func checkKernel() error {
	if err := probeCompareAndSwap(); err != nil {
		return explainProbe(err, kernelRelease())
	}
	return nil
}

// stackOffset is where compareAndSwap has its word on the stack.
const stackOffset = -8

// compareAndSwap returns the instruction. The library encodes an atomic operation by the constant of the instruction, which
// it sets only when it reads one from an object: without it this would be an addition.
func compareAndSwap() asm.Instruction {
	instruction := asm.CmpXchg.Mem(asm.RFP, asm.R1, asm.DWord, stackOffset)
	instruction.Constant = int64(asm.CmpXchg >> 8)
	return instruction
}

// probeCompareAndSwap loads the smallest program that has it.
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

// explainProbe says what the refusal of the smallest program with compare-and-swap means. What has another reason is left to
// those who come to it, and know what they were about to do.
func explainProbe(err error, release string) error {
	var verifier *ebpf.VerifierError
	if !errors.As(err, &verifier) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return fmt.Errorf("the kernel %s has no compare-and-swap in BPF programs: use Linux 5.12 or later, on arm64 5.18 or later: %w", release, err)
}

// kernelRelease returns what uname -r says.
func kernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "in use"
	}
	return unix.ByteSliceToString(name.Release[:])
}
