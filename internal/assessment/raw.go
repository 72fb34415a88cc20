// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package assessment

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/appendfile"
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

// RawName is the part of a path that stands for the name of the assessment.
const RawName = "{assessment}"

// rawTimeout is how long a raw file that is a pipe waits for its reader. Requests wait for as long.
const rawTimeout = 100 * time.Millisecond

// Raw has the raw files of all assessments. Its methods are safe for concurrent use.
type Raw struct {
	path   string
	format RawFormat
	counts appendfile.Counts

	mu    sync.RWMutex // guards files
	files map[string]*appendfile.File
}

// NewRaw returns a Raw without files. With several assessments the path needs the text [RawName],
// because programs that read such files read a single assessment.
func NewRaw(path string, format RawFormat) *Raw {
	return &Raw{path: path, format: format, files: map[string]*appendfile.File{}}
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
	files := map[string]*appendfile.File{}
	for _, name := range assessments {
		f := r.files[name]
		if f == nil {
			var err error
			if f, err = r.open(name); err != nil {
				errs := []error{err}
				for name, opened := range files {
					if r.files[name] == nil {
						errs = append(errs, opened.Close())
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
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

func (r *Raw) open(assessment string) (*appendfile.File, error) {
	path := strings.ReplaceAll(r.path, RawName, assessment)
	file, err := appendfile.Open(path, appendfile.Options{Header: rawFormats[r.format].header, Timeout: rawTimeout, Counts: &r.counts})
	if err != nil {
		return nil, fmt.Errorf("cannot open the raw file: %w", err)
	}
	return file, nil
}

// Append writes lines to the file of an assessment. Those of an assessment that a reload has
// removed are lost.
func (r *Raw) Append(assessment string, lines []byte) error {
	r.mu.RLock()
	f := r.files[assessment]
	r.mu.RUnlock()
	if f == nil {
		r.counts.Lose(lines)
		return nil
	}
	if _, err := f.Write(lines); err != nil {
		return fmt.Errorf("cannot write to the raw file of assessment %s: %w", assessment, err)
	}
	return nil
}

// Line appends the line of a response.
func (r *Raw) Line(lines []byte, class leak.Class, ns uint64) []byte {
	return r.format.line(lines, class, ns)
}

// Counts returns what became of the lines of all files.
func (r *Raw) Counts() *appendfile.Counts { return &r.counts }

// Reopen opens the paths of all files again, which a rotation has given to other files. A file that
// cannot be opened continues in the old one. Standard output stays open.
func (r *Raw) Reopen() error { return r.each((*appendfile.File).Reopen) }

// Close closes all files. It does not wait for a blocked write. Later lines are lost.
func (r *Raw) Close() error { return r.each((*appendfile.File).Close) }

func (r *Raw) each(f func(*appendfile.File) error) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var errs []error
	for name, file := range r.files {
		if err := f(file); err != nil {
			errs = append(errs, fmt.Errorf("raw file of assessment %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
