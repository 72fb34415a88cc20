// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// mapArrayStride is the multiple to which the kernel rounds up the size of an element.
const mapArrayStride = 8

// mapArray is an array map that is mapped into the memory of this process, so that its elements
// are read and written without a system call. T is the Go type of the map's values. Programs
// change elements at any time: load the words that they write atomically.
//
// A mapArray may be used by several goroutines, but close must not run while an element is in use.
type mapArray[T any] struct {
	memory   []byte
	elements []T // nil after close
}

// newMapArray maps an array that was created with BPF_F_MMAPABLE. The protection is that of
// mmap(2). It returns an error if the size of T is not the value size of the map, or is not a
// multiple of mapArrayStride: then the elements of a Go slice would not be where those of the
// map are. The mapping outlives the descriptor of the map.
func newMapArray[T any](m *ebpf.Map, protection int) (*mapArray[T], error) {
	return newMapArrayPart[T](m, protection, 0, int(m.MaxEntries()))
}

// newMapArrayPart maps n elements of an array from the first one on, which has to begin a page.
// They are elements 0 to n - 1 of the result.
func newMapArrayPart[T any](m *ebpf.Map, protection, first, n int) (*mapArray[T], error) {
	size := unsafe.Sizeof(*new(T))
	switch {
	case m.Type() != ebpf.Array:
		return nil, fmt.Errorf("%v is not an array", m)
	case m.Flags()&unix.BPF_F_MMAPABLE == 0:
		return nil, fmt.Errorf("%v was created without BPF_F_MMAPABLE", m)
	case uintptr(m.ValueSize()) != size:
		return nil, fmt.Errorf("%v has values of %d bytes, but %T has %d", m, m.ValueSize(), *new(T), size)
	case size == 0 || size%mapArrayStride != 0:
		return nil, fmt.Errorf("%v has values of %d bytes, which is not a multiple of %d", m, size, mapArrayStride)
	}
	memory, err := unix.Mmap(m.FD(), int64(first)*int64(size), int(size)*n, protection, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("%v: mmap: %w", m, err)
	}
	return &mapArray[T]{memory, unsafe.Slice((*T)(unsafe.Pointer(&memory[0])), n)}, nil
}

// len returns the number of elements, 0 after close.
func (a *mapArray[T]) len() int { return len(a.slice()) }

// at returns element i, which is valid until close. It panics if i is out of range, as every i
// is after close.
func (a *mapArray[T]) at(i int) *T { return &a.slice()[i] }

// slice returns all elements, which are valid until close. It is empty after close and for a
// nil array.
func (a *mapArray[T]) slice() []T {
	if a == nil {
		return nil
	}
	return a.elements
}

// close unmaps the array. It does nothing if the array is closed or nil.
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
