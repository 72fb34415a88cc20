// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
)

// Each audited device has an index into the counters, and a key for the hash of its flows. Its
// events carry the index. The assignment of indices to devices is in a mapped array, so that it
// outlives the process if maps are pinned. BPF programs do not read the array.

// deviceEntry is the element of the array for one index.
type deviceEntry struct {
	received   uint64     // events read; written by the reader of events
	goneFlows  int64      // inserts less evictions of the flows of earlier devices with the index
	gap        uint64     // events that were left in the rings of processes that have ended
	goneNs     uint64     // CLOCK_MONOTONIC when the device vanished; 0 while it is audited
	state      uint32     // entryFree or entryTaken; written last
	generation uint32     // counts the devices that had the index, from 1; 0 before the first
	keys       [10]uint32 // of the hash of flows
	ifindex    uint32     // network device of the last attempt; 0 if it has another's hook
	reserved   uint32
	name       [printable.MaxName + 1]byte // the kernel's bytes
}

const (
	entryFree  = 0
	entryTaken = 1

	deviceMapName = "audit_devices"

	// maxDevices is the largest number of indices.
	maxDevices = 1 << 12

	// ownerShift is the number of bits of the index in an owner; the generation has the others.
	ownerShift = 16
)

// errNoIndex is the error of a device that gets no index.
var errNoIndex = errors.New("every index is taken")

// deviceTable assigns indices to devices. It is not safe for concurrent use, except for the
// entries' counts of events.
type deviceTable struct {
	m       *ebpf.Map
	array   *mapArray[deviceEntry]
	entries []deviceEntry // of array
	keys    io.Reader     // source of keys
}

func deviceMapSpec(devices int) *ebpf.MapSpec {
	return &ebpf.MapSpec{
		Name: deviceMapName, Type: ebpf.Array, KeySize: 4, ValueSize: uint32(unsafe.Sizeof(deviceEntry{})),
		MaxEntries: uint32(devices), Flags: unix.BPF_F_MMAPABLE,
	}
}

// newDeviceTable maps an array of deviceMapSpec. The table closes the map, also if it returns an
// error. Keys of the hash of flows are read from keys.
func newDeviceTable(m *ebpf.Map, keys io.Reader) (*deviceTable, error) {
	array, err := newMapArray[deviceEntry](m, unix.PROT_READ|unix.PROT_WRITE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mapping the table of devices: %w", err), m.Close())
	}
	return &deviceTable{m, array, array.slice(), keys}, nil
}

func (t *deviceTable) close() error {
	t.entries = nil
	return errors.Join(t.array.close(), t.m.Close())
}

func (e *deviceEntry) isTaken() bool { return atomic.LoadUint32(&e.state) == entryTaken }

func (e *deviceEntry) deviceName() string {
	return printable.Name(unix.ByteSliceToString(e.name[:]))
}

// canHaveEntry reports whether a name can be that of a device. Alternative names may be longer.
func canHaveEntry(name string) bool {
	raw, err := printable.RawName(name)
	return err == nil && len(raw) <= printable.MaxName
}

// deviceIdentity is what the program of a device is configured with.
type deviceIdentity struct {
	index      int
	generation uint32
	keys       [10]uint32
	name       string

	// These two are not in the table.
	linkLayer netdev.LinkLayer // of the network device
	boundTo   int              // index of the only network device that takes the program; 0 for any
}

// owner returns the number that marks the flows and events of the device: the index and the
// generation.
func (id deviceIdentity) owner() uint32 { return uint32(id.index) | id.generation<<ownerShift }

// identity returns the identity of the device that has an index.
func (t *deviceTable) identity(index int) deviceIdentity {
	e := &t.entries[index]
	return deviceIdentity{index: index, generation: e.generation, keys: e.keys, name: e.deviceName()}
}

func (t *deviceTable) owner(index int) uint32 { return t.identity(index).owner() }

// find returns the index of a device, −1 if it has none.
func (t *deviceTable) find(name string) int {
	for i := range t.entries {
		if t.entries[i].isTaken() && t.entries[i].deviceName() == name {
			return i
		}
	}
	return -1
}

// choose returns the index for a device that has none: a free one or, if every index is taken, that
// of the device that has been gone for the longest time. The caller must release that. Indices that
// are planned for other devices are excepted.
func (t *deviceTable) choose(except ...int) (index int, err error) {
	oldest := -1
	for i := range t.entries {
		e := &t.entries[i]
		if slices.Contains(except, i) {
			continue
		}
		if !e.isTaken() {
			return i, nil
		}
		if e.goneNs != 0 && (oldest < 0 || e.goneNs < t.entries[oldest].goneNs) {
			oldest = i
		}
	}
	if oldest < 0 {
		return 0, errNoIndex
	}
	return oldest, nil
}

// release frees an index.
func (t *deviceTable) release(index int) { atomic.StoreUint32(&t.entries[index].state, entryFree) }

// available returns the number of indices that are free or those of devices that are gone.
func (t *deviceTable) available() (n int) {
	for i := range t.entries {
		if e := &t.entries[i]; !e.isTaken() || e.goneNs != 0 {
			n++
		}
	}
	return n
}

// plan returns the identity with which a device would take an index, with new keys: no packet finds
// the flows of the earlier device in the flow table. The table is not changed.
func (t *deviceTable) plan(index int, name string) (deviceIdentity, error) {
	id := deviceIdentity{index: index, generation: nextGeneration(t.entries[index].generation), name: name}
	if err := binary.Read(t.keys, binary.NativeEndian, &id.keys); err != nil {
		return id, fmt.Errorf("choosing keys of the flow hash: %w", err)
	}
	return id, nil
}

// take assigns the free index of a planned identity to its device. The state is written last, so
// that a process that ends in between leaves a free index.
func (t *deviceTable) take(id deviceIdentity) {
	e := &t.entries[id.index]
	*e = deviceEntry{generation: id.generation, keys: id.keys, goneFlows: e.goneFlows}
	raw, _ := printable.RawName(id.name) // canHaveEntry
	copy(e.name[:printable.MaxName], raw)
	atomic.StoreUint32(&e.state, entryTaken)
}

// nextGeneration counts from 1 to the largest generation that fits into an owner, and then from 1
// again. 0 is the generation of an index that no device has had.
func nextGeneration(generation uint32) uint32 { return generation%(1<<(32-ownerShift)-1) + 1 }

// setGone notes the time at which a device vanished, or that it is back.
func (t *deviceTable) setGone(index int, isGone bool) {
	var now uint64
	if isGone {
		now = monotonicNs()
	}
	t.entries[index].goneNs = now
}

// awaitPrograms waits until all runs of XDP programs that began before the call have ended.
// membarrier(2) waits for that, except on machines with CPUs in full tickless mode (nohz_full),
// where it returns an error. There 10 ms are far longer than a run.
func awaitPrograms() {
	const membarrierGlobal = 1
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		time.Sleep(10 * time.Millisecond)
	}
}
