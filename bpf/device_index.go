// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A device of the audit has an index: that of its counters, of its hash keys, and in its events. Which index is whose is
// kept in a mapped array, so that it survives the process where maps are pinned. No program reads it.

// deviceEntry is what the array holds of one index.
type deviceEntry struct {
	received   uint64 // events read; written by the reader of events
	goneFlows  int64  // flows that devices which had the index before were given a slot for, less those that they evicted
	gap        uint64 // events that were left in the rings of a process that had ended
	goneNs     uint64 // CLOCK_MONOTONIC when the device vanished; 0 while it is audited
	state      uint32 // entryFree or entryTaken; written last
	generation uint32 // of the devices that had the index, from 1 on; 0 before the first
	keys       [10]uint32
	ifindex    uint32 // where it was attached last
	reserved   uint32
	name       [16]byte
}

const (
	entryFree  = 0
	entryTaken = 1

	deviceMapName = "audit_devices"

	// maxDevices is what the index in an event can tell apart.
	maxDevices = 1 << 12
	ownerShift = 16
)

// errNoIndex is the error of a device for which there is no index left.
var errNoIndex = errors.New("every index is taken")

// deviceTable gives devices their indices. It is not safe for concurrent use, but for the entries' counts of events.
type deviceTable struct {
	m       *ebpf.Map
	array   *mapArray[deviceEntry]
	entries []deviceEntry // those of array
	keys    io.Reader
}

func deviceMapSpec(devices int) *ebpf.MapSpec {
	return &ebpf.MapSpec{
		Name: deviceMapName, Type: ebpf.Array, KeySize: 4, ValueSize: uint32(unsafe.Sizeof(deviceEntry{})),
		MaxEntries: uint32(devices), Flags: unix.BPF_F_MMAPABLE,
	}
}

// newDeviceTable maps an array of deviceMapSpec, which it closes in the end. Keys of the hash of flows are read from keys.
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

func (e *deviceEntry) deviceName() string { return unix.ByteSliceToString(e.name[:]) }

// owner is what flows and events of the device are marked with.
func (t *deviceTable) owner(index int) uint32 {
	return uint32(index) | t.entries[index].generation<<ownerShift
}

// find returns the index of a device that has one, or −1.
func (t *deviceTable) find(name string) int {
	for i := range t.entries {
		if t.entries[i].isTaken() && t.entries[i].deviceName() == name {
			return i
		}
	}
	return -1
}

// choose returns the index that a device which has none shall get: a free one, or that of the device that vanished longest
// ago, which is then to be released.
func (t *deviceTable) choose() (index int, err error) {
	oldest := -1
	for i := range t.entries {
		e := &t.entries[i]
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

// release makes an index free.
func (t *deviceTable) release(index int) { atomic.StoreUint32(&t.entries[index].state, entryFree) }

// take makes a free index a device's, with new keys: what is left of the flows of the device before is not found again. The
// entry is complete before it counts.
func (t *deviceTable) take(index int, name string) error {
	e := &t.entries[index]
	var keys [10]uint32
	if err := binary.Read(t.keys, binary.NativeEndian, &keys); err != nil {
		return fmt.Errorf("choosing keys of the flow hash: %w", err)
	}
	*e = deviceEntry{generation: nextGeneration(e.generation), keys: keys, goneFlows: e.goneFlows}
	copy(e.name[:], name)
	atomic.StoreUint32(&e.state, entryTaken)
	return nil
}

// nextGeneration counts from 1 to the highest that an owner has room for, and then from 1 again: 0 is that of an index which
// nobody had.
func nextGeneration(generation uint32) uint32 { return generation%(1<<(32-ownerShift)-1) + 1 }

// setGone notes that a device has vanished, or that it is back.
func (t *deviceTable) setGone(index int, isGone bool) {
	var now uint64
	if isGone {
		now = monotonicNs()
	}
	t.entries[index].goneNs = now
}

// awaitPrograms returns when no run of an XDP program that had begun before is under way. The kernel waits for that in this
// call of membarrier(2), which it refuses on a machine with CPUs in full tickless mode: then a hundredth of a second is far
// more than a run takes.
func awaitPrograms() {
	const membarrierGlobal = 1
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		time.Sleep(10 * time.Millisecond)
	}
}

// owners tells which device an event is of. An event may still be in a ring when its device's index is another's: the
// reader knows the one before, too. It is replaced as a whole when a device is attached.
type owners []indexOwners

type indexOwners struct{ current, before eventOwner }

type eventOwner struct {
	id       uint32 // as in the event; 0 for none, as generations begin at 1
	name     string
	received *uint64 // nil for the device that had the index before: its series has ended
}

// find returns the owner of an event, nil if there is none.
func (o owners) find(id uint32) *eventOwner {
	index := id & (1<<ownerShift - 1)
	if id == 0 || int(index) >= len(o) {
		return nil
	}
	for _, owner := range []*eventOwner{&o[index].current, &o[index].before} {
		if owner.id == id {
			return owner
		}
	}
	return nil
}

// with returns a copy in which an index has an owner.
func (o owners) with(index int, owner eventOwner) owners {
	changed := append(owners(nil), o...)
	if before := changed[index].current; before.id != owner.id {
		before.received = nil
		changed[index].before = before
	}
	changed[index].current = owner
	return changed
}
