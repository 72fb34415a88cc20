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

// watchProbe sends packets of flows and reads their recorded deltas, at injected times.
type watchProbe struct {
	*Audit
	t       testing.TB
	now     map[string]uint64 // time of a flow's last packet, by frame
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
	run(p.t, p.program(0), frame, p.now[string(frame)], 1)
}

// round reads windows and appends them to p.windows.
func (p *watchProbe) round() {
	p.ReadWindows(testWindow, func(w *Window) {
		kept := *w
		kept.DeltasNs = slices.Clone(w.DeltasNs)
		p.windows = append(p.windows, kept)
	})
}

// awaitWatch sends packets of a flow until the flow is watched.
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

// The windows of a watched flow hold all of its deltas, in order, and nothing else. A pause and
// a reordered packet have no delta.
func TestWindowsHoldTheSentDeltas(t *testing.T) {
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
				run(t, p.program(0), frame, at-1, 1)
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
			t.Fatalf("got %d windows for %d deltas", len(p.windows), len(sent))
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
				t.Errorf("window %d differs from the sent deltas", i)
			}
		}
		if counts := p.WatchCounts(); counts != (WatchCounts{Flows: 1}) {
			t.Errorf("counts: %+v", counts)
		}
	}
}

// If deltas arrive faster than they are read, the last ones are in a window and the others are
// counted as skipped.
func TestSkippedDeltasAreCounted(t *testing.T) {
	p := newWatchProbe(t, func(*Config) {})
	frame := udpFrame()
	p.awaitWatch(frame)
	var recorded uint64
	for _, test := range []struct{ sent, first, skipped uint64 }{
		{sent: 3000, first: 0},                         // 1000 are left
		{sent: 4000, first: 5000, skipped: 3000},       // 5000 exceed the backlog: the last 2000
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
			t.Fatalf("after %d deltas, %d are skipped, want %d", recorded, got, test.skipped)
		}
		if len(p.windows) != 1 {
			t.Fatalf("after %d deltas, there are %d windows, want 1", recorded, len(p.windows))
		}
		for i, delta := range p.windows[0].DeltasNs {
			if want := 1000 + uint32(test.first) + uint32(i); delta != want {
				t.Fatalf("after %d deltas, delta %d of the window is %d, want %d", recorded, i, delta, want)
			}
		}
	}
}

// With one watch for two flows, the busier flow has it, and no window has deltas of both flows.
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
			// The deltas of a flow count up, and their parity tells the flow.
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
				t.Fatalf("a window starts with %d and has %d at %d", first, delta, i)
			}
		}
		count := counts[window.Flow]
		count[first%2]++
		counts[window.Flow] = count
	}
	if len(counts) != 2 {
		t.Fatalf("got windows of %d flows: %v", len(counts), counts)
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

// A flow that evicts a watched flow does not get its watch.
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
		t.Errorf("watches after the watched flow was evicted: %v", set.Watches)
	}
	p.round()
	if len(p.windows) != 0 {
		t.Error("a window has deltas of another flow")
	}
	for flow := range p.watcher.watched {
		if w := p.watcher.watched[flow]; w != nil && !p.watcher.isPresent(w.id) {
			t.Error("an evicted flow is still watched")
		}
	}
}

// A flow that lost its slot and got it back between two rounds has lost its watch. It gets a
// new one.
func TestFlowThatComesBackIsWatchedAgain(t *testing.T) {
	p := newWatchProbe(t, func(c *Config) { c.Flows = flowWays })
	watched := udpFrame()
	p.awaitWatch(watched)
	id := p.watcher.watched[0].id
	at := p.now[string(watched)]
	send := func(frame []byte, times int) {
		for range times {
			at += 1e6
			run(t, p.program(0), frame, at, 1)
		}
	}
	sendToOthers := func() {
		for i := range flowWays - 1 {
			send(newTestFlow(i).frame, 1)
		}
	}
	sendToOthers()
	send(newTestFlow(flowWays).frame, 2) // takes the slot and clears the watch
	if set, _ := p.watcher.locate(id); p.watcher.isPresent(id) || set.Watches != [flowWays]uint8{} {
		t.Fatalf("the flow has its slot: %t, and the watches are %v", p.watcher.isPresent(id), set.Watches)
	}
	sendToOthers()
	send(watched, 1)
	if !p.watcher.isPresent(id) {
		t.Fatal("the flow did not get its slot back")
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

// If one array cannot be mapped, newWatcher returns an error and leaves no array mapped.
func TestWatcherReportsMappingErrors(t *testing.T) {
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

// Each of two CPUs receives packets of one flow, in a set of its own, while one watch moves
// between the two flows. No window has deltas of both flows or lacks one in the middle.
func TestWatchMovesBetweenFlowsUnderTraffic(t *testing.T) {
	p := newWatchProbe(t, func(c *Config) { c.Watches = 1 })
	frames := [2][]byte{newTestFlow(1).frame, newTestFlow(2).frame}
	program := p.program(0)
	for _, frame := range frames {
		p.send(frame, 1)
	}
	ids := p.flowsIn(t)
	if len(ids) != 2 || ids[0].slotIndex/flowWays == ids[1].slotIndex/flowWays {
		t.Fatalf("want two flows in two sets: %v", ids)
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
	const short = 20 // deltas of a window: most windows are read before the watch moves
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
						t.Errorf("a window has the deltas %v", window.DeltasNs)
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
		t.Errorf("%v windows of the two flows, want at least 100 of each", windows)
	}
}

// A watch is not free while a packet that may have read it holds the lock of the flow's set.
func TestReleaseWatchWaitsForThePacket(t *testing.T) {
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
		t.Errorf("watch %d of a released flow, %d flows watched", set.Watches[way], p.WatchCounts().Flows)
	}
}

// Watches that an earlier process left in the sets must not become watches of this process.
func TestWatchesOfAnEarlierProcessAreCleared(t *testing.T) {
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

// flowsIn returns all flows in the flow table.
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

// sendOnce is like run, but returns an error: goroutines other than the test's must not call
// t.Fatal.
func sendOnce(program *ebpf.Program, frame []byte, atNs uint64) error {
	in := append(binary.NativeEndian.AppendUint64(nil, atNs), frame...)
	context, err := binary.Append(nil, binary.NativeEndian, xdpContext{Data: metadataBytes, DataEnd: uint32(len(in))})
	if err != nil {
		return err
	}
	_, err = program.Run(&ebpf.RunOptions{Data: in, Context: context, Repeat: 1})
	return err
}

// By default the program takes no samples.
func TestNothingIsWatchedByDefault(t *testing.T) {
	audit := loadTest(t, testConfig())
	for i := range uint64(1000) {
		run(t, audit.program(0), udpFrame(), 1e12+i*12_345, 1)
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
