// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package trail writes the audit trail: one logfmt record for each flagged packet, and for windows of deltas that look like a
// covert timing channel.
//
// A record is appended with one write, so that lines are whole even when several processes append to a file, and nothing
// waits in a buffer. What cannot be written is counted: a trail must know what it lost.
package trail

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/go-kit/log"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

// Stdout is the path that stands for standard output.
const Stdout = "-"

// Trail is an open audit trail. Its methods are safe for concurrent use.
type Trail struct {
	path        string
	logger      log.Logger
	records     atomic.Uint64
	writeErrors atomic.Uint64

	file atomic.Pointer[os.File] // replaced under mu

	mu   sync.Mutex // held while a record is written
	torn bool       // the file ends within a line; guarded by mu
}

// Open opens the trail at path for appending, and creates it for its owner's eyes only. [Stdout] is standard output.
func Open(path string) (*Trail, error) {
	file, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the audit trail: %w", err)
	}
	t := &Trail{path: path}
	t.file.Store(file)
	t.logger = log.NewLogfmtLogger(writer{t})
	return t, nil
}

// open returns an error for a pipe without a reader, instead of waiting for one.
func open(path string) (*os.File, error) {
	if path == Stdout {
		return os.Stdout, nil
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NONBLOCK, 0o600)
}

// Write appends the record of one flagged packet. An error means that the record is lost, and is counted; the trail
// remains open.
func (t *Trail) Write(event *bpf.Event) error {
	return t.write(record(event))
}

func (t *Trail) write(keyvals []any) error {
	if err := t.logger.Log(keyvals...); err != nil {
		t.writeErrors.Add(1)
		return fmt.Errorf("cannot write to the audit trail: %w", err)
	}
	t.records.Add(1)
	return nil
}

// Records returns the number of records written.
func (t *Trail) Records() uint64 { return t.records.Load() }

// WriteErrors returns the number of records lost.
func (t *Trail) WriteErrors() uint64 { return t.writeErrors.Load() }

// Reopen opens the file at the trail's path again, for after it was moved away. On an error the trail goes on in the file
// that it has. Standard output stays as it is.
func (t *Trail) Reopen() error {
	file, err := open(t.path)
	if err != nil {
		return fmt.Errorf("cannot reopen the audit trail: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.torn = false
	return closeFile(t.file.Swap(file))
}

// Close closes the file, and does not wait for a write that hangs. What is written after it is lost.
func (t *Trail) Close() error {
	return closeFile(t.file.Load())
}

// closeFile leaves standard output, which is not ours, open.
func closeFile(file *os.File) error {
	if file == os.Stdout {
		return nil
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("cannot close the audit trail: %w", err)
	}
	return nil
}

// writer is a trail to the logger. After a write that a full device cut short, the next begins with the end of that line.
type writer struct {
	trail *Trail
}

func (w writer) Write(line []byte) (int, error) {
	t := w.trail
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.torn {
		line = append([]byte{'\n'}, line...)
	}
	n, err := t.file.Load().Write(line)
	if n > 0 {
		t.torn = line[n-1] != '\n'
	}
	return n, err
}

// timeFormat is RFC 3339 with all nine digits, so that records line up and sort.
const timeFormat = "2006-01-02T15:04:05.000000000Z07:00"

// record returns the keys and values of one record: what was measured, the baseline that it was judged by, and whose
// packet it was.
func record(event *bpf.Event) []any {
	direction := "early"
	if event.Late {
		direction = "late"
	}
	keyvals := []any{
		"time", event.Time.UTC().Format(timeFormat),
		"device", event.Device,
		"direction", direction,
		"tscore", decimal(event.Score()),
		"delta_ns", event.DeltaNs,
		"mean_ns", decimal(event.MeanNs()),
	}
	if event.Domain == bpf.DomainLog2 {
		keyvals = append(keyvals, "stddev_octaves", strconv.FormatFloat(event.StandardDeviation(), 'g', 7, 64))
	} else {
		keyvals = append(keyvals, "stddev_ns", decimal(event.StandardDeviation()))
	}
	keyvals = append(keyvals, "n", event.Samples)
	keyvals = append(keyvals, endpoints(event.Source, event.Destination, event.Protocol, event.ProtocolNumber, event.VLAN)...)
	return append(keyvals, "length", event.LenBytes)
}

// endpoints returns the keys and values that say whose packets a record is about. A transport has its number where it has no
// name here.
func endpoints(source, destination netip.AddrPort, protocol bpf.Protocol, number uint8, vlan uint16) []any {
	name := protocol.String()
	if protocol == bpf.ProtocolOther {
		name = strconv.Itoa(int(number))
	}
	keyvals := []any{
		"source", source.Addr().String(),
		"source_port", source.Port(),
		"destination", destination.Addr().String(),
		"destination_port", destination.Port(),
		"protocol", name,
	}
	if vlan != 0 {
		keyvals = append(keyvals, "vlan", vlan)
	}
	return keyvals
}

// decimal formats with three digits after the point.
func decimal(v float64) string {
	return strconv.FormatFloat(v, 'f', 3, 64)
}
