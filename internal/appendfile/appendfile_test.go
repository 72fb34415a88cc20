// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package appendfile

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func openFile(t *testing.T, path string, options Options) *File {
	t.Helper()
	f, err := Open(path, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// newPipe returns a pipe and its reader.
func newPipe(t *testing.T) (string, *os.File) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reader.Close() })
	return path, reader
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// withFileLimit calls f while files may have that many bytes.
func withFileLimit(t *testing.T, bytes int, f func()) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(bytes), Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &before); err != nil {
			t.Fatal(err)
		}
	}()
	f()
}

// A line that a full device cuts short is completed when there is space, wherever it was cut. Each
// line is in the file and counted, or neither.
func TestShortWrite(t *testing.T) {
	const lines, last = "X,12\nY,345\n", "X,6\n"
	for _, header := range []string{"", "V1,V2\n"} {
		for space := range len(header + lines) {
			for _, end := range []string{"write", "reopen", "close"} {
				path := filepath.Join(t.TempDir(), "file")
				var counts Counts
				f := openFile(t, path, Options{Header: header, Counts: &counts})
				withFileLimit(t, space, func() {
					if _, err := f.Write([]byte(lines)); err == nil {
						t.Errorf("no error in %d bytes", space)
					}
				})
				var err error
				total := 2
				switch end {
				case "write":
					_, err = f.Write([]byte(last))
					total = 3
				case "reopen":
					err = errors.Join(os.Rename(path, path+".1"), f.Reopen())
					path += ".1"
				case "close":
					err = f.Close()
				}
				got := read(t, path)
				whole := strings.SplitAfter(strings.TrimPrefix(got, header), "\n")
				if err != nil || whole[len(whole)-1] != "" || got != "" && !strings.HasPrefix(got, header) {
					t.Errorf("cut at %d, then %s: %v: %q", space, end, err, got)
				}
				written := 0
				for _, line := range whole[:len(whole)-1] {
					written++
					if !slices.Contains(strings.SplitAfter(lines+last, "\n"), line) {
						t.Errorf("cut at %d, then %s: %q has the line %q", space, end, got, line)
					}
				}
				if int(counts.Lines()) != written || int(counts.Lines()+counts.Lost()) != total || int(counts.Bytes()) != len(got) {
					t.Errorf("cut at %d, then %s: %d lines, %d lost, %d bytes are counted for %q of %d",
						space, end, counts.Lines(), counts.Lost(), counts.Bytes(), got, total)
				}
			}
		}
	}
}

// A pipe that nobody reads costs its lines, and no more than the timeout once. Its lines are whole.
func TestTimeout(t *testing.T) {
	path, reader := newPipe(t)
	var counts Counts
	f := openFile(t, path, Options{Header: "V1,V2\n", Timeout: 50 * time.Millisecond, Counts: &counts})
	line := []byte("X,123456789\n")
	batch := bytes.Repeat(line, 1000)
	begin := time.Now()
	for sent := 0; sent < 100; sent++ {
		_, err := f.Write(batch)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	if took := time.Since(begin); took > 4*time.Second { // 5 s if each waits for the timeout
		t.Errorf("100 writes took %v", took)
	}
	if counts.Lost() == 0 || counts.Lines() == 0 {
		t.Fatalf("%d lines written and %d lost", counts.Lines(), counts.Lost())
	}
	if err := reader.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, counts.Bytes())
	if _, err := io.ReadFull(reader, got); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(line); err != nil {
		t.Fatalf("with space again: %v", err)
	}
	rest := make([]byte, int(counts.Bytes())-len(got))
	if _, err := io.ReadFull(reader, rest); err != nil {
		t.Fatal(err)
	}
	text := string(got) + string(rest)
	if want := "V1,V2\n" + strings.Repeat(string(line), int(counts.Lines())); text != want {
		t.Errorf("%d lines are counted, and %d are whole", counts.Lines(), strings.Count(text, string(line)))
	}
	if counts.Lines()+counts.Lost() != 100_001 {
		t.Errorf("%d lines and %d lost", counts.Lines(), counts.Lost())
	}
}

// A rotation does not wait for the reader of a pipe.
func TestReopenBlocked(t *testing.T) {
	path, reader := newPipe(t)
	var counts Counts
	f := openFile(t, path, Options{Counts: &counts})
	blocked := make(chan error, 1)
	go func() {
		_, err := f.Write(bytes.Repeat([]byte("a\n"), 1<<20))
		blocked <- err
	}()
	for held := 0; held < 1<<16; { // a pipe holds 64 KiB
		var err error
		if held, err = unix.IoctlGetInt(int(reader.Fd()), unix.TIOCINQ); err != nil {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
	if err := errors.Join(os.Rename(path, path+".1"), f.Reopen()); err != nil {
		t.Fatal(err)
	}
	if err := <-blocked; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the blocked write returned %v", err)
	}
	if counts.Lines() != 1<<15 || counts.Lost() != 1<<20-1<<15 {
		t.Errorf("%d lines and %d lost", counts.Lines(), counts.Lost())
	}
	if _, err := f.Write([]byte("b\n")); err != nil || read(t, path) != "b\n" {
		t.Errorf("after the rotation: %v, %.20q", err, read(t, path))
	}
}

func TestCheck(t *testing.T) {
	folder := t.TempDir()
	pipe, _ := newPipe(t)
	for path, want := range map[string]string{
		Stdout: "", pipe: "", filepath.Join(folder, "new"): "", "/dev/full": "",
		folder: "is a directory", filepath.Join(folder, "none", "file"): "no such file",
	} {
		switch err := Check(path); {
		case want == "" && err != nil:
			t.Error(err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %s", path, err, want)
		}
	}
	if files, err := os.ReadDir(folder); err != nil || len(files) > 0 {
		t.Errorf("the check has left %v", files)
	}
}
