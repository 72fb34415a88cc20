// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// arrayValue is the value of the arrays in these tests.
type arrayValue struct {
	first, second uint64
	third         [2]uint32
}

const arrayValueBytes = 24

func newTestMap(t testing.TB, kind ebpf.MapType, valueBytes, flags uint32) *ebpf.Map {
	t.Helper()
	needBPF(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "test_array", Type: kind, KeySize: 4, ValueSize: valueBytes, MaxEntries: 300, Flags: flags,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func openTestArray[T any](t testing.TB, m *ebpf.Map, protection int) *mapArray[T] {
	t.Helper()
	array, err := newMapArray[T](m, protection)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := array.close(); err != nil {
			t.Error(err)
		}
	})
	return array
}

// mappedArrays returns how many maps of the kernel are in the memory of this process. Before it
// counts, it collects garbage: the library unmaps the data of a program when that is garbage, so
// that the number would fall at any time.
func mappedArrays(t testing.TB) int {
	t.Helper()
	for range 2 {
		isCollected := make(chan struct{})
		runtime.AddCleanup(new([64]byte), func(c chan struct{}) { close(c) }, isCollected)
		runtime.GC()
		<-isCollected
	}
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), "bpf-map")
}

func TestMapArraySharesItsElementsWithTheMap(t *testing.T) {
	m := newTestMap(t, ebpf.Array, arrayValueBytes, unix.BPF_F_MMAPABLE)
	array := openTestArray[arrayValue](t, m, unix.PROT_READ|unix.PROT_WRITE)
	if array.len() != 300 || len(array.slice()) != 300 {
		t.Fatalf("%d and %d elements, want 300", array.len(), len(array.slice()))
	}
	for _, i := range []int{0, 1, 170, 171, 299} { // 171 elements do not fit in a page
		number := uint64(i)
		if err := m.Put(uint32(i), []uint64{number, 1000 + number, 7<<32 | number}); err != nil {
			t.Fatal(err)
		}
		if got, want := *array.at(i), (arrayValue{number, 1000 + number, [2]uint32{uint32(i), 7}}); got != want {
			t.Errorf("element %d: got %v, want %v", i, got, want)
		}
		atomic.StoreUint64(&array.at(i).second, 5)
		var stored [3]uint64
		if err := m.Lookup(uint32(i), &stored); err != nil {
			t.Fatal(err)
		}
		if stored[1] != 5 {
			t.Errorf("element %d of the map is %v, want 5 in the middle", i, stored)
		}
	}
}

func TestMapArrayOutlivesItsDescriptor(t *testing.T) {
	needBPF(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1, Flags: unix.BPF_F_MMAPABLE})
	if err != nil {
		t.Fatal(err)
	}
	array := openTestArray[uint64](t, m, unix.PROT_READ)
	if err := m.Put(uint32(0), uint64(42)); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if got := *array.at(0); got != 42 {
		t.Errorf("got %d, want 42", got)
	}
}

func TestMapArrayRefusesMapsOfAnotherShape(t *testing.T) {
	for _, test := range []struct {
		name string
		open func() error
		want string
	}{
		{"a hash", func() error {
			_, err := newMapArray[arrayValue](newTestMap(t, ebpf.Hash, arrayValueBytes, 0), unix.PROT_READ)
			return err
		}, "is not an array"},
		{"an array that cannot be mapped", func() error {
			_, err := newMapArray[arrayValue](newTestMap(t, ebpf.Array, arrayValueBytes, 0), unix.PROT_READ)
			return err
		}, "BPF_F_MMAPABLE"},
		{"longer values", func() error {
			_, err := newMapArray[arrayValue](newTestMap(t, ebpf.Array, 32, unix.BPF_F_MMAPABLE), unix.PROT_READ)
			return err
		}, "values of 32 bytes, but bpf.arrayValue has 24"},
		{"shorter values", func() error {
			_, err := newMapArray[arrayValue](newTestMap(t, ebpf.Array, 16, unix.BPF_F_MMAPABLE), unix.PROT_READ)
			return err
		}, "values of 16 bytes, but bpf.arrayValue has 24"},
		{"values with a gap between two", func() error {
			_, err := newMapArray[[3]uint32](newTestMap(t, ebpf.Array, 12, unix.BPF_F_MMAPABLE), unix.PROT_READ)
			return err
		}, "not a multiple of 8"},
		{"a frozen map, to be written", func() error {
			m := newTestMap(t, ebpf.Array, arrayValueBytes, unix.BPF_F_MMAPABLE)
			if err := m.Freeze(); err != nil {
				return err
			}
			_, err := newMapArray[arrayValue](m, unix.PROT_READ|unix.PROT_WRITE)
			return err
		}, "mmap: operation not permitted"},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := mappedArrays(t)
			err := test.open()
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got the error %v, want one with %q", err, test.want)
			}
			if after := mappedArrays(t); after != before {
				t.Errorf("%d arrays are mapped after the refusal, want %d", after, before)
			}
		})
	}
}

func TestMapArrayIsEmptyAfterClose(t *testing.T) {
	before := mappedArrays(t)
	array := openTestArray[arrayValue](t, newTestMap(t, ebpf.Array, arrayValueBytes, unix.BPF_F_MMAPABLE), unix.PROT_READ)
	if mapped := mappedArrays(t); mapped != before+1 {
		t.Errorf("%d arrays are mapped, want %d", mapped, before+1)
	}
	for range 2 {
		if err := array.close(); err != nil {
			t.Error(err)
		}
		if after := mappedArrays(t); after != before {
			t.Errorf("%d arrays are mapped after close, want %d", after, before)
		}
	}
	for name, closed := range map[string]*mapArray[arrayValue]{"closed": array, "nil": nil} {
		if closed.len() != 0 || len(closed.slice()) != 0 || closed.close() != nil {
			t.Errorf("%s: %d elements", name, closed.len())
		}
		for range closed.slice() {
			t.Errorf("%s: an element is left", name)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: an element that is not there has an address", name)
				}
			}()
			_ = closed.at(0)
		}()
	}
}
