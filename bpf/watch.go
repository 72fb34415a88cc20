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

// Some flows have a watch: the program records their deltas. Who has one is decided here, by the samples that the program
// takes; watch.h says what it does with both.

const (
	// watchInterval is how often recorded deltas are read. A flow with more than a thousand deltas in it loses some.
	watchInterval = 500 * time.Millisecond

	watchDeltas = len(programWatch{}.DeltasNs)
	flowSamples = len(programFlowSamples{}.Samples)

	// windowBacklog is the number of recorded deltas of a flow up to which its next window is that after the last one. The
	// rest of the ring is for what is recorded while a window is read.
	windowBacklog = uint64(watchDeltas * 3 / 4)
)

// Flow is whose packets some deltas are between.
type Flow struct {
	Device         string
	Source         netip.AddrPort
	Destination    netip.AddrPort // for ICMP the port is type·256+code, as in NetFlow, and Source's the echo identifier
	Protocol       Protocol
	ProtocolNumber uint8  // as in the IP header
	VLAN           uint16 // outer VLAN id as seen in the frame; 0 without a tag
}

// Window is a number of consecutive deltas of a flow.
type Window struct {
	Flow
	Time     time.Time // when it was read
	DeltasNs []uint32
}

// WatchCounts say how much is seen of the flows that are watched.
type WatchCounts struct {
	Flows   int    // that are watched
	Skipped uint64 // deltas of watched flows that came too fast to be read
}

// flowID is a flow in the flow table: whose place it is, and where.
type flowID struct {
	slotIndex uint32 // set · flowWays + way
	tag       uint32
}

// watcher gives watches to flows, and reads what is recorded. It shares the sets with the programs.
type watcher struct {
	sets    *mapArray[programFlowSet]
	keys    *mapArray[programFlowKey]
	watches *mapArray[programWatch]
	samples *mapArray[programFlowSamples]

	mu       sync.Mutex // held while the memory is used
	isClosed bool

	activity    flowActivity
	samplesRead []uint64       // samples that were read, by CPU
	watched     []*watchedFlow // by number of the watch; nil for a free one
	window      []uint32

	flows   atomic.Int64
	skipped atomic.Uint64
}

// watchedFlow is a flow that has a watch.
type watchedFlow struct {
	id   flowID
	key  programFlowKey
	next uint64 // number of the delta that its next window begins with
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
	if t.isTakenOver { // the watches in the sets are those of a process before
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

// Watch calls handle for windows of so many deltas of the busiest flows, until the context ends. The window is valid during
// the call only. Without Config.Watches it does nothing but wait for the end. It must not run
// twice at a time.
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

// ReadWindows is what Watch does again and again, for those whose packets do not come as time passes: it calls handle for the
// next window of each flow that is watched, if there is one, and then gives watches to flows that are busy by now. Without
// Config.Watches it does nothing. It must not run twice at a time, nor beside Watch.
func (a *Audit) ReadWindows(length int, handle func(*Window)) {
	if a.watcher != nil {
		a.watcher.round(a.events.owners.Load(), length, handle)
	}
}

// WatchCounts returns how much is seen of the flows that are watched. It is zero without Config.Watches.
func (a *Audit) WatchCounts() WatchCounts {
	if a.watcher == nil {
		return WatchCounts{}
	}
	return WatchCounts{Flows: int(a.watcher.flows.Load()), Skipped: a.watcher.skipped.Load()}
}

// round reads what is there, and gives watches to the flows that are busiest by now.
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

// use calls f unless the memory is closed.
func (w *watcher) whileOpen(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.isClosed {
		f()
	}
}

// next returns the next window of the flow that has a watch; nil if there is none. The watch of a flow that is gone is free
// then, and that of a flow which was gone for a while and has its place again: another flow's packet has cleared the byte.
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

// readSamples counts the samples since the last round, as far as they are not overwritten.
func (w *watcher) readSamples() {
	for cpu := range w.samples.slice() {
		s := w.samples.at(cpu)
		taken := atomic.LoadUint64(&s.Taken)
		first := w.samplesRead[cpu]
		if taken-first >= uint64(flowSamples) {
			first = taken - uint64(flowSamples) + 1 // the next overwrites the oldest
		}
		for i := first; i < taken; i++ {
			sample := &s.Samples[i%uint64(flowSamples)]
			w.activity.add(flowID{atomic.LoadUint32(&sample.Place), atomic.LoadUint32(&sample.Tag)})
		}
		w.samplesRead[cpu] = taken
	}
}

// read copies the next window of a flow into w.window, if there is one.
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
	// The delta after the last recorded one may be on its way into the place of the oldest.
	isWhole := atomic.LoadUint64(&watch.Recorded)-first < uint64(watchDeltas)
	end, seen := first+uint64(length), uint64(length)
	if !isWhole {
		seen = 0
	}
	w.skipped.Add(end - flow.next - seen)
	flow.next = end
	return isWhole
}

// assign gives free watches to the busiest flows that have none, and then those of flows that are far less busy.
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

// leastActive returns the number of a free watch, or of the one whose flow is the least busy.
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

// give lets a flow have a free watch, if it is still where it was.
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
	// Whoever has taken the way meanwhile has a tag of its own.
	if !w.isPresent(id) {
		w.releaseWatch(number)
	}
}

// release makes a watch free. When it returns, no packet is recorded there.
func (w *watcher) releaseWatch(number int) {
	set, way := w.locate(w.watched[number].id)
	set.setWatch(way, 0)
	for atomic.LoadUint64(&set.Lock) != 0 { //nolint:revive // until a packet that may have seen the watch is done
	}
	w.watched[number] = nil
	w.flows.Add(-1)
}

func (w *watcher) locate(id flowID) (set *programFlowSet, way int) {
	return w.sets.at(int(id.slotIndex / flowWays)), int(id.slotIndex % flowWays)
}

// isIn reports whether a flow is still where it was.
func (w *watcher) isPresent(id flowID) bool {
	set, way := w.locate(id)
	return atomic.LoadUint32(&set.Tags[way]) == id.tag
}

// isRecorded reports whether the program finds a watch where a flow was.
func (w *watcher) hasWatch(number int, id flowID) bool {
	set, way := w.locate(id)
	watches := atomic.LoadUint64(set.watchWord())
	return (*[flowWays]uint8)(unsafe.Pointer(&watches))[way] == uint8(number+1)
}

// keyOf returns whose packets those of a flow are; ok is false if the flow is not there any more, or its set too busy to tell.
func (w *watcher) keyOf(id flowID) (key programFlowKey, ok bool) {
	set, _ := w.locate(id)
	from := (*[flowKeyWords]uint32)(unsafe.Pointer(w.keys.at(int(id.slotIndex))))
	to := (*[flowKeyWords]uint32)(unsafe.Pointer(&key))
	for range 1000 {
		isFree := atomic.LoadUint64(&set.Lock) == 0 && w.isPresent(id)
		for i := range from {
			to[i] = atomic.LoadUint32(&from[i])
		}
		// A new flow's tag is written under the lock, before or after its key.
		if isFree && atomic.LoadUint64(&set.Lock) == 0 && w.isPresent(id) {
			return key, key.Family < uint8(NumFamilies)
		}
	}
	return key, false
}

const flowKeyWords = unsafe.Sizeof(programFlowKey{}) / 4

// watchWord returns all watches of a set.
func (s *programFlowSet) watchWord() *uint64 { return (*uint64)(unsafe.Pointer(&s.Watches)) }

// setWatch changes the watch of one way, and orders it before all that follows. The program clears those of others meanwhile.
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
