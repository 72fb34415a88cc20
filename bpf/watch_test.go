// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

const testWindow = 2000

// watchProbe sends packets of flows and reads what is recorded of them, without the passing of time.
type watchProbe struct {
	*Audit
	t       testing.TB
	now     map[string]uint64 // last time of a flow, by its frame
	windows []Window
}

func newWatchProbe(t testing.TB, change func(*Config)) *watchProbe {
	t.Helper()
	config := testConfig()
	config.Watches = 4
	change(&config)
	return &watchProbe{Audit: loadTest(t, config), t: t, now: map[string]uint64{}}
}

func (p *watchProbe) send(frame []byte, deltaNs uint64) {
	p.t.Helper()
	if p.now[string(frame)] == 0 {
		p.now[string(frame)] = 1e12
	}
	p.now[string(frame)] += deltaNs
	run(p.t, p.devices[0].program, frame, p.now[string(frame)], 1)
}

// round reads windows, and keeps them.
func (p *watchProbe) round() {
	p.ReadWindows(testWindow, func(w *Window) {
		kept := *w
		kept.DeltasNs = slices.Clone(w.DeltasNs)
		p.windows = append(p.windows, kept)
	})
}

// awaitWatch sends packets of a flow until it is watched.
func (p *watchProbe) awaitWatch(frame []byte) {
	p.t.Helper()
	before := p.WatchCounts().Flows
	for range 1000 {
		p.send(frame, 12_345)
		p.round()
		if p.WatchCounts().Flows > before {
			return
		}
	}
	p.t.Fatal("the flow is not watched after 1000 packets")
}

// All deltas of a watched flow are in its windows, in their order, and nothing else is: a pause and a packet that came before
// its predecessor have no delta.
func TestWindowsAreTheDeltasSent(t *testing.T) {
	for _, v := range append(variants, struct {
		domain Domain
		scope  Scope
	}{DomainLinear, BaselineFlow}) {
		p := newWatchProbe(t, func(c *Config) { c.Domain, c.Baseline = v.domain, v.scope })
		frame := udpFrame()
		p.awaitWatch(frame)
		r := rand.New(rand.NewPCG(1, 2))
		var sent []uint32
		for i := range 5*testWindow + 100 {
			delta := uint64(1e6 * r.ExpFloat64())
			switch i % 100 {
			case 50:
				delta = 5e9 // a pause
			case 51:
				at := p.now[string(frame)]
				run(t, p.devices[0].program, frame, at-1, 1)
			}
			if i%777 == 776 {
				p.round()
			}
			p.send(frame, delta)
			if delta <= 1e9 {
				sent = append(sent, uint32(delta))
			}
		}
		p.round()
		if len(p.windows) != len(sent)/testWindow {
			t.Fatalf("%d windows of %d deltas", len(p.windows), len(sent))
		}
		want := Flow{
			Device: "test0", Source: netip.MustParseAddrPort("10.0.0.1:1000"), Destination: netip.MustParseAddrPort("10.0.0.2:53"),
			Protocol: ProtocolUDP, ProtocolNumber: ipUDP,
		}
		for i, window := range p.windows {
			if window.Flow != want {
				t.Errorf("window %d is of %+v, want %+v", i, window.Flow, want)
			}
			if !slices.Equal(window.DeltasNs, sent[i*testWindow:][:testWindow]) {
				t.Errorf("window %d is not that of the deltas sent", i)
			}
		}
		if counts := p.WatchCounts(); counts != (WatchCounts{Flows: 1}) {
			t.Errorf("counts: %+v", counts)
		}
	}
}

// Of deltas that came faster than they were read, the last are in a window, and the others are counted.
func TestSkippedDeltasAreCounted(t *testing.T) {
	p := newWatchProbe(t, func(*Config) {})
	frame := udpFrame()
	p.awaitWatch(frame)
	var recorded uint64
	for _, test := range []struct{ sent, first, skipped uint64 }{
		{sent: 3000, first: 0},                         // 1000 are left
		{sent: 4000, first: 5000, skipped: 3000},       // 5000 are more than the backlog: the last 2000
		{sent: 10_000, first: 15_000, skipped: 11_000}, // around the ring twice
		{sent: 3072, first: 17_000, skipped: 11_000},   // exactly the backlog
	} {
		for range test.sent {
			p.send(frame, 1000+recorded)
			recorded++
		}
		p.windows = nil
		p.round()
		if got := p.WatchCounts().Skipped; got != test.skipped {
			t.Fatalf("after %d deltas %d are skipped, want %d", recorded, got, test.skipped)
		}
		if len(p.windows) != 1 {
			t.Fatalf("after %d deltas there are %d windows, want 1", recorded, len(p.windows))
		}
		for i, delta := range p.windows[0].DeltasNs {
			if want := 1000 + uint32(test.first) + uint32(i); delta != want {
				t.Fatalf("after %d deltas, delta %d of the window is %d, want %d", recorded, i, delta, want)
			}
		}
	}
}

// With one watch for two flows it is the busier one's, and no window has deltas of both.
func TestWatchGoesToTheBusiestFlow(t *testing.T) {
	p := newWatchProbe(t, func(c *Config) { c.Watches = 1 })
	frames := [2][]byte{newTestFlow(1).frame, newTestFlow(2).frame}
	var next [2]uint64
	counts := map[Flow][2]int{}
	for phase := range 6 {
		busy := phase % 2
		for range 24_000 {
			f := busy
			if next[0]+next[1] > 0 && (next[0]+next[1])%20 == 0 {
				f = 1 - busy
			}
			// The deltas of a flow count up, and tell whose they are.
			p.send(frames[f], 1000+2*next[f]+uint64(f))
			next[f]++
			if (next[0]+next[1])%200 == 0 {
				p.round()
			}
		}
	}
	for _, window := range p.windows {
		first := window.DeltasNs[0]
		for i, delta := range window.DeltasNs {
			if delta != first+2*uint32(i) {
				t.Fatalf("a window begins with %d and has %d at %d", first, delta, i)
			}
		}
		count := counts[window.Flow]
		count[first%2]++
		counts[window.Flow] = count
	}
	if len(counts) != 2 {
		t.Fatalf("windows of %d flows: %v", len(counts), counts)
	}
	for flow, count := range counts {
		if min(count[0], count[1]) != 0 || max(count[0], count[1]) < 3 {
			t.Errorf("%v has %d windows of the first flow and %d of the second", flow, count[0], count[1])
		}
	}
	if counts := p.WatchCounts(); counts.Flows != 1 {
		t.Errorf("counts: %+v", counts)
	}
}

// A flow that takes the place of a watched one does not have its watch.
func TestEvictedFlowLosesItsWatch(t *testing.T) {
	p := newWatchProbe(t, func(c *Config) { c.Flows = flowWays })
	watched := udpFrame()
	p.awaitWatch(watched)
	for i := range testWindow - 1 {
		p.send(watched, 1000+uint64(i))
	}
	others := make([][]byte, flowWays)
	for i := range others {
		others[i] = newTestFlow(i).frame
		p.now[string(others[i])] = p.now[string(watched)] + 1e6
	}
	set := p.watcher.sets.at(0)
	for range 3 {
		for _, frame := range others {
			p.send(frame, 777)
		}
	}
	if set.Watches != [flowWays]uint8{} {
		t.Errorf("watches of flows that took the place of a watched one: %v", set.Watches)
	}
	p.round()
	if len(p.windows) != 0 {
		t.Error("a window ends with the deltas of another flow")
	}
	for flow := range p.watcher.watched {
		if w := p.watcher.watched[flow]; w != nil && !p.watcher.isPresent(w.id) {
			t.Error("a flow that is gone is still watched")
		}
	}
}

// A flow that lost its place and has it again, all between two rounds, has no watch any more: it gets one again.
func TestFlowThatComesBackIsWatchedAgain(t *testing.T) {
	p := newWatchProbe(t, func(c *Config) { c.Flows = flowWays })
	watched := udpFrame()
	p.awaitWatch(watched)
	id := p.watcher.watched[0].id
	at := p.now[string(watched)]
	send := func(frame []byte, times int) {
		for range times {
			at += 1e6
			run(t, p.devices[0].program, frame, at, 1)
		}
	}
	sendToOthers := func() {
		for i := range flowWays - 1 {
			send(newTestFlow(i).frame, 1)
		}
	}
	sendToOthers()
	send(newTestFlow(flowWays).frame, 2) // takes the place, and clears the watch
	if set, _ := p.watcher.locate(id); p.watcher.isPresent(id) || set.Watches != [flowWays]uint8{} {
		t.Fatalf("the flow is in its place: %t, and the watches are %v", p.watcher.isPresent(id), set.Watches)
	}
	sendToOthers()
	send(watched, 1)
	if !p.watcher.isPresent(id) {
		t.Fatal("the flow is not in its place again")
	}
	p.now[string(watched)] = at
	for i := range uint64(2 * testWindow) {
		p.send(watched, 1000+i)
		if i%100 == 0 {
			p.round()
		}
	}
	p.round()
	if len(p.windows) != 1 {
		t.Fatalf("%d windows, want 1", len(p.windows))
	}
	for i, delta := range p.windows[0].DeltasNs {
		if want := p.windows[0].DeltasNs[0] + uint32(i); delta != want {
			t.Fatalf("delta %d of the window is %d, want %d", i, delta, want)
		}
	}
}

// What cannot be mapped is an error, after which nothing is.
func TestWatchesThatCannotBeMapped(t *testing.T) {
	p := newWatchProbe(t, func(*Config) {})
	before := mappedArrays(t)
	for _, name := range []string{programMapFlowSets, programMapFlowKeys, programMapFlowWatches, programMapSampledFlows} {
		other := *p.maps
		other.byName = maps.Clone(p.maps.byName)
		other.byName[name] = p.maps.byName[programMapAuditEvents]
		w, err := newWatcher(&other, p.config)
		if w != nil || err == nil || !strings.Contains(err.Error(), "mapping the recorded deltas") {
			t.Errorf("without %s: got %v and the error %v", name, w, err)
		}
	}
	if after := mappedArrays(t); before == 0 || after != before {
		t.Errorf("%d arrays are mapped, want %d", after, before)
	}
}

// Two CPUs have packets of a flow each, in sets of their own, and all the time one watch changes hands between them. No window
// has deltas of both, or has lost one in the middle.
func TestWatchChangesHandsUnderTraffic(t *testing.T) {
	p := newWatchProbe(t, func(c *Config) { c.Watches = 1 })
	frames := [2][]byte{newTestFlow(1).frame, newTestFlow(2).frame}
	program := p.devices[0].program
	for _, frame := range frames {
		p.send(frame, 1)
	}
	ids := p.flowsIn(t)
	if len(ids) != 2 || ids[0].slotIndex/flowWays == ids[1].slotIndex/flowWays {
		t.Fatalf("not two flows in two sets: %v", ids)
	}

	var running sync.WaitGroup
	var isOver atomic.Bool
	errs := make([]error, 2)
	for i, cpu := range twoCPUs(t) {
		running.Go(func() {
			runtime.LockOSThread()
			errs[i] = moveTo(cpu)
			now, next := p.now[string(frames[i])], uint64(0)
			for !isOver.Load() && errs[i] == nil {
				now += 1000 + 2*next + uint64(i)
				next++
				errs[i] = sendOnce(program, frames[i], now)
			}
		})
	}
	const short = 20 // deltas of a window: most are read before the watch changes hands
	windows := [2]int{}
	owners := p.events.owners.Load()
	w := p.watcher
	for end := time.Now().Add(hammerTime / 3); time.Now().Before(end); {
		for _, id := range ids {
			w.whileOpen(func() { w.assignWatch(0, id, owners) })
			for range 200 {
				var window *Window
				w.whileOpen(func() { window = w.nextWindow(0, short, owners) })
				if window == nil {
					continue
				}
				first := window.DeltasNs[0]
				windows[first%2]++
				for i, delta := range window.DeltasNs {
					if delta != first+2*uint32(i) {
						t.Errorf("a window is %v", window.DeltasNs)
						break
					}
				}
			}
			w.whileOpen(func() {
				if w.watched[0] != nil {
					w.releaseWatch(0)
				}
			})
		}
	}
	isOver.Store(true)
	running.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d windows of one flow, %d of the other", windows[0], windows[1])
	if min(windows[0], windows[1]) < 100 {
		t.Errorf("%v windows are too few to tell", windows)
	}
}

// A watch is not free before the packet that may have seen it is done: the one that holds the lock of the flow's set.
func TestReleaseWaitsForThePacket(t *testing.T) {
	p := newWatchProbe(t, func(*Config) {})
	p.awaitWatch(udpFrame())
	set, way := p.watcher.locate(p.watcher.watched[0].id)
	atomic.StoreUint64(&set.Lock, 1)
	released := make(chan struct{})
	go func() {
		defer close(released)
		p.watcher.releaseWatch(0)
	}()
	for atomic.LoadUint64(set.watchWord()) != 0 {
		runtime.Gosched()
	}
	select {
	case <-released:
		t.Error("the watch is free while the set is locked")
	case <-time.After(50 * time.Millisecond):
	}
	atomic.StoreUint64(&set.Lock, 0)
	<-released
	if set.Watches[way] != 0 || p.WatchCounts().Flows != 0 {
		t.Errorf("watch %d of a flow that has none, %d flows watched", set.Watches[way], p.WatchCounts().Flows)
	}
}

// What a process before has left in the sets would be watches of this one.
func TestWatchesOfTheProcessBeforeAreCleared(t *testing.T) {
	p := newWatchProbe(t, func(*Config) {})
	frame := udpFrame()
	p.awaitWatch(frame)
	p.maps.isTakenOver = true
	config := p.config
	next, err := newWatcher(p.maps, config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := next.close(); err != nil {
			t.Error(err)
		}
	}()
	for i := range next.sets.slice() {
		if next.sets.at(i).Watches != [flowWays]uint8{} {
			t.Fatalf("set %d has the watches %v", i, next.sets.at(i).Watches)
		}
	}
}

// flowsIn returns the flows in the table.
func (p *watchProbe) flowsIn(t testing.TB) (ids []flowID) {
	t.Helper()
	for i := range p.watcher.sets.slice() {
		for way, tag := range p.watcher.sets.at(i).Tags {
			if tag != 0 {
				ids = append(ids, flowID{uint32(i*flowWays + way), tag})
			}
		}
	}
	return ids
}

// sendOnce is run for a goroutine that is not the test's.
func sendOnce(program *ebpf.Program, frame []byte, atNs uint64) error {
	in := append(binary.NativeEndian.AppendUint64(nil, atNs), frame...)
	context, err := binary.Append(nil, binary.NativeEndian, xdpContext{Data: metadataBytes, DataEnd: uint32(len(in))})
	if err != nil {
		return err
	}
	_, err = program.Run(&ebpf.RunOptions{Data: in, Context: context, Repeat: 1})
	return err
}

// Without watches nothing is recorded, and nobody is kept waiting.
func TestNothingIsWatchedByDefault(t *testing.T) {
	audit := loadTest(t, testConfig())
	for i := range uint64(1000) {
		run(t, audit.devices[0].program, udpFrame(), 1e12+i*12_345, 1)
	}
	var samples programFlowSamples
	for cpu := range audit.maps.cpus {
		if err := audit.maps.byName[programMapSampledFlows].Lookup(uint32(cpu), &samples); err != nil {
			t.Fatal(err)
		}
		if samples.Taken != 0 {
			t.Errorf("%d samples were taken", samples.Taken)
		}
	}
	if counts := audit.WatchCounts(); counts != (WatchCounts{}) {
		t.Errorf("counts: %+v", counts)
	}
}
