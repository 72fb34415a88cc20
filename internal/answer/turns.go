// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package answer

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
)

// errTooMany is the error of a request above the limit.
var errTooMany = errors.New("too many requests")

// turns makes one answer at a time. Hosts take turns, so that a host waits for at most one answer
// of each other host. An answer goes to all requests for the same that waited when it was begun;
// none is older than its request.
type turns struct {
	limit int // of requests that wait or whose answer is being made, see admit; 0 for none

	mu      sync.Mutex
	isBusy  bool
	served  map[netip.Prefix]int // requests whose answer is being made
	total   int                  // requests in served and in waiting
	waiting []*hostQueue         // in the order of their turns; none is empty
}

// hostQueue has the waiting requests of a host, in the order of their arrival.
type hostQueue struct {
	host     netip.Prefix
	requests []*request
}

// request is a request that waits. It receives one result.
type request struct {
	host   netip.Prefix
	key    string
	result chan result // of capacity 1
}

// result is the end of waiting: an answer, an error, or the turn to make an answer.
type result struct {
	answer *stored
	err    error
	batch  []*request // if it is the request's turn: all that share the answer, itself first
}

func newTurns(limit int) *turns { return &turns{limit: limit, served: map[netip.Prefix]int{}} }

// get returns the answer to a request. The function produce makes it, for all that share it. The
// answer is nil if produce panicked in another request. The error is errTooMany, or that of the
// context.
func (t *turns) get(ctx context.Context, host netip.Prefix, key string, produce func() *stored) (*stored, error) {
	r := &request{host: host, key: key, result: make(chan result, 1)}
	t.mu.Lock()
	if !t.admit(r) {
		t.mu.Unlock()
		return nil, errTooMany
	}
	if !t.isBusy {
		t.next()
	}
	t.mu.Unlock()

	var now result
	select {
	case now = <-r.result:
	case <-ctx.Done():
		if t.leave(r) {
			return nil, ctx.Err()
		}
		now = <-r.result
	}
	if now.batch == nil {
		return now.answer, now.err
	}
	var answer *stored
	defer func() { t.finish(now.batch, answer) }() // also after a panic
	answer = produce()
	return answer, nil
}

// admit appends a request to the queue of its host, or returns false. At the limit a request of
// the host with most requests is refused: r, if its host would have as many, and the latest that
// waits otherwise. If none of that host waits, or r is the first request of its host, r is
// admitted above the limit: the connections bound the number of requests too. t.mu is held.
func (t *turns) admit(r *request) bool {
	if t.limit > 0 && t.total >= t.limit {
		largest, own := t.largest(), t.count(r.host)+1
		most := t.count(largest)
		if own > 1 && own >= most {
			return false
		}
		if queue := t.queueOf(largest); queue != nil && own < most {
			last := queue.requests[len(queue.requests)-1]
			t.remove(last)
			last.result <- result{err: errTooMany}
		}
	}
	t.total++
	queue := t.queueOf(r.host)
	if queue == nil {
		queue = &hostQueue{host: r.host}
		t.waiting = append(t.waiting, queue)
	}
	queue.requests = append(queue.requests, r)
	return true
}

// largest returns the host with most requests, if possible one that waits. t.mu is held.
func (t *turns) largest() (largest netip.Prefix) {
	for _, queue := range t.waiting {
		if t.count(queue.host) > t.count(largest) {
			largest = queue.host
		}
	}
	for host := range t.served {
		if t.count(host) > t.count(largest) {
			largest = host
		}
	}
	return largest
}

// count returns the number of requests of a host. t.mu is held.
func (t *turns) count(host netip.Prefix) int {
	n := t.served[host]
	if queue := t.queueOf(host); queue != nil {
		n += len(queue.requests)
	}
	return n
}

// queueOf returns the queue of a host, or nil. t.mu is held.
func (t *turns) queueOf(host netip.Prefix) *hostQueue {
	i := slices.IndexFunc(t.waiting, func(q *hostQueue) bool { return q.host == host })
	if i < 0 {
		return nil
	}
	return t.waiting[i]
}

// leave removes a request whose client is gone. It returns false if the request has its result.
func (t *turns) leave(r *request) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.remove(r)
}

// remove removes a waiting request, or returns false if it does not wait. t.mu is held.
func (t *turns) remove(r *request) bool {
	queue := t.queueOf(r.host)
	if queue == nil || !slices.Contains(queue.requests, r) {
		return false
	}
	queue.requests = slices.DeleteFunc(queue.requests, func(other *request) bool { return other == r })
	t.total--
	t.dropEmpty()
	return true
}

// dropEmpty removes the queues without requests. t.mu is held.
func (t *turns) dropEmpty() {
	t.waiting = slices.DeleteFunc(t.waiting, func(q *hostQueue) bool { return len(q.requests) == 0 })
}

// next gives the turn to the first request of the next host, with all that wait for the same
// answer. t.mu is held.
func (t *turns) next() {
	t.isBusy = len(t.waiting) > 0
	if !t.isBusy {
		return
	}
	turn := t.waiting[0]
	t.waiting = append(t.waiting[1:], turn) // last, in case more of its requests wait
	first := turn.requests[0]
	batch := []*request{first}
	for _, queue := range t.waiting {
		queue.requests = slices.DeleteFunc(queue.requests, func(r *request) bool {
			if r.key == first.key && r != first {
				batch = append(batch, r)
			}
			return r.key == first.key
		})
	}
	t.dropEmpty()
	for _, r := range batch {
		t.served[r.host]++
	}
	first.result <- result{batch: batch}
}

// finish passes an answer on to all that share it, and gives the turn to the next host.
func (t *turns) finish(batch []*request, answer *stored) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, r := range batch {
		if t.served[r.host]--; t.served[r.host] == 0 {
			delete(t.served, r.host)
		}
		t.total--
		if i > 0 {
			r.result <- result{answer: answer}
		}
	}
	t.next()
}
