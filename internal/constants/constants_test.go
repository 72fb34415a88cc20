// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package constants

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// named returns the constant by which an instruction names a member.
func named(size, offset int64, isSigned bool) int64 {
	constant := int64(mark)<<upperHalf | size<<sizeShift | offset
	if isSigned {
		constant |= 1 << signedShift
	}
	return constant
}

func only(instructions asm.Instructions) map[string]*ebpf.ProgramSpec {
	return map[string]*ebpf.ProgramSpec{"audit": {Instructions: instructions}}
}

func TestWrite(t *testing.T) {
	config := binary.NativeEndian.AppendUint64(nil, 1<<63|5)
	config = binary.NativeEndian.AppendUint32(config, 1<<32-2)
	config = binary.NativeEndian.AppendUint32(config, 7)
	for _, test := range []struct {
		name     string
		constant int64
		want     int64
	}{
		{"64 bits", named(8, 0, false), -1<<63 + 5},
		{"32 bits", named(4, 8, false), 1<<32 - 2},
		{"32 bits with a sign", named(4, 8, true), -2},
		{"a positive number with a sign", named(4, 12, true), 7},
		{"the end of the configuration", named(4, 12, false), 7},
		{"not a name", mark<<30 | 8<<sizeShift, mark<<30 | 8<<sizeShift},
	} {
		t.Run(test.name, func(t *testing.T) {
			instructions := asm.Instructions{asm.LoadImm(asm.R3, test.constant, asm.DWord), asm.Return()}
			for range 2 { // what is written stays
				if err := Write(only(instructions), config); err != nil {
					t.Fatal(err)
				}
				if got := instructions[0].Constant; got != test.want || instructions[0].Dst != asm.R3 {
					t.Errorf("the instruction is %v, want a load of %#x into r3", instructions[0], test.want)
				}
			}
		})
	}
}

func TestWriteRefusesWhatIsNoMember(t *testing.T) {
	for want, constant := range map[string]int64{
		"audit: instruction 0 names bytes 12 to 20 of a configuration of 16 bytes": named(8, 12, false),
		"audit: instruction 0 names a member of 2 bytes, not of 4 or 8":            named(2, 0, false),
	} {
		instructions := asm.Instructions{asm.LoadImm(asm.R1, constant, asm.DWord)}
		if err := Write(only(instructions), make([]byte, 16)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// A map's address is not taken for a name, whatever its number.
func TestWriteLeavesMapsAlone(t *testing.T) {
	load := asm.LoadMapValue(asm.R1, 4<<sizeShift, mark)
	instructions := asm.Instructions{load}
	if err := Write(only(instructions), make([]byte, 16)); err != nil || instructions[0].Constant != load.Constant {
		t.Errorf("got %v, %v", instructions[0], err)
	}
}
