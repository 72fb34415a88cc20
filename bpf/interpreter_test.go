// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// The interpreter executes a compiled BPF object without the kernel and counts instructions. The
// counts are exact and the same on every machine, which nanoseconds are not.

const (
	stackBytes = 512
	maxCalls   = 8 // frames of the stack, as in the kernel
	maxSteps   = 1 << 20

	// poison fills the registers that a call clobbers, and a new frame of the stack.
	poison = 0xdead_dead_dead_dead
)

// region is memory that a program can access. The upper half of an address is the index of a region
// plus 1, the lower half an offset, so that no small number is an address.
type region struct {
	name       string
	bytes      []byte
	isReadOnly bool
}

// arrayMap is a BPF_MAP_TYPE_ARRAY.
type arrayMap struct {
	address   uint64 // of element 0
	valueSize uint32
	elements  uint32
}

// interpreter runs one program of an object over frames.
type interpreter struct {
	code    asm.Instructions
	targets []int // by instruction: where its jump or call goes
	regions []region
	maps    map[string]arrayMap
	handles map[uint64]string // names of maps by the addresses that helpers take for them

	context, data uint64 // addresses of struct xdp_md and of the frame's buffer
	frameBytes    int    // length of the current frame in all of its buffers
	dataMeta      uint64 // members of struct xdp_md
	dataStart     uint64
	dataEnd       uint64

	// Results of helpers.
	cpu   uint32
	nowNs uint64

	strippedTag uint16 // that the driver has removed from the frame; 0 for none

	events [][]byte // perf records, in order

	r        [11]uint64
	depth    int
	executed int // instructions of the last run
}

// newInterpreter prepares a program of an object that is configured as for loading. The arrays have
// the sizes in the specification.
func newInterpreter(spec *ebpf.CollectionSpec, program string) (*interpreter, error) {
	m := &interpreter{
		code: spec.Programs[program].Instructions, maps: map[string]arrayMap{}, handles: map[uint64]string{},
	}
	for name, mapSpec := range spec.Maps {
		m.handles[m.addRegion(region{name: "handle of " + name})] = name
		if mapSpec.Type != ebpf.Array {
			continue
		}
		valueSize := (mapSpec.ValueSize + 7) &^ 7
		values := make([]byte, valueSize*mapSpec.MaxEntries)
		for _, element := range mapSpec.Contents {
			content, ok := element.Value.([]byte)
			if !ok {
				return nil, fmt.Errorf("%s has a %T, want bytes", name, element.Value)
			}
			copy(values, content)
		}
		for _, variable := range spec.Variables {
			if variable.SectionName == name {
				copy(values[variable.Offset:], variable.Value)
			}
		}
		isReadOnly := name == ".rodata"
		m.maps[name] = arrayMap{m.addRegion(region{name, values, isReadOnly}), valueSize, mapSpec.MaxEntries}
	}
	m.context = m.addRegion(region{name: "context"})
	m.data = m.addRegion(region{name: "frame", bytes: make([]byte, metadataBytes+longestFrame+64)})
	for range maxCalls {
		m.addRegion(region{name: "stack", bytes: make([]byte, stackBytes)})
	}
	return m, m.link()
}

func (m *interpreter) addRegion(r region) uint64 {
	m.regions = append(m.regions, r)
	return uint64(len(m.regions)) << 32
}

// link resolves jumps, calls and map references to indices and addresses.
func (m *interpreter) link() error {
	indices := map[asm.RawInstructionOffset]int{}
	symbols := map[string]int{}
	for it := m.code.Iterate(); it.Next(); {
		indices[it.Offset] = it.Index
		if symbol := it.Ins.Symbol(); symbol != "" {
			symbols[symbol] = it.Index
		}
	}
	handles := map[string]uint64{}
	for address, name := range m.handles {
		handles[name] = address
	}
	m.targets = make([]int, len(m.code))
	m.code = append(asm.Instructions{}, m.code...)
	for it := m.code.Iterate(); it.Next(); {
		ins, reference, found := it.Ins, it.Ins.Reference(), true
		switch {
		case ins.IsFunctionCall():
			m.targets[it.Index], found = symbols[reference]
		case ins.IsLoadFromMap() && ins.Src == asm.PseudoMapValue:
			m.code[it.Index].Constant = int64(m.maps[reference].address) + ins.Constant>>32
			found = m.maps[reference].address != 0
		case ins.IsLoadFromMap():
			m.code[it.Index].Constant = int64(handles[reference])
			found = handles[reference] != 0
		case ins.OpCode.Class().IsJump() && ins.OpCode.JumpOp() != asm.Call && ins.OpCode.JumpOp() != asm.Exit:
			m.targets[it.Index], found = indices[it.Offset+1+asm.RawInstructionOffset(ins.Offset)]
		}
		if !found {
			return fmt.Errorf("instruction %d, %v: no target %s", it.Index, ins, reference)
		}
	}
	return nil
}

// values returns the memory of an array.
func (m *interpreter) values(name string) []byte {
	return m.regions[m.maps[name].address>>32-1].bytes
}

// run executes the program on a frame whose first buffer holds at most firstBuffer bytes. With a
// time other than 0, the frame has that as metadata. run returns an error for what the verifier
// rejects: unknown instructions, accesses outside of memory, endless loops.
func (m *interpreter) run(frame []byte, atNs uint64, firstBuffer int) (verdict uint32, err error) {
	buffer := m.regions[m.data>>32-1].bytes
	binary.NativeEndian.PutUint64(buffer, atNs)
	copy(buffer[metadataBytes:], frame)
	m.frameBytes = len(frame)
	m.dataStart = m.data + metadataBytes
	m.dataMeta = m.dataStart
	if atNs != 0 {
		m.dataMeta = m.data
	}
	m.dataEnd = m.dataStart + uint64(min(len(frame), firstBuffer))
	for r := range m.r {
		m.r[r] = poison
	}
	m.r[asm.R1] = m.context
	m.depth, m.executed = 0, 0
	if err := m.call(0); err != nil {
		return 0, err
	}
	return uint32(m.r[asm.R0]), nil
}

// call executes a function until it returns.
func (m *interpreter) call(pc int) error {
	if m.depth++; m.depth > maxCalls {
		return errors.New("too many nested calls")
	}
	defer func() { m.depth-- }()
	var saved [4]uint64
	copy(saved[:], m.r[asm.R6:asm.R10])
	caller := m.r[asm.RFP]
	stack := len(m.regions) - maxCalls + m.depth - 1
	m.r[asm.RFP] = uint64(stack+1)<<32 + stackBytes
	for i := range m.regions[stack].bytes {
		m.regions[stack].bytes[i] = poison & 0xff
	}
	for {
		ins := &m.code[pc]
		if m.executed++; m.executed > maxSteps {
			return errors.New("the program does not end")
		}
		if ins.OpCode.Class().IsJump() && ins.OpCode.JumpOp() == asm.Exit {
			break
		}
		next, err := m.step(ins, pc)
		if err != nil {
			return fmt.Errorf("instruction %d, %v: %w", pc, ins, err)
		}
		pc = next
	}
	copy(m.r[asm.R6:asm.R10], saved[:])
	m.r[asm.RFP] = caller
	return nil
}

// step executes one instruction and returns the index of the next one.
func (m *interpreter) step(ins *asm.Instruction, pc int) (int, error) {
	switch class := ins.OpCode.Class(); class {
	case asm.ALUClass, asm.ALU64Class:
		return pc + 1, m.arithmetic(ins, class == asm.ALU64Class)
	case asm.LdClass:
		if !ins.OpCode.IsDWordLoad() {
			return 0, errors.ErrUnsupported
		}
		m.r[ins.Dst] = uint64(ins.Constant)
		return pc + 1, nil
	case asm.LdXClass:
		return pc + 1, m.load(ins)
	case asm.StClass, asm.StXClass:
		return pc + 1, m.store(ins)
	case asm.JumpClass, asm.Jump32Class:
		if ins.OpCode.JumpOp() == asm.Call {
			err := m.callFunction(ins, pc)
			for r := asm.R1; r <= asm.R5; r++ {
				m.r[r] = poison
			}
			return pc + 1, err
		}
		isTaken, err := m.isTaken(ins, class == asm.JumpClass)
		if isTaken {
			return m.targets[pc], err
		}
		return pc + 1, err
	}
	return 0, errors.ErrUnsupported
}

func (m *interpreter) callFunction(ins *asm.Instruction, pc int) error {
	if ins.IsFunctionCall() {
		return m.call(m.targets[pc])
	}
	if ins.IsKfuncCall() {
		return m.tellVLANTag()
	}
	if !ins.IsBuiltinCall() {
		return errors.ErrUnsupported
	}
	return m.helper(asm.BuiltinFunc(ins.Constant))
}

// tellVLANTag executes bpf_xdp_metadata_rx_vlan_tag. Its pointers are those to the context, to the
// type of the tag, and to its control field.
func (m *interpreter) tellVLANTag() error {
	if m.strippedTag == 0 {
		m.r[asm.R0] = ^uint64(0) // an error
		return nil
	}
	for register, v := range map[asm.Register]uint16{asm.R2: inOrder(tagVLAN), asm.R3: m.strippedTag} {
		bytes, err := m.memory(m.r[register], 2, true)
		if err != nil {
			return err
		}
		write(bytes, uint64(v))
	}
	m.r[asm.R0] = 0
	return nil
}

// operand returns the second operand of an instruction, sign-extended if it is a constant.
func (m *interpreter) operand(ins *asm.Instruction) uint64 {
	if ins.OpCode.Source() == asm.RegSource {
		return m.r[ins.Src]
	}
	return uint64(ins.Constant)
}

func (m *interpreter) arithmetic(ins *asm.Instruction, is64 bool) error {
	op := ins.OpCode.ALUOp()
	if op == asm.Swap {
		return m.swap(ins)
	}
	if ins.Offset != 0 { // signed division and sign-extending moves, which -mcpu=v3 does not have
		return errors.ErrUnsupported
	}
	a, b := m.r[ins.Dst], m.operand(ins)
	width := uint64(64)
	if !is64 {
		a, b, width = uint64(uint32(a)), uint64(uint32(b)), 32
	}
	by := b & (width - 1)
	switch op {
	case asm.Add:
		a += b
	case asm.Sub:
		a -= b
	case asm.Mul:
		a *= b
	case asm.Div:
		if b == 0 {
			a = 0
		} else {
			a /= b
		}
	case asm.Mod:
		if b != 0 {
			a %= b
		}
	case asm.Or:
		a |= b
	case asm.And:
		a &= b
	case asm.Xor:
		a ^= b
	case asm.LSh:
		a <<= by
	case asm.RSh:
		a >>= by
	case asm.ArSh:
		if is64 {
			a = uint64(int64(a) >> by)
		} else {
			a = uint64(int32(a) >> by)
		}
	case asm.Neg:
		a = -a
	case asm.Mov:
		a = b
	default:
		return errors.ErrUnsupported
	}
	if !is64 {
		a = uint64(uint32(a))
	}
	m.r[ins.Dst] = a
	return nil
}

// swap converts between host and big-endian order. The object is compiled for little-endian hosts.
func (m *interpreter) swap(ins *asm.Instruction) error {
	if ins.OpCode.Class() != asm.ALUClass || ins.OpCode.Endianness() != asm.BE {
		return errors.ErrUnsupported
	}
	switch v := &m.r[ins.Dst]; ins.Constant {
	case 16:
		*v = uint64(bits.ReverseBytes16(uint16(*v)))
	case 32:
		*v = uint64(bits.ReverseBytes32(uint32(*v)))
	case 64:
		*v = bits.ReverseBytes64(*v)
	default:
		return errors.ErrUnsupported
	}
	return nil
}

func (m *interpreter) isTaken(ins *asm.Instruction, is64 bool) (bool, error) {
	a, b := m.r[ins.Dst], m.operand(ins)
	signedA, signedB := int64(a), int64(b)
	if !is64 {
		a, b = uint64(uint32(a)), uint64(uint32(b))
		signedA, signedB = int64(int32(a)), int64(int32(b))
	}
	switch ins.OpCode.JumpOp() {
	case asm.Ja:
		return true, nil
	case asm.JEq:
		return a == b, nil
	case asm.JNE:
		return a != b, nil
	case asm.JGT:
		return a > b, nil
	case asm.JGE:
		return a >= b, nil
	case asm.JLT:
		return a < b, nil
	case asm.JLE:
		return a <= b, nil
	case asm.JSet:
		return a&b != 0, nil
	case asm.JSGT:
		return signedA > signedB, nil
	case asm.JSGE:
		return signedA >= signedB, nil
	case asm.JSLT:
		return signedA < signedB, nil
	case asm.JSLE:
		return signedA <= signedB, nil
	}
	return false, errors.ErrUnsupported
}
