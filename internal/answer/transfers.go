// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package answer

import (
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"
)

// transfers bounds the bytes of the answers that are being sent.
type transfers struct {
	limit int

	mu    sync.Mutex
	all   []*transfer // in the order of their begin
	bytes int
}

// transfer is an answer that is being sent.
type transfer struct {
	host     netip.Prefix
	bytes    int
	conn     deadliner
	deadline time.Time

	mu    sync.Mutex // excludes extending after cutting off
	isCut bool
}

// deadliner is the part of an *http.ResponseController that a transfer uses.
type deadliner interface {
	SetWriteDeadline(deadline time.Time) error
}

func newTransfers(limit int) *transfers { return &transfers{limit: limit} }

// begin counts an answer, and cuts off others above the limit.
func (t *transfers) begin(host netip.Prefix, bytes int, conn deadliner, deadline time.Time) *transfer {
	begun := &transfer{host: host, bytes: bytes, conn: conn, deadline: deadline}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = append(t.all, begun)
	t.bytes += bytes
	for t.bytes > t.limit && len(t.all) > 1 {
		oldest := t.oldestOfLargest(begun)
		t.remove(oldest)
		oldest.cut()
	}
	return begun
}

// oldestOfLargest returns the oldest answer of the host with most bytes, other than the one that
// has just begun. t.mu is held.
func (t *transfers) oldestOfLargest(begun *transfer) (oldest *transfer) {
	sizes := map[netip.Prefix]int{}
	for _, transfer := range t.all {
		sizes[transfer.host] += transfer.bytes
	}
	for _, transfer := range t.all {
		if transfer != begun && (oldest == nil || sizes[transfer.host] > sizes[oldest.host]) {
			oldest = transfer
		}
	}
	return oldest
}

// end stops counting an answer.
func (t *transfers) end(ended *transfer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.remove(ended)
}

// remove stops counting an answer, if it still counts. t.mu is held.
func (t *transfers) remove(removed *transfer) {
	if i := slices.Index(t.all, removed); i >= 0 {
		t.all = slices.Delete(t.all, i, i+1)
		t.bytes -= removed.bytes
	}
}

// extend gives the next chunk time, up to the deadline of the whole answer.
func (t *transfer) extend(timeout time.Duration) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.isCut {
		return os.ErrDeadlineExceeded
	}
	deadline := time.Now().Add(timeout)
	if deadline.After(t.deadline) {
		deadline = t.deadline
	}
	_ = t.conn.SetWriteDeadline(deadline) // a connection that is closed fails when it is written
	return nil
}

// cut makes the write in progress fail, and all later ones.
func (t *transfer) cut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.isCut = true
	_ = t.conn.SetWriteDeadline(time.Now())
}
