// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package logging bounds what a log can cost: a reader that does not read blocks nothing, and
// clients cannot fill a disk.
package logging

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
)

// maxQueued is the maximum number of bytes of lines that wait for a slow reader.
const maxQueued = 256 << 10

// ErrFull is the error of a line that is lost because too many lines wait.
var ErrFull = errors.New("the reader of the log does not read")

// Writer passes lines on to another writer without ever waiting for it. Lines that find the
// queue full are lost and counted.
type Writer struct {
	to io.Writer

	mu        sync.Mutex
	lines     [][]byte
	bytes     int           // length of lines
	lost      uint64        // lines that were lost since a line said so
	isWriting bool          // a goroutine writes lines
	idle      chan struct{} // closed when no line waits; nil if nobody waits for that
}

// NewWriter returns a writer that passes lines on to another.
func NewWriter(to io.Writer) *Writer { return &Writer{to: to} }

// Write queues a line, with the characters escaped that a terminal may act on: slog lets some of
// them through. It returns [ErrFull] for a line that is lost.
func (w *Writer) Write(line []byte) (int, error) {
	text := []byte(printable.Line(string(bytes.TrimSuffix(line, []byte("\n")))) + "\n")
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.bytes+len(text) > maxQueued {
		w.lost++
		return 0, ErrFull
	}
	w.lines = append(w.lines, text)
	w.bytes += len(text)
	if !w.isWriting {
		w.isWriting = true
		go w.run()
	}
	return len(line), nil
}

// run writes lines until none is left.
func (w *Writer) run() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.lines) > 0 {
		line := w.lines[0]
		w.mu.Unlock()
		_, _ = w.to.Write(line) // there is no other place to say that the log fails
		w.mu.Lock()
		w.lines, w.bytes = w.lines[1:], w.bytes-len(line)
	}
	w.isWriting = false
	if w.idle != nil {
		close(w.idle)
		w.idle = nil
	}
}

// Flush waits until all lines are written, or until the context ends.
func (w *Writer) Flush(ctx context.Context) {
	w.mu.Lock()
	if !w.isWriting {
		w.mu.Unlock()
		return
	}
	if w.idle == nil {
		w.idle = make(chan struct{})
	}
	idle := w.idle
	w.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// CountLosses returns a logger whose next line after a loss has the number of lost lines. The
// logger must write to w.
func (w *Writer) CountLosses(logger *slog.Logger) *slog.Logger {
	return slog.New(lossHandler{logger.Handler(), w})
}

// lossHandler adds the number of lost lines to a record.
type lossHandler struct {
	slog.Handler
	writer *Writer
}

// Handle implements slog.Handler.
func (h lossHandler) Handle(ctx context.Context, r slog.Record) error {
	h.writer.mu.Lock()
	lost := h.writer.lost
	h.writer.mu.Unlock()
	if lost == 0 {
		return h.Handler.Handle(ctx, r)
	}
	r = r.Clone()
	r.AddAttrs(slog.Uint64("lost_lines", lost))
	err := h.Handler.Handle(ctx, r)
	if err == nil {
		h.writer.mu.Lock()
		h.writer.lost -= min(lost, h.writer.lost)
		h.writer.mu.Unlock()
	}
	return err
}

// WithAttrs implements slog.Handler.
func (h lossHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return lossHandler{h.Handler.WithAttrs(attrs), h.writer}
}

// WithGroup implements slog.Handler.
func (h lossHandler) WithGroup(name string) slog.Handler {
	return lossHandler{h.Handler.WithGroup(name), h.writer}
}

// WriteWithin writes a line, and does not wait for it longer than a time.
func WriteWithin(to io.Writer, line string, limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	w := NewWriter(to)
	_, _ = io.WriteString(w, line)
	w.Flush(ctx)
}
