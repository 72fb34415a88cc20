// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"context"
	"time"
)

// The exporter ends within shutdownTimeout after a signal. Each wait for others ends before,
// counted from the signal as well: a client, a trail or a log that is stuck leaves time for
// what comes after. Detaching 300 hooks takes a second.
const (
	shutdownTimeout = 5 * time.Second

	servingUntil   = 3 * time.Second         // requests, and events on their way to the trail
	flushingUntil  = 4400 * time.Millisecond // the log, after hooks and files are closed
	reportingUntil = 4600 * time.Millisecond // the error of the exporter

	flushTimeout  = time.Second           // for the log, or the error, without a signal
	leastFlushing = 50 * time.Millisecond // if closing has taken all the time
)

// ending knows when a context has ended.
type ending struct {
	ctx   context.Context
	ended chan struct{} // closed after at is set
	at    time.Time
}

func newEnding(ctx context.Context) *ending {
	e := &ending{ctx: ctx, ended: make(chan struct{})}
	context.AfterFunc(ctx, func() {
		e.at = time.Now()
		close(e.ended)
	})
	return e
}

// limit returns how long to wait if the wait may last until a time after the end of the context,
// and otherwise if the context has not ended.
func (e *ending) limit(until, otherwise time.Duration) time.Duration {
	if e.ctx.Err() == nil {
		return otherwise
	}
	<-e.ended
	return max(time.Until(e.at.Add(until)), leastFlushing)
}
