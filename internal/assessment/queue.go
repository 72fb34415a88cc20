// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package assessment

import "cmp"

// held is a request that has ended and waits for others that arrived before it.
type held struct {
	of         *judged
	arrivalNs  uint64
	responseNs uint64
	connection uint64
	position   uint32
	class      uint8 // a leak.Class
	exclusion  uint8 // a bpf.Exclusion
	hasStart   bool
}

// dueNs is the time that orders requests: the arrival, but at most holdNs before the end.
func (h *held) dueNs(holdNs uint64) uint64 {
	return h.arrivalNs + h.responseNs - min(h.responseNs, holdNs)
}

// queue is a heap of requests, the earliest first. The order is total, so it does not depend on the
// order in which they were added: a connection has one request at a time, and its number is its
// own. A request of a connection ends before the next one arrives, so it is always the earlier one.
type queue struct {
	holdNs uint64
	heap   []held
}

func (q *queue) compare(a, b *held) int {
	return cmp.Or(cmp.Compare(a.dueNs(q.holdNs), b.dueNs(q.holdNs)), cmp.Compare(a.connection, b.connection), cmp.Compare(a.position, b.position))
}

func (q *queue) isLess(i, j int) bool { return q.compare(&q.heap[i], &q.heap[j]) < 0 }

func (q *queue) push(h held) {
	q.heap = append(q.heap, h)
	for i := len(q.heap) - 1; i > 0; {
		parent := (i - 1) / 2
		if !q.isLess(i, parent) {
			break
		}
		q.heap[i], q.heap[parent] = q.heap[parent], q.heap[i]
		i = parent
	}
}

func (q *queue) pop() held {
	earliest, last := q.heap[0], len(q.heap)-1
	q.heap[0] = q.heap[last]
	q.heap[last] = held{} // of no assessment
	q.heap = q.heap[:last]
	q.sink(0)
	return earliest
}

// sink moves a request down to its place.
func (q *queue) sink(i int) {
	for {
		child := 2*i + 1
		if child >= len(q.heap) {
			return
		}
		if child+1 < len(q.heap) && q.isLess(child+1, child) {
			child++
		}
		if !q.isLess(child, i) {
			return
		}
		q.heap[i], q.heap[child] = q.heap[child], q.heap[i]
		i = child
	}
}

// remove removes the requests of assessments that are gone, and returns their number.
func (q *queue) remove(isGone func(*judged) bool) (n int) {
	kept := q.heap[:0]
	for i := range q.heap {
		if !isGone(q.heap[i].of) {
			kept = append(kept, q.heap[i])
		}
	}
	n = len(q.heap) - len(kept)
	clear(q.heap[len(kept):])
	q.heap = kept
	for i := len(kept)/2 - 1; i >= 0; i-- {
		q.sink(i)
	}
	return n
}
