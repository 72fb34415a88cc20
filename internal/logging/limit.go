// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package logging

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	limitBurst    = 10               // lines at once
	limitInterval = 10 * time.Second // between two lines after that
)

// Limit returns a logger for what clients can cause. It limits the rate of warnings and errors,
// and adds the number of suppressed lines to the next line. Its descendants share its limit.
func Limit(logger *slog.Logger) *slog.Logger {
	return slog.New(limitedHandler{logger.Handler(), &rateLimit{now: time.Now}})
}

// rateLimit is a token bucket.
type rateLimit struct {
	now func() time.Time

	mu         sync.Mutex
	fullAt     time.Time // when all of the burst is available again
	suppressed uint64    // lines since the last one
}

// take reports whether a line may be logged, and how many were suppressed before it.
func (l *rateLimit) take() (suppressed uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if l.fullAt.Before(now) {
		l.fullAt = now
	}
	if l.fullAt.Sub(now) > (limitBurst-1)*limitInterval {
		l.suppressed++
		return 0, false
	}
	l.fullAt = l.fullAt.Add(limitInterval)
	suppressed, l.suppressed = l.suppressed, 0
	return suppressed, true
}

// limitedHandler drops records above a rate.
type limitedHandler struct {
	slog.Handler
	limit *rateLimit
}

// Handle implements slog.Handler.
func (h limitedHandler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelWarn {
		return h.Handler.Handle(ctx, r)
	}
	suppressed, ok := h.limit.take()
	if !ok {
		return nil
	}
	if suppressed > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Uint64("suppressed_lines", suppressed))
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h limitedHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return limitedHandler{h.Handler.WithAttrs(attrs), h.limit}
}

// WithGroup implements slog.Handler.
func (h limitedHandler) WithGroup(name string) slog.Handler {
	return limitedHandler{h.Handler.WithGroup(name), h.limit}
}
