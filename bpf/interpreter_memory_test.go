// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf/asm"
)

// memory returns the bytes at an address, or an error that names the access if it is not allowed.
func (m *interpreter) memory(address uint64, size int, isWrite bool) ([]byte, error) {
	number, offset := int(address>>32)-1, int(uint32(address))
	if number < 0 || number >= len(m.regions) {
		return nil, fmt.Errorf("%#x is not an address", address)
	}
	r := &m.regions[number]
	end := len(r.bytes)
	if number == int(m.data>>32)-1 {
		end = int(uint32(m.dataEnd))
	}
	if offset+size > end || isWrite && r.isReadOnly {
		return nil, fmt.Errorf("access to %d bytes at %d of %s, which has %d", size, offset, r.name, end)
	}
	return r.bytes[offset : offset+size], nil
}

func read(bytes []byte) uint64 {
	switch len(bytes) {
	case 1:
		return uint64(bytes[0])
	case 2:
		return uint64(binary.LittleEndian.Uint16(bytes))
	case 4:
		return uint64(binary.LittleEndian.Uint32(bytes))
	}
	return binary.LittleEndian.Uint64(bytes)
}

func write(bytes []byte, v uint64) {
	switch len(bytes) {
	case 1:
		bytes[0] = byte(v)
	case 2:
		binary.LittleEndian.PutUint16(bytes, uint16(v))
	case 4:
		binary.LittleEndian.PutUint32(bytes, uint32(v))
	default:
		binary.LittleEndian.PutUint64(bytes, v)
	}
}

func (m *interpreter) load(ins *asm.Instruction) error {
	if ins.OpCode.Mode() != asm.MemMode {
		return errors.ErrUnsupported
	}
	address := m.r[ins.Src] + uint64(int64(ins.Offset))
	if address>>32 == m.context>>32 {
		return m.loadContext(ins, uint32(address))
	}
	bytes, err := m.memory(address, ins.OpCode.Size().Sizeof(), false)
	if err != nil {
		return err
	}
	m.r[ins.Dst] = read(bytes)
	return nil
}

// loadContext loads a member of struct xdp_md. The kernel turns loads of its 32-bit members into
// loads of pointers.
func (m *interpreter) loadContext(ins *asm.Instruction, offset uint32) error {
	members := []uint64{m.dataStart, m.dataEnd, m.dataMeta}
	if ins.OpCode.Size() != asm.Word || offset%4 != 0 || int(offset/4) >= len(members) {
		return fmt.Errorf("load of %v at %d of the context", ins.OpCode.Size(), offset)
	}
	m.r[ins.Dst] = members[offset/4]
	return nil
}

func (m *interpreter) store(ins *asm.Instruction) error {
	bytes, err := m.memory(m.r[ins.Dst]+uint64(int64(ins.Offset)), ins.OpCode.Size().Sizeof(), true)
	if err != nil {
		return err
	}
	switch {
	case ins.OpCode.Mode() == asm.AtomicMode:
		return m.atomic(ins, bytes)
	case ins.OpCode.Mode() != asm.MemMode:
		return errors.ErrUnsupported
	case ins.OpCode.Class() == asm.StClass:
		write(bytes, uint64(ins.Constant))
	default:
		write(bytes, m.r[ins.Src])
	}
	return nil
}

func (m *interpreter) atomic(ins *asm.Instruction, bytes []byte) error {
	before := read(bytes)
	switch ins.OpCode.AtomicOp() {
	case asm.Xchg:
		write(bytes, m.r[ins.Src])
		m.r[ins.Src] = before
	case asm.CmpXchg:
		if before == m.r[asm.R0] {
			write(bytes, m.r[ins.Src])
		}
		m.r[asm.R0] = before
	default:
		return errors.ErrUnsupported
	}
	return nil
}

// helper executes a kernel function.
func (m *interpreter) helper(function asm.BuiltinFunc) (err error) {
	switch function {
	case asm.FnMapLookupElem:
		m.r[asm.R0], err = m.lookUp(m.r[asm.R1], m.r[asm.R2])
	case asm.FnKtimeGetNs:
		m.r[asm.R0] = m.nowNs
	case asm.FnGetSmpProcessorId:
		m.r[asm.R0] = uint64(m.cpu)
	case asm.FnPerfEventOutput:
		var record []byte
		if record, err = m.memory(m.r[asm.R4], int(m.r[asm.R5]), false); err == nil {
			m.events = append(m.events, slices.Clone(record))
		}
		m.r[asm.R0] = 0
	case asm.FnXdpGetBuffLen:
		m.r[asm.R0] = uint64(m.frameBytes)
	default:
		return fmt.Errorf("helper %v: %w", function, errors.ErrUnsupported)
	}
	return err
}

// lookUp returns the address of an element of an array, or 0 if there is no such element.
func (m *interpreter) lookUp(handle, key uint64) (uint64, error) {
	name, ok := m.handles[handle]
	if !ok {
		return 0, fmt.Errorf("%#x is not a map", handle)
	}
	array, ok := m.maps[name]
	if !ok {
		return 0, fmt.Errorf("%s is not an array", name)
	}
	bytes, err := m.memory(key, 4, false)
	if err != nil {
		return 0, err
	}
	index := uint32(read(bytes))
	if index >= array.elements {
		return 0, nil
	}
	return array.address + uint64(index)*uint64(array.valueSize), nil
}
