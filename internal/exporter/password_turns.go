// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"

	"github.com/xdp-audit/xdp_audit_exporter/internal/connlimit"
)

// passwordTurns lets hosts take turns at having a password compared. The toolkit compares one at a
// time, in the order of the requests, so that without turns a request with a correct password would
// wait for every wrong one that another host has sent before. With turns it waits for at most one
// comparison of each other host.
type passwordTurns struct {
	mu      sync.Mutex
	isTaken bool
	waiting []*hostTurns // in the order of their turns; none is empty
}

// hostTurns has the waiting requests of a host, in the order of their arrival. A channel is closed
// when it is the turn of its request.
type hostTurns struct {
	host     netip.Prefix
	requests []chan struct{}
}

// endOfTurn is the key of the function in the context of a request that ends its turn.
type endOfTurn struct{}

// watch makes requests with a password take turns. The handler of the server is called after the
// turn, so that its answer delays no comparison.
func (t *passwordTurns) watch(server *http.Server) {
	answer := server.Handler
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if end, ok := r.Context().Value(endOfTurn{}).(func()); ok {
			end()
		}
		answer.ServeHTTP(w, r)
	})
	// The toolkit wraps the handler before it calls Serve, which calls this before it accepts
	// connections.
	server.BaseContext = func(net.Listener) context.Context {
		server.Handler = t.wrap(server.Handler)
		return context.Background()
	}
}

// wrap returns a handler that calls the handler of the toolkit when it is the turn of a request.
func (t *passwordTurns) wrap(toolkit http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, hasPassword := r.BasicAuth(); !hasPassword {
			toolkit.ServeHTTP(w, r)
			return
		}
		if t.begin(r.Context(), connlimit.HostOf(r.RemoteAddr)) != nil {
			return // the client has closed the connection
		}
		end := sync.OnceFunc(t.end)
		defer end()
		toolkit.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), endOfTurn{}, end)))
	})
}

// begin waits for a turn of the host, which the caller must end unless there is an error. The error
// is that of the context.
func (t *passwordTurns) begin(ctx context.Context, host netip.Prefix) error {
	t.mu.Lock()
	if !t.isTaken {
		t.isTaken = true
		t.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	if queue := t.queueOf(host); queue != nil {
		queue.requests = append(queue.requests, turn)
	} else {
		t.waiting = append(t.waiting, &hostTurns{host, []chan struct{}{turn}})
	}
	t.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		t.leave(host, turn)
		return ctx.Err()
	}
}

// end gives the turn to the first request of the next host.
func (t *passwordTurns) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next()
}

// next is end. t.mu is held.
func (t *passwordTurns) next() {
	t.isTaken = len(t.waiting) > 0
	if !t.isTaken {
		return
	}
	queue := t.waiting[0]
	t.waiting = t.waiting[1:]
	close(queue.requests[0])
	if queue.requests = queue.requests[1:]; len(queue.requests) > 0 {
		t.waiting = append(t.waiting, queue)
	}
}

// leave removes a request that waits, or ends the turn that it has been given.
func (t *passwordTurns) leave(host netip.Prefix, turn chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	queue := t.queueOf(host)
	if queue == nil || !slices.Contains(queue.requests, turn) {
		t.next()
		return
	}
	queue.requests = slices.DeleteFunc(queue.requests, func(other chan struct{}) bool { return other == turn })
	t.waiting = slices.DeleteFunc(t.waiting, func(queue *hostTurns) bool { return len(queue.requests) == 0 })
}

// queueOf returns the waiting requests of a host, or nil. t.mu is held.
func (t *passwordTurns) queueOf(host netip.Prefix) *hostTurns {
	i := slices.IndexFunc(t.waiting, func(queue *hostTurns) bool { return queue.host == host })
	if i < 0 {
		return nil
	}
	return t.waiting[i]
}
