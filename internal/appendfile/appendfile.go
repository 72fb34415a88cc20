// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package appendfile appends lines to files that are rotated while they are written.
//
// Lines are appended with a single write. So no line waits in a buffer, and lines stay whole when
// several processes append to one file.
package appendfile

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Stdout is the path that stands for standard output.
const Stdout = "-"

const (
	// reopenPatience is how long Reopen waits for a write to a pipe that nobody reads.
	reopenPatience = time.Second
	// retryTimeout is how long a write waits after one that has waited for the timeout.
	retryTimeout = time.Millisecond
)

// Options say how lines are written.
type Options struct {
	// Header is the first line of files, with its end. Empty: files have none.
	Header string
	// Timeout is how long a write waits for the reader of a pipe before its lines are lost. 0:
	// until the file is closed or reopened. Standard output is waited for in any case.
	Timeout time.Duration
	// Counts count what becomes of lines. Files may share them.
	Counts *Counts
}

// Counts count lines of files. Its methods are safe for concurrent use.
type Counts struct {
	lines, bytes, lost atomic.Uint64
}

// Lines returns the number of lines written, without headers.
func (c *Counts) Lines() uint64 { return c.lines.Load() }

// Bytes returns the number of bytes written, with headers.
func (c *Counts) Bytes() uint64 { return c.bytes.Load() }

// Lost returns the number of lines that are not in a file, or only in part.
func (c *Counts) Lost() uint64 { return c.lost.Load() }

// Lose counts lines as lost that no file is open for.
func (c *Counts) Lose(lines []byte) { c.lost.Add(count(lines)) }

func count(lines []byte) uint64 { return uint64(bytes.Count(lines, []byte("\n"))) }

// File is an open file. Its methods are safe for concurrent use.
type File struct {
	path    string
	options Options
	file    atomic.Pointer[os.File] // replaced under mu

	mu        sync.Mutex // held while lines are written; guards what follows
	isEmpty   bool       // it needs the header
	isBlocked bool       // the last write has waited for the timeout
	rest      []byte     // of a line that was cut short
	isHeader  bool       // the rest is one of the header
}

// Open opens a file for appending, and creates it with mode 0600. The path [Stdout] is standard
// output. It does not wait for the reader of a pipe: a pipe without a reader is an error.
func Open(path string, options Options) (*File, error) {
	f := &File{path: path, options: options}
	file, err := open(path)
	if err != nil {
		return nil, err
	}
	f.take(file)
	return f, nil
}

func open(path string) (*os.File, error) {
	if path == Stdout {
		return os.Stdout, nil
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NONBLOCK, 0o600)
}

// take continues in another file.
func (f *File) take(file *os.File) (before *os.File) {
	info, err := file.Stat()
	f.isEmpty = err != nil || !info.Mode().IsRegular() || info.Size() == 0
	f.isBlocked = false
	return f.file.Swap(file)
}

// Reopen opens the path again, which a rotation has given to another file. After an error, lines
// continue to go to the old file. Standard output stays open.
func (f *File) Reopen() error {
	file, err := open(f.path)
	if err != nil {
		return err
	}
	if file == os.Stdout {
		return nil
	}
	before := f.file.Load()
	// A write to a pipe that nobody reads must not hold up the caller.
	stuck := time.AfterFunc(reopenPatience, func() { _ = before.SetWriteDeadline(time.Now()) })
	f.mu.Lock()
	defer f.mu.Unlock()
	stuck.Stop()
	f.abandonRest()
	return closeFile(f.take(file))
}

// Close closes the file. It does not wait for a blocked write. Later lines are lost.
func (f *File) Close() error {
	if f.mu.TryLock() {
		defer f.mu.Unlock()
		f.abandonRest()
	}
	return closeFile(f.file.Load())
}

// closeFile closes a file, except standard output, which belongs to the process.
func closeFile(file *os.File) error {
	if file == os.Stdout {
		return nil
	}
	return file.Close()
}

// abandonRest writes the rest of a line that was cut short, if there is space again: nothing else
// can complete the line.
func (f *File) abandonRest() {
	if len(f.rest) == 0 {
		return
	}
	_, _ = f.write(nil)
	if len(f.rest) > 0 && !f.isHeader {
		f.options.Counts.lost.Add(1)
	}
	f.rest = nil
}

// Write appends whole lines with a single call. It returns the number of their bytes that are in
// the file, and an error if some are not. A line that was cut short is completed by the next write.
// Without its end it could look like another line, such as a number without its last digits.
func (f *File) Write(lines []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.write(lines)
}

func (f *File) write(lines []byte) (int, error) {
	first := f.rest
	if len(first) == 0 && f.isEmpty {
		first, f.isHeader = []byte(f.options.Header), true
	}
	n, err := f.writeOnce(slices.Concat(first, lines))
	counts := f.options.Counts
	counts.bytes.Add(uint64(n))
	if n < len(first) {
		if n > 0 {
			f.isEmpty, f.rest = false, bytes.Clone(first[n:])
		}
		counts.lost.Add(count(lines))
		return 0, err
	}
	if len(f.rest) > 0 && !f.isHeader {
		counts.lines.Add(1)
	}
	f.isEmpty, f.rest, f.isHeader = false, nil, false
	n -= len(first)
	whole, total := count(lines[:n]), count(lines)
	counts.lines.Add(whole)
	if n > 0 && lines[n-1] != '\n' {
		end := n + bytes.IndexByte(lines[n:], '\n') + 1
		f.rest = bytes.Clone(lines[n:end])
		whole++
	}
	counts.lost.Add(total - whole)
	return n, err
}

// writeOnce waits for the reader of a pipe, but not for every line if there is none.
func (f *File) writeOnce(text []byte) (int, error) {
	file := f.file.Load()
	if timeout := f.options.Timeout; timeout > 0 {
		if f.isBlocked {
			timeout = retryTimeout
		}
		_ = file.SetWriteDeadline(time.Now().Add(timeout)) // of pipes only
	}
	n, err := file.Write(text)
	f.isBlocked = errors.Is(err, os.ErrDeadlineExceeded)
	return n, err
}
