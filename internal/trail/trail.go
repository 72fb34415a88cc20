// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package trail writes the audit trail: one logfmt record for each event of a flagged packet,
// and for windows of inter-arrival times that look like a covert timing channel.
//
// Each record is appended with a single write. So no record waits in a buffer, and lines stay
// whole when several processes append to one file. The trail counts the records that could not
// be written.
package trail

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/go-kit/log"
	"golang.org/x/sys/unix"

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

// Open opens the trail at path for appending, and creates it with mode 0600. The path [Stdout]
// is standard output.
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

// Check returns the error with which Open would fail, and creates no file. A pipe is not opened,
// because its reader would see it closed: whether it has a reader is not checked.
func Check(path string) error {
	if path == Stdout {
		return nil
	}
	if err := CheckFile(path); err != nil {
		return fmt.Errorf("cannot open the audit trail: %w", err)
	}
	return nil
}

// CheckFile returns the error with which a file cannot be opened for appending, or created. It
// creates no file and opens no pipe.
func CheckFile(path string) (err error) {
	switch info, failure := os.Stat(path); {
	case errors.Is(failure, fs.ErrNotExist):
		err = checkCreatable(path)
	case failure != nil:
		err = failure
	case info.Mode().Type() == fs.ModeNamedPipe:
		err = access(path, unix.W_OK)
	default:
		var file *os.File
		if file, err = open(path); err == nil {
			err = file.Close()
		}
	}
	return err
}

// checkCreatable returns an error if a file cannot be created at path, which may be a link.
func checkCreatable(path string) error {
	for range 40 { // the kernel follows as many links
		target, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		path = target
	}
	if path == "" || path[len(path)-1] == '/' {
		return &fs.PathError{Op: "open", Path: path, Err: unix.EISDIR}
	}
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: errors.Unwrap(err)}
	}
	return access(filepath.Dir(path), unix.W_OK|unix.X_OK)
}

func access(path string, mode uint32) error {
	if err := unix.Faccessat(unix.AT_FDCWD, path, mode, unix.AT_EACCESS); err != nil {
		return &fs.PathError{Op: "access", Path: path, Err: err}
	}
	return nil
}

// open does not wait for the reader of a pipe: a pipe without a reader is an error.
func open(path string) (*os.File, error) {
	if path == Stdout {
		return os.Stdout, nil
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NONBLOCK, 0o600)
}

// Write appends the record of one flagged packet. An error means that the record is lost; the
// trail counts it and remains open.
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

// Reopen opens the path of the trail again, which a rotation has given to another file. After
// an error the trail continues in the old file. Standard output stays open.
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

// Close closes the file. It does not wait for a blocked write. Later records are lost.
func (t *Trail) Close() error {
	return closeFile(t.file.Load())
}

// closeFile closes a file, except standard output, which belongs to the process.
func closeFile(file *os.File) error {
	if file == os.Stdout {
		return nil
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("cannot close the audit trail: %w", err)
	}
	return nil
}

// writer is the trail as the logger writes to it. If a full device has cut a record short, the
// next write first ends that line.
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

// timeFormat is RFC 3339 with all nine digits, so that records align and sort.
const timeFormat = "2006-01-02T15:04:05.000000000Z07:00"

// record returns the keys and values of one record: the measurement, the baseline that the
// packet was scored against, and the endpoints of the flow.
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

// endpoints returns the keys and values of the endpoints of a flow. A transport protocol
// without a name in this program is given by its number.
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

// decimal formats a number with three decimal places.
func decimal(v float64) string {
	return strconv.FormatFloat(v, 'f', 3, 64)
}
