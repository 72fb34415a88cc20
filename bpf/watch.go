// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The program records the deltas of flows that have a watch. This file assigns the watches to
// the busiest flows, which it knows from samples that the program takes. watch.h is the part of
// the program.

const (
	// watchInterval is the interval at which recorded deltas are read. A flow with more than a
	// thousand deltas per interval loses some.
	watchInterval = 500 * time.Millisecond

	watchDeltas = len(programWatch{}.DeltasNs)
	flowSamples = len(programFlowSamples{}.Samples)

	// windowBacklog is the number of unread deltas up to which the next window of a flow
	// follows the last one. The rest of the ring has space for deltas that are recorded while a
	// window is read.
	windowBacklog = uint64(watchDeltas * 3 / 4)
)

// Flow identifies a flow.
type Flow struct {
	Device string

	// For ICMP the port of Source is the echo identifier, and that of Destination is
	// type·256+code, as in NetFlow.
	Source, Destination netip.AddrPort

	Protocol       Protocol
	ProtocolNumber uint8  // as in the IP header
	VLAN           uint16 // outer VLAN id in the frame; 0 without a tag
}

// Window holds consecutive deltas of a flow.
type Window struct {
	Flow
	Time     time.Time // time at which the window was read
	DeltasNs []uint32
}

// WatchCounts counts watched flows and the deltas that were not read.
type WatchCounts struct {
	Flows   int    // watched flows
	Skipped uint64 // deltas of watched flows that arrived too fast to be read
}

// flowID identifies a flow in the flow table by its slot, and by its tag: another flow may get
// the slot.
type flowID struct {
	slotIndex uint32 // set · flowWays + way
	tag       uint32
}

// watcher assigns watches to flows and reads the recorded deltas. The programs access the sets
// at the same time.
type watcher struct {
	sets    *mapArray[programFlowSet]
	keys    *mapArray[programFlowKey]
	watches *mapArray[programWatch]
	samples *mapArray[programFlowSamples]

	mu       sync.Mutex // held while an array is used
	isClosed bool

	activity    flowActivity
	samplesRead []uint64       // number of samples read so far, by CPU
	watched     []*watchedFlow // by watch number; nil for a free watch
	window      []uint32

	flows   atomic.Int64
	skipped atomic.Uint64
}

// watchedFlow is a flow with a watch.
type watchedFlow struct {
	id   flowID
	key  programFlowKey
	next uint64 // number of the first delta of the next window
}

func newWatcher(t *auditMaps, config Config) (_ *watcher, err error) {
	w := &watcher{watched: make([]*watchedFlow, config.Watches), samplesRead: make([]uint64, t.cpus), activity: flowActivity{}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("mapping the recorded deltas: %w", err), w.close())
		}
	}()
	if w.sets, err = newMapArray[programFlowSet](t.byName[programMapFlowSets], unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return nil, err
	}
	if w.keys, err = newMapArray[programFlowKey](t.byName[programMapFlowKeys], unix.PROT_READ); err != nil {
		return nil, err
	}
	if w.watches, err = newMapArray[programWatch](t.byName[programMapFlowWatches], unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return nil, err
	}
	if w.samples, err = newMapArray[programFlowSamples](t.byName[programMapSampledFlows], unix.PROT_READ); err != nil {
		return nil, err
	}
	if t.isTakenOver && !t.isBorrowed { // the sets still hold the watches of an earlier process
		for i := range w.sets.slice() {
			if watches := w.sets.at(i).watchWord(); atomic.LoadUint64(watches) != 0 {
				atomic.StoreUint64(watches, 0)
			}
		}
	}
	return w, nil
}

func (w *watcher) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.isClosed = true
	return errors.Join(w.sets.close(), w.keys.close(), w.watches.close(), w.samples.close())
}

// Watch calls handle for windows of length deltas of the busiest flows, until the context ends.
// The window is valid only during the call. If Config.Watches is 0, Watch only waits for the
// end of the context. Only one Watch may run at a time.
func (a *Audit) Watch(ctx context.Context, length int, handle func(*Window)) error {
	if a.watcher == nil {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		a.ReadWindows(length, handle)
	}
}

// ReadWindows is one round of Watch, for callers that replay packets faster or slower than real
// time. It calls handle for the next window of each watched flow that has one, and then assigns
// watches to flows that have become busy. If Config.Watches is 0, it does nothing. It must not
// run concurrently with itself or with Watch.
func (a *Audit) ReadWindows(length int, handle func(*Window)) {
	if a.watcher != nil {
		a.watcher.round(a.events.owners.Load(), length, handle)
	}
}

// WatchCounts returns the counts of watched flows and skipped deltas. They are zero if
// Config.Watches is 0.
func (a *Audit) WatchCounts() WatchCounts {
	if a.watcher == nil {
		return WatchCounts{}
	}
	return WatchCounts{Flows: int(a.watcher.flows.Load()), Skipped: a.watcher.skipped.Load()}
}

// round reads samples and windows, and assigns watches to the flows that are the busiest now.
func (w *watcher) round(owners *owners, length int, handle func(*Window)) {
	w.whileOpen(w.readSamples)
	for number := range w.watched {
		var window *Window
		w.whileOpen(func() { window = w.nextWindow(number, length, owners) })
		if window != nil {
			handle(window)
		}
	}
	w.whileOpen(func() { w.assignWatches(owners) })
	w.activity.decay()
}

// whileOpen calls f unless the arrays are closed, and keeps them open meanwhile.
func (w *watcher) whileOpen(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.isClosed {
		f()
	}
}

// nextWindow returns the next window of the flow with a watch, nil if there is none. It
// releases the watch of a flow that lost its slot. That includes a flow that has its slot
// again: a packet of the flow that had the slot meanwhile cleared the watch.
func (w *watcher) nextWindow(number, length int, owners *owners) *Window {
	flow := w.watched[number]
	if flow == nil {
		return nil
	}
	owner := owners.find(flow.key.Owner)
	if owner == nil || !w.isPresent(flow.id) || !w.hasWatch(number, flow.id) {
		w.releaseWatch(number)
		return nil
	}
	if !w.readWindow(number, length) {
		return nil
	}
	key := &flow.key
	return &Window{
		Flow: Flow{
			Device:         owner.name,
			Source:         addrPort(Family(key.Family), &key.Source, key.SourcePort),
			Destination:    addrPort(Family(key.Family), &key.Destination, key.DestinationPort),
			Protocol:       protocolOf(Family(key.Family), key.IpProtocol),
			ProtocolNumber: key.IpProtocol,
			VLAN:           key.VlanId,
		},
		Time:     time.Now(),
		DeltasNs: w.window,
	}
}

// readSamples adds the samples since the last round to the activity, except for those that were
// overwritten.
func (w *watcher) readSamples() {
	for cpu := range w.samples.slice() {
		s := w.samples.at(cpu)
		taken := atomic.LoadUint64(&s.Taken)
		first := w.samplesRead[cpu]
		if taken-first >= uint64(flowSamples) {
			first = taken - uint64(flowSamples) + 1 // the next sample overwrites the oldest one
		}
		for i := first; i < taken; i++ {
			sample := &s.Samples[i%uint64(flowSamples)]
			w.activity.add(flowID{atomic.LoadUint32(&sample.SlotIndex), atomic.LoadUint32(&sample.Tag)})
		}
		w.samplesRead[cpu] = taken
	}
}

// readWindow copies the next window of a flow into w.window. It returns false if there is none.
func (w *watcher) readWindow(number, length int) bool {
	flow, watch := w.watched[number], w.watches.at(number)
	recorded := atomic.LoadUint64(&watch.Recorded)
	if recorded-flow.next < uint64(length) {
		return false
	}
	first := flow.next
	if recorded-first > windowBacklog {
		first = recorded - uint64(length)
	}
	w.window = w.window[:0]
	for i := range uint64(length) {
		w.window = append(w.window, atomic.LoadUint32(&watch.DeltasNs[(first+i)%uint64(watchDeltas)]))
	}
	// The program may be overwriting the oldest delta with the one after the last recorded delta.
	isWhole := atomic.LoadUint64(&watch.Recorded)-first < uint64(watchDeltas)
	end, seen := first+uint64(length), uint64(length)
	if !isWhole {
		seen = 0
	}
	w.skipped.Add(end - flow.next - seen)
	flow.next = end
	return isWhole
}

// assignWatches assigns watches to the busiest flows without one: first the free watches, and
// then those of flows that are less than half as busy.
func (w *watcher) assignWatches(owners *owners) {
	isWatched := map[flowID]bool{}
	for _, flow := range w.watched {
		if flow != nil {
			isWatched[flow.id] = true
		}
	}
	rivals := w.activity.busiest(len(w.watched), func(id flowID) bool { return !isWatched[id] && w.isPresent(id) })
	for _, id := range rivals {
		number := w.leastActive()
		if flow := w.watched[number]; flow != nil {
			if w.activity[id] <= 2*w.activity[flow.id] {
				return
			}
			w.releaseWatch(number)
		}
		w.assignWatch(number, id, owners)
	}
}

// leastActive returns the number of a free watch, or of the watch of the least busy flow.
func (w *watcher) leastActive() int {
	least := 0
	for number, flow := range w.watched {
		if flow == nil {
			return number
		}
		if w.activity[flow.id] < w.activity[w.watched[least].id] {
			least = number
		}
	}
	return least
}

// assignWatch assigns a free watch to a flow, if the flow still has its slot.
func (w *watcher) assignWatch(number int, id flowID, owners *owners) {
	set, way := w.locate(id)
	key, ok := w.keyOf(id)
	if !ok || owners.find(key.Owner) == nil {
		return
	}
	watch := w.watches.at(number)
	watch.Mark = set.Marks[way]
	atomic.StoreUint32(&watch.Tag, id.tag)
	w.watched[number] = &watchedFlow{id, key, atomic.LoadUint64(&watch.Recorded)}
	w.flows.Add(1)
	set.setWatch(way, uint8(number+1))
	// A flow that took the slot meanwhile has another tag.
	if !w.isPresent(id) {
		w.releaseWatch(number)
	}
}

// releaseWatch frees a watch. After it returns, the program records nothing in the watch.
func (w *watcher) releaseWatch(number int) {
	set, way := w.locate(w.watched[number].id)
	set.setWatch(way, 0)
	for atomic.LoadUint64(&set.Lock) != 0 { //nolint:revive // until the packet that may have read the watch releases the set
	}
	w.watched[number] = nil
	w.flows.Add(-1)
}

func (w *watcher) locate(id flowID) (set *programFlowSet, way int) {
	return w.sets.at(int(id.slotIndex / flowWays)), int(id.slotIndex % flowWays)
}

// isPresent reports whether a flow still has its slot.
func (w *watcher) isPresent(id flowID) bool {
	set, way := w.locate(id)
	return atomic.LoadUint32(&set.Tags[way]) == id.tag
}

// hasWatch reports whether the slot of a flow still has the watch.
func (w *watcher) hasWatch(number int, id flowID) bool {
	set, way := w.locate(id)
	watches := atomic.LoadUint64(set.watchWord())
	return (*[flowWays]uint8)(unsafe.Pointer(&watches))[way] == uint8(number+1)
}

// keyOf returns the key of a flow. ok is false if the flow lost its slot, or if its set was
// locked at each attempt to read.
func (w *watcher) keyOf(id flowID) (key programFlowKey, ok bool) {
	set, _ := w.locate(id)
	from := (*[flowKeyWords]uint32)(unsafe.Pointer(w.keys.at(int(id.slotIndex))))
	to := (*[flowKeyWords]uint32)(unsafe.Pointer(&key))
	for range 1000 {
		isFree := atomic.LoadUint64(&set.Lock) == 0 && w.isPresent(id)
		for i := range from {
			to[i] = atomic.LoadUint32(&from[i])
		}
		// The program writes the tag and the key of a new flow, in either order, while it holds
		// the lock.
		if isFree && atomic.LoadUint64(&set.Lock) == 0 && w.isPresent(id) {
			return key, key.Family < uint8(NumFamilies)
		}
	}
	return key, false
}

const flowKeyWords = unsafe.Sizeof(programFlowKey{}) / 4

// watchWord returns all watches of a set as one word.
func (s *programFlowSet) watchWord() *uint64 { return (*uint64)(unsafe.Pointer(&s.Watches)) }

// setWatch sets the watch of one way, before all memory accesses that follow. The program may
// clear watches of other ways at the same time.
func (s *programFlowSet) setWatch(way int, watch uint8) {
	for {
		before := atomic.LoadUint64(s.watchWord())
		after := before
		(*[flowWays]uint8)(unsafe.Pointer(&after))[way] = watch
		if atomic.CompareAndSwapUint64(s.watchWord(), before, after) {
			return
		}
	}
}
