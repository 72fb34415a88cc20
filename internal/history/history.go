// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package history keeps the counters of the last ten minutes in memory, for the pages of the
// exporter. Its size is bounded by the number of devices: a device has [Points] readings, and above
// [MaxDevices] devices a few.
package history

import (
	"slices"
	"sync"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

const (
	// Interval is the time between two readings.
	Interval = 2 * time.Second
	// Points is the number of readings that are kept: ten minutes.
	Points = 300
	// MaxDevices is the number of devices with as many readings. Others have fewPoints.
	MaxDevices = 64
	fewPoints  = 6
	// snapshotInterval is the time between two kept histograms, and snapshots is their number.
	snapshotInterval = time.Minute
	snapshots        = 6
)

// Point is a reading of the counters of a device, counted since the device was first attached.
type Point struct {
	Time     time.Time
	Packets  uint64
	Bytes    uint64
	Scored   uint64
	Early    uint64 // flagged
	Late     uint64 // flagged
	Unparsed uint64
	Learning uint64 // packets against a baseline with too few samples
	Rare     uint64 // flags that are rare for their flow
	Decided  uint64 // flags on which the calibration decided
}

// NewPoint returns the reading of a device.
func NewPoint(at time.Time, c *bpf.Counters) Point {
	p := Point{
		Time: at, Scored: c.Packets.Judged(),
		Early: c.Packets.Outcome(bpf.OutcomeFlaggedEarly), Late: c.Packets.Outcome(bpf.OutcomeFlaggedLate),
		Unparsed: c.Packets.Outcome(bpf.OutcomeUnparsed), Learning: c.Packets.Outcome(bpf.OutcomeMinSamples),
		Rare: c.Decisions[bpf.DecisionEarned] + c.Decisions[bpf.DecisionNoToken],
	}
	for outcome := range bpf.NumOutcomes {
		p.Packets += c.Packets.Outcome(outcome)
	}
	for family := range c.Bytes {
		for _, n := range c.Bytes[family] {
			p.Bytes += n
		}
	}
	for _, n := range c.Decisions {
		p.Decided += n
	}
	return p
}

// Flags returns the number of flagged packets.
func (p *Point) Flags() uint64 { return p.Early + p.Late }

// follows reports whether a reading continues an earlier one. Otherwise the device was forgotten in
// between, and its counters began again.
func (p *Point) follows(earlier *Point) bool {
	return p.Packets >= earlier.Packets && p.Bytes >= earlier.Bytes && p.Scored >= earlier.Scored && p.Flags() >= earlier.Flags()
}

// Scores are the highest scores of the tests for covert channels at a time.
type Scores struct {
	Time   time.Time
	Scores covert.Scores
}

// Deltas is a native histogram.
type Deltas struct {
	Buckets []timing.NativeBucket
	Zeros   uint64 // deltas of 0 ns, which are in no bucket
}

// snapshot is the histogram of a device at a time.
type snapshot struct {
	at time.Time
	Deltas
}

// ring keeps the last values, as many as its capacity.
type ring[T any] struct {
	values []T
	next   int // index of the oldest value, once the ring is full
	most   int
}

func (r *ring[T]) add(v T) {
	if len(r.values) < r.most {
		r.values = append(r.values, v)
		return
	}
	r.values[r.next] = v
	r.next = (r.next + 1) % r.most
}

// all returns the values from the oldest to the newest.
func (r *ring[T]) all() []T {
	return slices.Concat(r.values[r.next:], r.values[:r.next])
}

func (r *ring[T]) last() *T {
	if len(r.values) == 0 {
		return nil
	}
	return &r.values[(r.next+len(r.values)-1)%len(r.values)]
}

// device is the history of a device.
type device struct {
	points    ring[Point]
	scores    ring[Scores]
	snapshots ring[snapshot]
	lastSeen  time.Time
}

// History has the readings of all devices. Its methods are safe for concurrent use.
type History struct {
	buckets *timing.Buckets

	mu      sync.Mutex
	devices map[string]*device
}

// New returns an empty history.
func New() *History {
	return &History{buckets: timing.NewBuckets(), devices: map[string]*device{}}
}

// Add adds a reading of all present devices, and forgets devices that were not seen for as long as
// readings are kept.
func (h *History) Add(at time.Time, counters []bpf.Counters) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range counters {
		d := h.device(counters[i].Device)
		p := NewPoint(at, &counters[i])
		if last := d.points.last(); last != nil && !p.follows(last) {
			d.points.values, d.points.next = nil, 0
			d.snapshots.values, d.snapshots.next = nil, 0
		}
		d.points.add(p)
		d.lastSeen = at
		if last := d.snapshots.last(); d.snapshots.most > 0 && (last == nil || at.Sub(last.at) >= snapshotInterval) {
			buckets, zeros := h.buckets.Native(&counters[i].Histogram)
			d.snapshots.add(snapshot{at, Deltas{slices.Clip(buckets), zeros}})
		}
	}
	for name, d := range h.devices {
		if at.Sub(d.lastSeen) > Points*Interval {
			delete(h.devices, name)
		}
	}
}

// device returns the history of a device, which may be new. h.mu is held.
func (h *History) device(name string) *device {
	d := h.devices[name]
	if d == nil {
		d = &device{points: ring[Point]{most: fewPoints}}
		if len(h.devices) < MaxDevices {
			d.points.most, d.snapshots.most, d.scores.most = Points, snapshots, Points
		}
		h.devices[name] = d
	}
	return d
}

// AddScores adds the scores of a device that has a reading.
func (h *History) AddScores(at time.Time, name string, scores covert.Scores) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := h.devices[name]; d != nil && d.scores.most > 0 {
		d.scores.add(Scores{at, scores})
	}
}

// Names returns the devices that were seen in the last ten minutes, and when each was last.
func (h *History) Names() map[string]time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	names := make(map[string]time.Time, len(h.devices))
	for name, d := range h.devices {
		names[name] = d.lastSeen
	}
	return names
}

// Device returns the readings of a device, from the oldest to the newest; none if it is not known.
func (h *History) Device(name string) Series {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := h.devices[name]; d != nil {
		return d.points.all()
	}
	return nil
}

// Scores returns the scores of a device, from the oldest to the newest.
func (h *History) Scores(name string) []Scores {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := h.devices[name]; d != nil {
		return d.scores.all()
	}
	return nil
}

// Histogram returns the histogram of all deltas of a device, and of those since the oldest
// histogram that is kept. That is at most six minutes old; since is its time, and is zero if none
// is kept.
func (h *History) Histogram(c *bpf.Counters) (all, recent Deltas, since time.Time) {
	all.Buckets, all.Zeros = h.buckets.Native(&c.Histogram)
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.devices[c.Device]
	if d == nil || len(d.snapshots.values) == 0 {
		return all, recent, since
	}
	oldest := &d.snapshots.values[d.snapshots.next]
	before := make(map[int]uint64, len(oldest.Buckets))
	for _, b := range oldest.Buckets {
		before[b.Index] = b.Count
	}
	for _, b := range all.Buckets {
		if n := b.Count - min(b.Count, before[b.Index]); n > 0 {
			recent.Buckets = append(recent.Buckets, timing.NativeBucket{Index: b.Index, Count: n})
		}
	}
	recent.Zeros = all.Zeros - min(all.Zeros, oldest.Zeros)
	return all, recent, oldest.at
}
