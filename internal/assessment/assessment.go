// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package assessment feeds the response times that the kernel has measured to the judges of
// assessments, and keeps what metrics and documents say about them.
//
// Requests come in the order of their end, and a judge needs them in the order of their arrival. So
// a request waits until all that arrived before it have ended, for at most ten seconds: one that
// took longer counts as if it had arrived ten seconds before its end. With that, the order depends
// on the requests only, and not on the CPUs that recorded them or on when they were read. If
// requests did not wait for slow ones, those of a slow class would come late, and fair labels would
// not look fair.
package assessment

import (
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/assessmentfile"
	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

const (
	// holdNs is the time that a request waits for others that arrived before it. It waits for up to
	// longestHoldNs for those that are known to be outstanding.
	holdNs        = 1e9
	longestHoldNs = 10 * holdNs
	// unseenNs is the time within which a request of an earlier time may become outstanding.
	unseenNs = 1e8
	// mostHeld is the number of requests that wait, of all assessments. It takes 10 MB.
	mostHeld = 1 << 18
)

// RawWriter takes the lines of raw files: a line for each response, in the order of arrival. [Raw]
// is one. An error says that lines are lost.
type RawWriter interface {
	// Append adds lines to the file of an assessment. They are valid during the call.
	Append(assessment string, lines []byte) error
	// Line appends the line of a response, with its end.
	Line(lines []byte, class leak.Class, ns uint64) []byte
}

// Set judges the assessments of a configuration. Its methods are safe for concurrent use.
type Set struct {
	bounds   nativeBounds
	raw      RawWriter // nil without raw files
	mostHeld int
	holdNs   uint64

	// feeding is held while requests are given to judges and their lines are written. A file that
	// does not take lines makes Add wait, and neither Snapshot nor Reload.
	feeding sync.Mutex

	mu          sync.Mutex // guards what follows; taken before that of an assessment
	inOrder     []*judged
	byName      map[string]*judged
	queue       queue
	watermarkNs uint64    // all requests that ended before have been added
	outstanding seen      // all requests that arrived before have been added
	next        seen      // for once all requests that ended before its time have been added
	fedNs       uint64    // the time that orders the last request that a judge got
	dirty       []*judged // those with lines that are not written
	counts      Counts
}

// Counts are what happened to requests on their way to the judges.
type Counts struct {
	Held      uint64 // that wait for others
	Discarded uint64 // of assessments that were replaced or are not known
	// Disordered are requests that a judge got after one that arrived later, since too many waited.
	Disordered uint64
}

// judged is an assessment with its judge.
type judged struct {
	assessmentfile.Assessment
	sinceNs uint64 // CLOCK_MONOTONIC when it began
	lines   []byte // for the raw file; guarded by Set.mu, and by Set.feeding while they are written

	mu               sync.Mutex // guards what follows
	judge            *leak.Judge
	received         uint64
	receivedExcluded uint64
	times            [2]Histogram // of the responses, by class
	excluded         [bpf.NumExclusions]uint64
	report           *leak.Report // nil if it is not that of the present state
}

// New returns a Set without assessments. Without a RawWriter no raw file is written.
func New(raw RawWriter) *Set {
	s := newSet(raw, holdNs, mostHeld)
	s.queue.holdNs = longestHoldNs
	return s
}

func newSet(raw RawWriter, holdNs uint64, mostHeld int) *Set {
	return &Set{
		bounds: newNativeBounds(), raw: raw, mostHeld: mostHeld, holdNs: holdNs, byName: map[string]*judged{}, queue: queue{holdNs: holdNs},
		outstanding: seen{oldestNs: math.MaxUint64},
	}
}

// Reload replaces the assessments. One that is the same as before continues, any other begins.
// While no request is added, Reload calls measure to tell the kernel, and then now for the time of
// CLOCK_MONOTONIC in nanoseconds: requests that ended before belong to what was measured before. If
// measure returns an error, nothing is changed, and the error is returned.
func (s *Set) Reload(file *assessmentfile.File, measure func([]bpf.Assessment) error, now func() uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var inOrder, added []*judged
	var measured []bpf.Assessment
	byName := map[string]*judged{}
	for i := range file.Assessments {
		a := &file.Assessments[i]
		if byName[a.Name] != nil {
			return fmt.Errorf("two assessments have the name %s: give each a name of its own", a.Name)
		}
		j := s.byName[a.Name]
		if j == nil || !j.Equal(a) {
			judge, err := leak.New(a.Judged())
			if err != nil {
				return fmt.Errorf("assessment %s: %w", a.Name, err)
			}
			j = &judged{Assessment: *a, judge: judge}
			added = append(added, j)
		}
		inOrder, byName[a.Name] = append(inOrder, j), j
		measured = append(measured, a.Measured())
	}
	if err := measure(measured); err != nil {
		return err
	}
	sinceNs := now()
	for _, j := range added {
		j.sinceNs = sinceNs
	}
	s.inOrder, s.byName = inOrder, byName
	s.counts.Discarded += uint64(s.queue.remove(func(j *judged) bool { return byName[j.Name] != j }))
	return nil
}

// Add takes requests that have ended, in the order of their end, as [bpf.Audit.ReadExchanges] gives
// them. An error says that lines of raw files are lost; everything else is done.
func (s *Set) Add(batch []bpf.Exchange) error {
	return s.feed(func() {
		for i := range batch {
			s.hold(&batch[i])
		}
		s.release()
	})
}

// Advance takes the time, on the clock of requests, before which all that ended have been added.
// Without new requests, the last ones reach their judge by it. Errors are those of Add.
func (s *Set) Advance(nowNs uint64) error {
	return s.feed(func() {
		s.watermarkNs = max(s.watermarkNs, nowNs)
		s.release()
	})
}

// seen is the arrival of the oldest request that was outstanding at a time.
type seen struct{ oldestNs, atNs uint64 }

// Await calls oldest for the arrival of the oldest outstanding request of those that arrived at
// sinceNs or later, unless no request waits or the last answer is not in use yet. Requests that
// arrived later wait for that one. now returns the time of the clock of requests.
func (s *Set) Await(oldest func(sinceNs uint64) uint64, now func() uint64) {
	s.mu.Lock()
	isNeeded := s.next.atNs == 0 && len(s.queue.heap) > 0
	s.mu.Unlock()
	if !isNeeded {
		return
	}
	beforeNs := now()
	oldestNs := min(oldest(beforeNs-min(beforeNs, s.queue.holdNs)), beforeNs-min(beforeNs, unseenNs))
	atNs := now() // what ended during the call was not seen
	s.mu.Lock()
	s.next = seen{oldestNs, atNs}
	s.mu.Unlock()
}

// Flush gives all requests that wait to their judges: no more will come. Errors are those of Add.
func (s *Set) Flush() error {
	return s.feed(func() {
		for len(s.queue.heap) > 0 {
			s.judge(s.queue.pop())
		}
	})
}

// feed calls f under the lock, and writes the lines of raw files.
func (s *Set) feed(f func()) error {
	s.feeding.Lock()
	defer s.feeding.Unlock()
	s.mu.Lock()
	f()
	dirty := s.dirty
	s.dirty = nil
	s.mu.Unlock()
	var errs []error
	for _, j := range dirty {
		errs = append(errs, s.raw.Append(j.Name, j.lines))
		j.lines = j.lines[:0]
	}
	return errors.Join(errs...)
}

// hold takes a request into the queue.
func (s *Set) hold(x *bpf.Exchange) {
	j := s.byName[x.Assessment]
	if j == nil || x.TimeNs < j.sinceNs {
		s.counts.Discarded++
		return
	}
	h := held{
		of: j, responseNs: min(x.ResponseNs, x.TimeNs), connection: x.Connection, position: x.Position,
		class: uint8(leak.Unknown), exclusion: uint8(x.Exclusion), hasStart: x.HasStart,
	}
	h.arrivalNs = x.TimeNs - h.responseNs
	if x.Class == int(leak.X) || x.Class == int(leak.Y) {
		h.class = uint8(x.Class)
	}
	if x.Exclusion >= bpf.NumExclusions || x.Exclusion == bpf.ExclusionNone && h.class == uint8(leak.Unknown) {
		h.exclusion = uint8(bpf.ExclusionUnclassified)
	}
	j.mu.Lock()
	j.received++
	if bpf.Exclusion(h.exclusion) != bpf.ExclusionNone {
		j.receivedExcluded++
	}
	j.mu.Unlock()
	if len(s.queue.heap) == s.mostHeld {
		s.judge(s.queue.pop())
	}
	s.queue.push(h)
	s.watermarkNs = max(s.watermarkNs, x.TimeNs)
}

// release gives the requests to their judges before which no other can come. One that ends at the
// time of the watermark may still come.
func (s *Set) release() {
	if s.next.atNs > 0 && s.next.atNs < s.watermarkNs {
		s.outstanding, s.next = s.next, seen{}
	}
	for len(s.queue.heap) > 0 && s.isComplete(s.queue.heap[0].dueNs(s.queue.holdNs)) {
		s.judge(s.queue.pop())
	}
}

// isComplete reports whether all requests that are due before a time have been added.
func (s *Set) isComplete(dueNs uint64) bool {
	return dueNs+s.holdNs < s.watermarkNs && dueNs < s.outstanding.oldestNs || dueNs+s.queue.holdNs < s.watermarkNs
}

// judge gives a request to its judge.
func (s *Set) judge(h held) {
	due := h.dueNs(s.queue.holdNs)
	if due < s.fedNs {
		s.counts.Disordered++
	}
	s.fedNs = max(s.fedNs, due)
	j := h.of
	j.mu.Lock()
	defer j.mu.Unlock()
	j.report = nil
	r := leak.Request{
		Class: leak.Class(h.class), TimeNs: h.arrivalNs, Connection: h.connection, Number: h.position, IsMiddle: !h.hasStart,
	}
	if bpf.Exclusion(h.exclusion) != bpf.ExclusionNone {
		j.excluded[h.exclusion]++
		j.judge.Exclude(r)
		return
	}
	ns := min(h.responseNs, leak.LongestNs)
	j.times[h.class].add(ns, s.bounds)
	j.judge.Response(r, ns)
	if s.raw != nil {
		if len(j.lines) == 0 {
			s.dirty = append(s.dirty, j)
		}
		j.lines = s.raw.Line(j.lines, r.Class, ns)
	}
}

// Status is the state of an assessment. Received is the sum of Responses, Excluded and Held.
type Status struct {
	Assessment assessmentfile.Assessment
	Received   uint64
	Responses  [2]uint64 // by class
	SumNs      [2]uint64 // of the responses
	Times      [2]Histogram
	Excluded   [bpf.NumExclusions]uint64
	Held       uint64
	// HeldExcluded are those of Held that are excluded.
	HeldExcluded uint64
	Report       leak.Report
}

// Snapshot returns the states of all assessments, in the order of the configuration. Each is
// consistent in itself. Slices of reports must not be changed.
func (s *Set) Snapshot() []Status {
	s.mu.Lock()
	inOrder := s.inOrder
	s.mu.Unlock()
	states := make([]Status, len(inOrder))
	for i, j := range inOrder {
		j.status(&states[i])
	}
	return states
}

func (j *judged) status(to *Status) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.report == nil {
		report := j.judge.Report()
		j.report = &report
	}
	*to = Status{Assessment: j.Assessment, Received: j.received, Times: j.times, Excluded: j.excluded, Held: j.received, HeldExcluded: j.receivedExcluded, Report: *j.report}
	for i := range j.report.Classes {
		to.Responses[i], to.SumNs[i] = j.report.Classes[i].Responses, j.report.Classes[i].SumNs
		to.Held -= to.Responses[i]
	}
	for _, n := range j.excluded {
		to.Held -= n
		to.HeldExcluded -= n
	}
}

// Counts returns what happened to requests on their way to the judges.
func (s *Set) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := s.counts
	counts.Held = uint64(len(s.queue.heap))
	return counts
}
