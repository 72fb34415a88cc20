// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// mapArrayStride is the multiple to which the kernel rounds up the distance between two elements of an array.
const mapArrayStride = 8

// mapArray is an array map in the memory of this process: its elements are read and written without a system call. T is the
// Go type of the map's values. Programs change elements at any time, so that a word which they write takes an atomic load.
//
// A mapArray may be used by several goroutines, but close must not run while an element is in use.
type mapArray[T any] struct {
	memory   []byte
	elements []T // nil once it is closed
}

// newMapArray maps a map of type array that was created with BPF_F_MMAPABLE. It returns an error if T has another size than
// the values of the map, or one at which elements of the map and of a Go slice are not in the same places. The mapping outlives
// the map's descriptor; protection is as in mmap(2).
func newMapArray[T any](m *ebpf.Map, protection int) (*mapArray[T], error) {
	size := unsafe.Sizeof(*new(T))
	switch {
	case m.Type() != ebpf.Array:
		return nil, fmt.Errorf("%v is not an array", m)
	case m.Flags()&unix.BPF_F_MMAPABLE == 0:
		return nil, fmt.Errorf("%v was created without BPF_F_MMAPABLE", m)
	case uintptr(m.ValueSize()) != size:
		return nil, fmt.Errorf("%v has values of %d bytes, and %T has %d", m, m.ValueSize(), *new(T), size)
	case size == 0 || size%mapArrayStride != 0:
		return nil, fmt.Errorf("%v has values of %d bytes, which is not a multiple of %d", m, size, mapArrayStride)
	}
	memory, err := unix.Mmap(m.FD(), 0, int(size)*int(m.MaxEntries()), protection, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("%v: mmap: %w", m, err)
	}
	return &mapArray[T]{memory, unsafe.Slice((*T)(unsafe.Pointer(&memory[0])), m.MaxEntries())}, nil
}

// len returns the number of elements: 0 once the array is closed.
func (a *mapArray[T]) len() int { return len(a.slice()) }

// at returns an element, which is valid until close. It panics where there is no such element, and so after close.
func (a *mapArray[T]) at(i int) *T { return &a.slice()[i] }

// slice returns the elements, which are valid until close. It is empty after close, and for nil.
func (a *mapArray[T]) slice() []T {
	if a == nil {
		return nil
	}
	return a.elements
}

// close unmaps the array. It does nothing the second time, and for nil.
func (a *mapArray[T]) close() error {
	if a == nil || a.memory == nil {
		return nil
	}
	memory := a.memory
	a.memory, a.elements = nil, nil
	if err := unix.Munmap(memory); err != nil {
		return fmt.Errorf("munmap: %w", err)
	}
	return nil
}
