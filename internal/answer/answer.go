// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package answer serves answers that are expensive to make and large, such as the metrics of many
// devices, in bounded time and memory:
//
//   - One answer is made at a time, in turn for the hosts that ask. All requests that wait when an
//     answer is begun, and ask for the same, share the answer.
//   - An answer is stored compressed, and is decompressed while it is sent to a client that does
//     not accept compression.
//   - Answers may be kept for a short time, for requests that come later.
//   - The bytes of all answers that are being sent are bounded. Above the bound the answer of the
//     host with most bytes that has been under way the longest is cut off.
package answer

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Options are the limits of a [Handler].
type Options struct {
	// MaxRequests is the number of requests that wait for an answer or share the one that is being
	// made, above which the latest request of the host with most requests gets the status 503, but
	// never its first; 0 for no limit.
	MaxRequests int

	// MaxBytes is the maximum number of bytes of the answers that are being sent, except that one
	// answer may be larger.
	MaxBytes int

	// Timeout is the time after which an answer is cut off, and StallTimeout the time without
	// progress.
	Timeout, StallTimeout time.Duration

	// Key returns a text that is the same for requests with the same answer.
	Key func(*http.Request) string

	// Host returns the host of a request.
	Host func(*http.Request) netip.Prefix

	// MaxAge is the time for which an answer with the status 200 is kept for later requests, and
	// MaxKept the maximum number of bytes of all answers that are kept; 0 for none.
	MaxAge  time.Duration
	MaxKept int

	// Made is called with the length of each answer before its compression; nil for none.
	Made func(bytes int)
}

// Handler stores the answers of another handler and sends them.
type Handler struct {
	options   Options
	next      http.Handler
	turns     *turns
	transfers *transfers
	kept      *kept

	compressor *gzip.Writer // used by the request whose turn it is
	buffer     bytes.Buffer // likewise
}

// New returns a handler of the answers of next.
func New(next http.Handler, options Options) *Handler {
	return &Handler{
		options: options, next: next,
		turns: newTurns(options.MaxRequests), transfers: newTransfers(options.MaxBytes),
		kept: newKept(options.MaxAge, options.MaxKept),
	}
}

// stored is an answer. It is shared by requests, and does not change.
type stored struct {
	status int
	header http.Header
	body   []byte // compressed by gzip
	length int    // of the body before compression
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host, key := h.options.Host(r), h.options.Key(r)
	a, err := h.kept.get(key), error(nil)
	if a == nil {
		a, err = h.turns.get(r.Context(), host, key, func() *stored { return h.make(key, r) })
	}
	switch {
	case errors.Is(err, errTooMany):
		http.Error(w, fmt.Sprintf("Limit of concurrent requests reached (%d), try again later.", h.options.MaxRequests),
			http.StatusServiceUnavailable)
	case err != nil: // the client has closed the connection
	case a == nil: // the handler panicked for another request
		http.Error(w, "the answer could not be made", http.StatusInternalServerError)
	default:
		h.send(w, r, host, a)
	}
}

// make makes an answer, unless one has been kept since the request began to wait.
func (h *Handler) make(key string, r *http.Request) *stored {
	if a := h.kept.get(key); a != nil {
		return a
	}
	a := h.store(r)
	h.kept.add(key, a)
	return a
}

// store lets the next handler answer a request, and stores the answer.
func (h *Handler) store(r *http.Request) *stored {
	h.buffer.Reset()
	if h.compressor == nil {
		h.compressor, _ = gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is valid
	}
	h.compressor.Reset(&h.buffer)
	recorder := &recorder{stored: stored{status: http.StatusOK, header: http.Header{}}, body: h.compressor}
	h.next.ServeHTTP(recorder, r)
	_ = h.compressor.Close() // writes to memory
	recorder.header.Add("Vary", "Accept-Encoding")
	recorder.stored.body = bytes.Clone(h.buffer.Bytes())
	if h.options.Made != nil {
		h.options.Made(recorder.length)
	}
	return &recorder.stored
}

// recorder is an http.ResponseWriter that stores an answer.
type recorder struct {
	stored
	body *gzip.Writer
}

// Header implements http.ResponseWriter.
func (r *recorder) Header() http.Header { return r.header }

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) { r.status = status }

// Write implements http.ResponseWriter.
func (r *recorder) Write(p []byte) (int, error) {
	r.length += len(p)
	return r.body.Write(p)
}

// decompressing is the memory that it takes to decompress an answer, in bytes.
const decompressing = 64 << 10

// send sends an answer as the client accepts it.
func (h *Handler) send(w http.ResponseWriter, r *http.Request, host netip.Prefix, a *stored) {
	maps.Copy(w.Header(), a.header)
	size, length := len(a.body), len(a.body)
	isCompressed := acceptsGzip(r.Header)
	if isCompressed {
		w.Header().Set("Content-Encoding", "gzip")
	} else {
		size, length = size+decompressing, a.length
	}
	w.Header().Set("Content-Length", strconv.Itoa(length))
	w.WriteHeader(a.status)
	if r.Method == http.MethodHead {
		return
	}
	transfer := h.transfers.begin(host, size, http.NewResponseController(w), time.Now().Add(h.options.Timeout))
	defer h.transfers.end(transfer)
	out := progressWriter{w, transfer, h.options.StallTimeout}
	if isCompressed {
		_, _ = out.Write(a.body) // the client may have closed the connection
		return
	}
	plain, err := gzip.NewReader(bytes.NewReader(a.body))
	if err == nil {
		_, _ = io.Copy(out, plain) //nolint:gosec // what it decompresses is its own
	}
}

// chunk is the number of bytes that must be sent within the stall timeout. It is small, so that a
// slow client makes progress.
const chunk = 16 << 10

// progressWriter writes in chunks, and gives each chunk a deadline.
type progressWriter struct {
	to       io.Writer
	transfer *transfer
	timeout  time.Duration
}

// Write implements io.Writer.
func (w progressWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		if err := w.transfer.extend(w.timeout); err != nil {
			return n, err
		}
		var sent int
		sent, err = w.to.Write(p[:min(len(p), chunk)])
		n += sent
		p = p[sent:]
	}
	return n, err
}

// acceptsGzip reports whether a client accepts gzip.
func acceptsGzip(header http.Header) bool {
	for _, value := range header.Values("Accept-Encoding") {
		for coding := range strings.SplitSeq(value, ",") {
			name, parameter, _ := strings.Cut(coding, ";")
			if !strings.EqualFold(strings.TrimSpace(name), "gzip") {
				continue
			}
			weight, isWeighted := strings.CutPrefix(strings.ToLower(strings.ReplaceAll(parameter, " ", "")), "q=")
			q, err := strconv.ParseFloat(weight, 64)
			return !isWeighted || err == nil && q > 0
		}
	}
	return false
}
