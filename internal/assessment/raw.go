// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package assessment

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

// RawFormat is the format of raw files.
type RawFormat uint8

// The formats. RawCSV has the columns V1, the class as X or Y, and V2, nanoseconds: RTLF and SILENT
// read it. RawTLSFuzzer has the columns class, 0 or 1, and raw times, seconds: the program
// extract.py of tlsfuzzer reads it with --raw-times and -n "raw times". Its log file is the column
// of classes below a line with their names.
const (
	RawCSV RawFormat = iota
	RawTLSFuzzer
)

var rawFormats = [...]struct{ name, header string }{
	{"csv", "V1,V2\n"},
	{"tlsfuzzer", "class,raw times\n"},
}

// String returns the value of the flag.
func (f RawFormat) String() string { return rawFormats[f].name }

// ParseRawFormat returns the format of that name.
func ParseRawFormat(name string) (RawFormat, error) {
	for format, known := range rawFormats {
		if name == known.name {
			return RawFormat(format), nil
		}
	}
	return 0, fmt.Errorf("raw format %.50q is not known: use csv or tlsfuzzer", name)
}

func (f RawFormat) line(lines []byte, class leak.Class, ns uint64) []byte {
	if f == RawTLSFuzzer {
		const second = 1_000_000_000
		lines = strconv.AppendUint(lines, uint64(class), 10)
		lines = append(lines, ',')
		lines = strconv.AppendUint(lines, ns/second, 10)
		fraction := strconv.AppendUint(nil, second+ns%second, 10) // 1 and nine digits
		fraction[0] = '.'
		return append(append(lines, fraction...), '\n')
	}
	lines = append(lines, "XY"[class], ',')
	return append(strconv.AppendUint(lines, ns, 10), '\n')
}

const (
	// RawStdout is the path that stands for standard output.
	RawStdout = "-"
	// RawName is the part of a path that stands for the name of the assessment.
	RawName = "{assessment}"
)

// Raw has the raw files of all assessments. Its methods are safe for concurrent use. Reopen and
// Close are those of the audit trail, so that a rotation can treat both the same.
type Raw struct {
	path   string
	format RawFormat

	mu    sync.RWMutex // guards files
	files map[string]*rawFile

	responses, lost atomic.Uint64
}

// NewRaw returns a Raw without files. With several assessments the path needs the text [RawName],
// because programs that read such files read a single assessment.
func NewRaw(path string, format RawFormat) *Raw {
	return &Raw{path: path, format: format, files: map[string]*rawFile{}}
}

// CheckRawPath returns an error if several assessments would share a file.
func CheckRawPath(path string, assessments int) error {
	if assessments > 1 && !strings.Contains(path, RawName) {
		return fmt.Errorf("the raw file %s is one file, and there are %d assessments: put %s into its path, such as raw-%s.csv", path, assessments, RawName, RawName)
	}
	return nil
}

// Reload opens the files of assessments for appending, creates those that do not exist with mode
// 0600, and closes those of others. After an error nothing is changed.
func (r *Raw) Reload(assessments []string) error {
	if err := CheckRawPath(r.path, len(assessments)); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	files := map[string]*rawFile{}
	for _, name := range assessments {
		f := r.files[name]
		if f == nil {
			f = &rawFile{path: strings.ReplaceAll(r.path, RawName, name), header: rawFormats[r.format].header}
			if err := f.open(); err != nil {
				errs := []error{err}
				for name, opened := range files {
					if r.files[name] == nil {
						errs = append(errs, opened.close())
					}
				}
				return errors.Join(errs...)
			}
		}
		files[name] = f
	}
	before := r.files
	r.files = files
	var errs []error
	for name, f := range before {
		if files[name] == nil {
			errs = append(errs, f.close())
		}
	}
	return errors.Join(errs...)
}

// Append writes lines to the file of an assessment.
func (r *Raw) Append(assessment string, lines []byte) error {
	r.mu.RLock()
	f := r.files[assessment]
	r.mu.RUnlock()
	total := uint64(bytes.Count(lines, []byte("\n")))
	if f == nil { // a reload has closed it
		r.lost.Add(total)
		return nil
	}
	written, err := f.write(lines)
	r.responses.Add(written)
	r.lost.Add(total - written)
	if err != nil {
		return fmt.Errorf("cannot write to the raw file of assessment %s: %w", assessment, err)
	}
	return nil
}

// Line appends the line of a response.
func (r *Raw) Line(lines []byte, class leak.Class, ns uint64) []byte {
	return r.format.line(lines, class, ns)
}

// Responses returns the number of responses written.
func (r *Raw) Responses() uint64 { return r.responses.Load() }

// Lost returns the number of responses that could not be written.
func (r *Raw) Lost() uint64 { return r.lost.Load() }

// Reopen opens the paths of all files again, which a rotation has given to other files. A file that
// cannot be opened continues in the old one. Standard output stays open.
func (r *Raw) Reopen() error { return r.each((*rawFile).open) }

// Close closes all files. It does not wait for a blocked write. Later lines are lost.
func (r *Raw) Close() error { return r.each((*rawFile).close) }

func (r *Raw) each(f func(*rawFile) error) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var errs []error
	for _, file := range r.files {
		errs = append(errs, f(file))
	}
	return errors.Join(errs...)
}

// rawFile is the file of an assessment.
type rawFile struct {
	path, header string
	file         atomic.Pointer[os.File] // replaced under mu

	mu      sync.Mutex // held while lines are written
	isEmpty bool       // it needs the header; guarded by mu
	rest    []byte     // of a line that a full device has cut short; guarded by mu
}

// open opens the file, or opens it again. It does not wait for the reader of a pipe.
func (f *rawFile) open() error {
	file, err := os.Stdout, error(nil)
	if f.path != RawStdout {
		file, err = os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NONBLOCK, 0o600)
	}
	if err != nil {
		return fmt.Errorf("cannot open the raw file: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.file.Swap(file)
	if before == file { // standard output
		return nil
	}
	if len(f.rest) > 0 {
		_, _ = before.Write(f.rest) // there may be space again; nothing else can complete the line
	}
	info, err := file.Stat()
	f.isEmpty, f.rest = err != nil || !info.Mode().IsRegular() || info.Size() == 0, nil
	return closeRaw(before)
}

func (f *rawFile) close() error { return closeRaw(f.file.Load()) }

// closeRaw closes a file, except standard output, which belongs to the process.
func closeRaw(file *os.File) error {
	if file == nil || file == os.Stdout {
		return nil
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("cannot close the raw file: %w", err)
	}
	return nil
}

// write writes lines with a single call, and returns the number of lines that are in the file. A
// number without its last digits looks like another number. So the rest of a line that was cut
// short is written before the next lines, and the line counts as written.
func (f *rawFile) write(lines []byte) (written uint64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	first := f.rest
	if f.isEmpty && len(first) == 0 {
		first = []byte(f.header)
	}
	text, before := slices.Concat(first, lines), len(first)
	n, err := f.file.Load().Write(text)
	if n > 0 {
		f.isEmpty, f.rest = false, nil
	}
	if n > 0 && text[n-1] != '\n' {
		end := n + bytes.IndexByte(text[n:], '\n') + 1
		f.rest, n = bytes.Clone(text[n:end]), end
	}
	return uint64(bytes.Count(text[min(before, n):n], []byte("\n"))), err
}
