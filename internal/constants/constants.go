// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package constants writes a configuration into a BPF program, so that a packet need not load it.
package constants

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// What stands in an instruction where a member of the configuration shall: bpf/xdp/maps.h. The upper half is the mark; the lower one
// has a bit for a signed member, then its size and its offset in bytes.
const (
	mark        = 0x5eedc0de
	signedShift = 31
	sizeShift   = 16
	sizeMask    = 0x7fff
	offsetMask  = 0xffff
	upperHalf   = 32
	shortMember = 4
	longMember  = 8
)

// Write writes the members of a configuration, as it is in memory, into the instructions of all programs that name them. The
// configuration is written once: an instruction does not name a member any more when it has its value.
func Write(programs map[string]*ebpf.ProgramSpec, config []byte) error {
	for name, program := range programs {
		if err := write(program.Instructions, config); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func write(instructions asm.Instructions, config []byte) error {
	for i := range instructions {
		ins := &instructions[i]
		if !ins.OpCode.IsDWordLoad() || ins.IsLoadFromMap() || uint64(ins.Constant)>>upperHalf != mark {
			continue
		}
		offset, size := int(ins.Constant&offsetMask), int(ins.Constant>>sizeShift&sizeMask)
		if offset+size > len(config) {
			return fmt.Errorf("instruction %d names bytes %d to %d of a configuration of %d bytes", i, offset, offset+size, len(config))
		}
		member := config[offset : offset+size]
		switch isSigned := ins.Constant>>signedShift&1 != 0; {
		case size == longMember:
			ins.Constant = int64(binary.NativeEndian.Uint64(member))
		case size == shortMember && isSigned:
			ins.Constant = int64(int32(binary.NativeEndian.Uint32(member)))
		case size == shortMember:
			ins.Constant = int64(binary.NativeEndian.Uint32(member))
		default:
			return fmt.Errorf("instruction %d names a member of %d bytes, not of %d or %d", i, size, shortMember, longMember)
		}
	}
	return nil
}
