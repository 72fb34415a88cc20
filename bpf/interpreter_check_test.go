// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// interpret runs instructions after some that set R1, R2, and R6 to the frame, and returns R1.
func interpret(t *testing.T, r1, r2 int64, code ...asm.Instruction) (uint64, error) {
	t.Helper()
	all := asm.Instructions{
		asm.LoadMem(asm.R6, asm.R1, 0, asm.Word), asm.LoadImm(asm.R1, r1, asm.DWord), asm.LoadImm(asm.R2, r2, asm.DWord),
	}
	all = append(append(all, code...), asm.Mov.Reg(asm.R0, asm.R1), asm.Return())
	spec := &ebpf.CollectionSpec{
		Programs: map[string]*ebpf.ProgramSpec{"program": {Instructions: all}},
		Maps: map[string]*ebpf.MapSpec{".rodata": {
			Type: ebpf.Array, ValueSize: 8, MaxEntries: 1, Contents: []ebpf.MapKV{{Key: uint32(0), Value: make([]byte, 8)}},
		}},
	}
	m, err := newInterpreter(spec, "program")
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.run(make([]byte, 60), 0, longestFrame)
	return m.r[asm.R0], err
}

// Results are those of the instruction set's standard, RFC 9669.
func TestInterpreterInstructions(t *testing.T) {
	const (
		r1, r2  = asm.R1, asm.R2
		largest = 1<<64 - 1
	)
	bswap := func(bits int64) asm.Instruction {
		return asm.Instruction{OpCode: asm.OpCode(asm.ALUClass).SetALUOp(asm.Swap) | asm.OpCode(asm.BE), Dst: r1, Constant: bits}
	}
	for _, test := range []struct {
		name   string
		r1, r2 int64
		code   asm.Instruction
		want   uint64
	}{
		{"a sum wraps", -1, 3, asm.Add.Reg(r1, r2), 2},
		{"a 32-bit sum clears the upper half", -1, 3, asm.Add.Reg32(r1, r2), 2},
		{"a constant is sign-extended", 5, 0, asm.Add.Imm(r1, -6), largest},
		{"a 32-bit constant is not", 5, 0, asm.Add.Imm32(r1, -6), 0xffff_ffff},
		{"a product keeps 64 bits", -1 << 63, 3, asm.Mul.Reg(r1, r2), 1 << 63},
		{"a division is unsigned", -2, 2, asm.Div.Reg(r1, r2), 1<<63 - 1},
		{"a division by zero gives zero", 7, 0, asm.Div.Reg(r1, r2), 0},
		{"a remainder by zero is the dividend", 7, 0, asm.Mod.Reg(r1, r2), 7},
		{"a 32-bit division ignores the upper halves", 1<<32 | 8, 1<<32 | 2, asm.Div.Reg32(r1, r2), 4},
		{"a shift counts modulo 64", 1, 65, asm.LSh.Reg(r1, r2), 2},
		{"a 32-bit shift counts modulo 32", 1, 33, asm.LSh.Reg32(r1, r2), 2},
		{"a right shift fills with zeros", -1, 60, asm.RSh.Reg(r1, r2), 15},
		{"an arithmetic shift fills with the sign", -16, 2, asm.ArSh.Reg(r1, r2), largest - 3},
		{"a 32-bit arithmetic shift takes the sign of the lower half", 0x8000_0000, 31, asm.ArSh.Reg32(r1, r2), 0xffff_ffff},
		{"a negation", 1, 0, asm.Neg.Imm(r1, 0), largest},
		{"a 32-bit copy clears the upper half", 0, -1, asm.Mov.Reg32(r1, r2), 0xffff_ffff},
		{"16 bits in network order", 0x11223344, 0, bswap(16), 0x4433},
		{"32 bits in network order", 0x1122334455667788, 0, bswap(32), 0x88776655},
		{"64 bits in network order", 0x1122334455667788, 0, bswap(64), 0x8877665544332211},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got, err := interpret(t, test.r1, test.r2, test.code); err != nil || got != test.want {
				t.Errorf("got %#x, want %#x: %v", got, test.want, err)
			}
		})
	}
}

func TestInterpreterJumps(t *testing.T) {
	const minusOne, minusOne32 = -1, 1<<32 - 1
	for _, test := range []struct {
		name    string
		r1, r2  int64
		jump    asm.Instruction
		isTaken bool
	}{
		{"unsigned: −1 is the largest number", minusOne, 1, asm.JGT.Reg(asm.R1, asm.R2, "skip"), true},
		{"signed: −1 is below 1", minusOne, 1, asm.JSGT.Reg(asm.R1, asm.R2, "skip"), false},
		{"signed, 32 bits: the sign is that of the lower half", minusOne32, 1, asm.JSLT.Reg32(asm.R1, asm.R2, "skip"), true},
		{"signed, 64 bits: bit 31 is not the sign", minusOne32, 1, asm.JSLT.Reg(asm.R1, asm.R2, "skip"), false},
		{"32 bits: upper halves do not count", 1<<32 | 5, 5, asm.JEq.Reg32(asm.R1, asm.R2, "skip"), true},
		{"64 bits: they do", 1<<32 | 5, 5, asm.JEq.Reg(asm.R1, asm.R2, "skip"), false},
		{"at least as large", 5, 5, asm.JGE.Reg(asm.R1, asm.R2, "skip"), true},
		{"any common bit", 6, 3, asm.JSet.Reg(asm.R1, asm.R2, "skip"), true},
		{"no common bit", 6, 1, asm.JSet.Reg(asm.R1, asm.R2, "skip"), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.jump.Offset = 1
			test.jump = test.jump.WithReference("")
			got, err := interpret(t, test.r1, test.r2, asm.Mov.Imm(asm.R3, 7), test.jump, asm.Mov.Imm(asm.R3, 8), asm.Mov.Reg(asm.R1, asm.R3))
			if err != nil || got == 7 != test.isTaken {
				t.Errorf("got %d, want a taken jump: %t: %v", got, test.isTaken, err)
			}
		})
	}
}

func TestInterpreterMemory(t *testing.T) {
	const r1, r2, r3, fp = asm.R1, asm.R2, asm.R3, asm.RFP
	t.Run("stores of different sizes overlap", func(t *testing.T) {
		got, err := interpret(t, -1, 0x1122334455667788, asm.StoreMem(fp, -8, r1, asm.DWord), asm.StoreMem(fp, -6, r2, asm.Word),
			asm.StoreImm(fp, -1, 0x5a, asm.Byte), asm.LoadMem(r1, fp, -8, asm.DWord))
		if want := uint64(0x5aff_5566_7788_ffff); err != nil || got != want {
			t.Errorf("got %#x, want %#x: %v", got, want, err)
		}
	})
	t.Run("an exchange returns the value before", func(t *testing.T) {
		got, err := interpret(t, 5, 9, asm.StoreMem(fp, -8, r1, asm.DWord), asm.Mov.Reg(r3, fp), asm.Add.Imm(r3, -8),
			asm.Xchg.Mem(r3, r2, asm.DWord, 0), asm.LoadMem(r1, fp, -8, asm.DWord), asm.LSh.Imm(r1, 8), asm.Or.Reg(r1, r2))
		if want := uint64(9<<8 | 5); err != nil || got != want {
			t.Errorf("got %#x, want %#x: %v", got, want, err)
		}
	})
	for _, isEqual := range []bool{true, false} {
		t.Run("a compare-and-swap stores if the value is the expected one", func(t *testing.T) {
			expected, want := int32(5), uint64(9<<8|5)
			if !isEqual {
				expected, want = 6, 5<<8|5
			}
			got, err := interpret(t, 5, 9, asm.StoreMem(fp, -8, r1, asm.DWord), asm.Mov.Imm(asm.R0, expected),
				asm.CmpXchg.Mem(fp, r2, asm.DWord, -8), asm.LoadMem(r1, fp, -8, asm.DWord), asm.LSh.Imm(r1, 8), asm.Or.Reg(r1, asm.R0))
			if err != nil || got != want {
				t.Errorf("got %#x, want %#x: %v", got, want, err)
			}
		})
	}
	readOnly := asm.LoadMapValue(r3, 0, 0).WithReference(".rodata")
	for want, code := range map[string][]asm.Instruction{
		"at 512 of stack": {asm.LoadMem(r1, fp, 0, asm.Byte)},
		"not an address":  {asm.LoadMem(r1, r2, 0, asm.Byte)},
		"at 68 of frame":  {asm.LoadMem(r1, asm.R6, 60, asm.Byte)},
		"at 0 of .rodata": {readOnly, asm.StoreImm(r3, 0, 1, asm.Byte)},
		"at 4 of .rodata": {readOnly, asm.LoadMem(r1, r3, 4, asm.DWord)},
	} {
		t.Run("no access "+want, func(t *testing.T) {
			_, err := interpret(t, 0, 1, code...)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want an error with %s", err, want)
			}
		})
	}
}
