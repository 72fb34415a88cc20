// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/time/rate"

	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

// The values of --label.
const (
	labelDSCP = "dscp"
	labelPort = "port"
	labelNone = "none"
)

const (
	// shortWarmup is the number of requests before the first that counts, on a connection that
	// replaces another one.
	shortWarmup = 2
	// mostRefused is the number of connections in a row that may fail.
	mostRefused = 5
	refusedWait = 200 * time.Millisecond
)

// remedies say what to do about errors of connections.
var remedies = map[error]string{
	errClosed:  "use a higher --rate, so that it does not end idle connections, or a smaller --warmup",
	errUnasked: "use --raw.end or a longer --raw.quiet for answers in several pieces, and send nothing that is answered twice",
}

// errDone ends a connection when all requests have been sent.
var errDone = errors.New("all requests have been sent")

// session sends the requests of one run.
type session struct {
	o        *options
	messages [2]message
	dialer   dialer
	limiter  *rate.Limiter
	ledger   *ledger
	ports    [2]*ports
	opened   atomic.Pointer[connection] // the first connection, until a worker takes it
	left     atomic.Int64               // requests that may still be sent
	number   atomic.Uint64
}

func newSession(o *options, messages [2]message, d dialer, l *ledger) *session {
	s := &session{o: o, messages: messages, dialer: d, ledger: l, limiter: rate.NewLimiter(rate.Limit(o.rate), 1)}
	for i := range s.ports {
		s.ports[i] = &ports{portRange: o.classes[i].ports}
	}
	s.left.Store(int64(o.requests))
	return s
}

// run sends requests on all connections until all are sent, or the context ends. Then the requests
// that are underway still get their answers.
func (s *session) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var workers sync.WaitGroup
	for i := range s.o.connections {
		w := &worker{session: s, texts: generator(s.o.seed, 2*i+1), order: generator(s.o.seed, 2*i+2)}
		workers.Go(func() {
			if err := w.run(ctx); err != nil && !errors.Is(err, errDone) && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	workers.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// close closes the first connection if no worker has taken it.
func (s *session) close() {
	if c := s.opened.Swap(nil); c != nil {
		c.close()
	}
}

// generator returns one of the generators of a seed.
func generator(seed, stream uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, stream)) //nolint:gosec // it can be repeated
}

// take waits until one more request may be sent.
func (s *session) take(ctx context.Context) error {
	if s.left.Add(-1) < 0 || s.limiter.Wait(ctx) != nil {
		return errDone
	}
	return nil
}

// worker sends requests, one at a time.
type worker struct {
	session *session
	order   *rand.Rand // of the labels
	texts   *rand.Rand // of {{random}}
	refused int        // connections in a row
	ended   int        // connections in a row that end before a request that counts
	isWarm  bool       // there was a connection
}

func (w *worker) run(ctx context.Context) error {
	switch {
	case w.session.o.label == labelPort && w.session.o.order == leak.Observed:
		return w.runConnectionsOfClasses(ctx)
	case w.session.o.label == labelPort:
		return w.runConnectionsOfRequests(ctx)
	}
	for {
		c, err := w.connect(ctx, 0, true)
		if err != nil {
			return err
		}
		err = w.runConnection(ctx, c)
		c.close()
		if err != nil {
			return err
		}
	}
}

// runConnection sends requests until the connection ends. Classes follow each other in random
// blocks of two, or by a fair coin.
func (w *worker) runConnection(ctx context.Context, c *connection) error {
	id := w.session.number.Add(1)
	last := leak.Unknown
	for number := uint32(0); ; number++ {
		class := leak.Class(w.order.IntN(2))
		if w.session.o.order == leak.Blocks && number%2 == 1 {
			class = 1 - last
		}
		last = class
		if err := w.session.take(ctx); err != nil {
			return err
		}
		if isLast, err := w.ask(c, class, id, number); isLast || err != nil {
			return err
		}
	}
}

// runConnectionsOfRequests sends each request on a connection of its own.
func (w *worker) runConnectionsOfRequests(ctx context.Context) error {
	if err := w.warmUpApart(ctx); err != nil {
		return err
	}
	for {
		class := leak.Class(w.order.IntN(2))
		if err := w.session.take(ctx); err != nil {
			return err
		}
		c, err := w.connect(ctx, class, false)
		if err != nil {
			return err
		}
		_, err = w.ask(c, class, w.session.number.Add(1), 0)
		c.close()
		if err != nil {
			return err
		}
	}
}

// runConnectionsOfClasses has a connection for each class.
func (w *worker) runConnectionsOfClasses(ctx context.Context) (err error) {
	var connections [2]*connection
	defer func() {
		for _, c := range connections {
			if c != nil {
				c.close()
			}
		}
	}()
	if err := w.warmUpApart(ctx); err != nil {
		return err
	}
	for number := uint32(0); ; number++ {
		class := leak.Class(w.order.IntN(2))
		if err := w.session.take(ctx); err != nil {
			return err
		}
		if connections[class] == nil {
			if connections[class], err = w.connect(ctx, class, false); err != nil {
				return err
			}
		}
		isLast, err := w.ask(connections[class], class, uint64(class), number)
		if err != nil {
			return err
		}
		if isLast {
			connections[class].close()
			connections[class] = nil
		}
	}
}

// warmUpApart warms the service up on a connection without a mark.
func (w *worker) warmUpApart(ctx context.Context) error {
	if w.session.o.warmup == 0 {
		return nil
	}
	c, err := w.connect(ctx, 0, true)
	if err == nil {
		c.close()
	}
	return err
}

// connect opens a connection: with a warm-up and from any port, or from a port of the class.
func (w *worker) connect(ctx context.Context, class leak.Class, isWarmedUp bool) (*connection, error) {
	for {
		c, err := w.tryConnect(ctx, class, isWarmedUp)
		if err == nil {
			w.refused, w.isWarm = 0, true
			return c, nil
		}
		var mine *requestError
		if w.refused++; w.refused >= mostRefused || !w.isWarm || ctx.Err() != nil || errors.Is(err, errDone) ||
			errors.Is(err, errLong) || errors.Is(err, errUnasked) || errors.As(err, &mine) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(refusedWait):
		}
	}
}

func (w *worker) tryConnect(ctx context.Context, class leak.Class, isWarmedUp bool) (*connection, error) {
	d := &w.session.dialer
	if !isWarmedUp {
		return w.session.ports[class].open(func(port uint16) (*connection, error) { return d.open(ctx, port) })
	}
	c := w.session.opened.Swap(nil)
	if c == nil {
		var err error
		if c, err = d.open(ctx, 0); err != nil {
			return nil, err
		}
	}
	if err := w.warmUp(ctx, c); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// warmUp sends requests without marks. Their number is such that the exchanges of the connection,
// with those of a handshake, are even: then the exporter sees the blocks of two where they are.
func (w *worker) warmUp(ctx context.Context, c *connection) error {
	n := w.session.o.warmup
	if w.isWarm {
		n = min(n, shortWarmup)
	}
	if w.session.dialer.tls != nil {
		n = max(n, 1) // has the last message of the handshake
	}
	for i := uint64(0); i < n || c.tcp.exchanges%2 == 1; i++ {
		if w.session.limiter.Wait(ctx) != nil {
			return errDone
		}
		a, err := w.exchange(c, leak.Class(i%2))
		if err != nil {
			w.isWarm = true // another connection may do better
			return fmt.Errorf("warming up: %w", err)
		}
		if isLimit(a.status) {
			return fmt.Errorf("warming up: the service limits the rate (status %d): use a lower --rate, or exempt this host from the limit", a.status)
		}
		if a.isLast {
			return fmt.Errorf("warming up: the service closes a connection after %d requests: allow more on one connection, "+
				"use a smaller --warmup, or --label=port for a connection for each request", i+1)
		}
	}
	return nil
}

// ask sends a request with its mark, and notes what becomes of it. It sends none on a connection
// that cannot be used any more.
func (w *worker) ask(c *connection, class leak.Class, id uint64, number uint32) (isLast bool, err error) {
	if err := c.check(); err != nil {
		w.session.ledger.lost(c.last, err)
		w.session.left.Add(1)
		if w.ended++; w.ended >= mostRefused {
			return true, fmt.Errorf("%w: %s", err, remedies[err])
		}
		return true, nil
	}
	if w.session.o.label == labelDSCP {
		if err := c.tcp.mark(int(w.session.o.classes[class].dscp)); err != nil {
			return true, err
		}
	}
	request, read, err := w.prepare(c, class)
	if err != nil {
		return true, err
	}
	e := w.session.ledger.sending(class, id, number)
	a, err := c.ask(request, read)
	w.session.ledger.ended(e, a, err)
	c.last = class
	if err == nil {
		w.ended = 0
	}
	return a.isLast || err != nil, nil
}

// exchange sends a request that does not count.
func (w *worker) exchange(c *connection, class leak.Class) (answer, error) {
	if err := c.check(); err != nil {
		return answer{}, fmt.Errorf("%w: %s", err, remedies[err])
	}
	request, read, err := w.prepare(c, class)
	if err != nil {
		return answer{}, err
	}
	return c.ask(request, read)
}

// requestError is an error of a request that the probe cannot make.
type requestError struct{ error }

func (w *worker) prepare(c *connection, class leak.Class) ([]byte, func(*bufio.Reader) (int, bool, error), error) {
	request, ofHTTP, err := w.session.messages[class].bytes(w.texts)
	if err != nil {
		return nil, nil, &requestError{err}
	}
	if ofHTTP != nil {
		return request, func(r *bufio.Reader) (int, bool, error) { return readHTTP(r, ofHTTP) }, nil
	}
	o := w.session.o
	return request, func(r *bufio.Reader) (int, bool, error) {
		isLast, err := readRaw(c.Conn, r, []byte(o.rawEnd), o.rawQuiet, o.timeout)
		return 0, isLast, err
	}, nil
}

// ports hands out the ports of a range in turn.
type ports struct {
	portRange
	mu   sync.Mutex
	next uint16 // offset in the range
}

// open opens a connection from the next port that is free.
func (p *ports) open(open func(uint16) (*connection, error)) (*connection, error) {
	n := int(p.last-p.first) + 1
	for range n {
		p.mu.Lock()
		port := p.first + p.next
		p.next = uint16((int(p.next) + 1) % n)
		p.mu.Unlock()
		c, err := open(port)
		if errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EADDRNOTAVAIL) {
			continue
		}
		return c, err
	}
	return nil, fmt.Errorf("no source port of %v is free: use a larger range, or a lower --rate", p.portRange)
}

// defaultPorts are the ports of a URL without one.
var defaultPorts = map[string]string{"http": "80", "https": "443"}
