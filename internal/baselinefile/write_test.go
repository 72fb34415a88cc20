// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package baselinefile

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// names returns the names of the files in a directory.
func names(t *testing.T, directory string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(directory)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

// Whatever has the name of the temporary file, one write leaves the baseline and nothing else.
func TestLeftoversAreReused(t *testing.T) {
	for _, test := range []struct {
		description string
		leave       func(name string) error
	}{
		{"half a file of a process that was killed", func(name string) error { return os.WriteFile(name, []byte(`{"base`), 0o600) }},
		{"a longer file", func(name string) error { return os.WriteFile(name, make([]byte, 1<<20), 0o600) }},
		{"a file that others may read", func(name string) error { return os.WriteFile(name, nil, 0o644) }},
		{"a file that nobody may write", func(name string) error { return os.WriteFile(name, nil, 0o400) }},
		{"a symbolic link", func(name string) error { return os.Symlink("/dev/full", name) }},
		{"a named pipe", func(name string) error { return unix.Mkfifo(name, 0o600) }},
	} {
		t.Run(test.description, func(t *testing.T) {
			directory := t.TempDir()
			path := filepath.Join(directory, "base.json")
			for _, act := range []func() error{
				func() error { return Write(path, example()) },
				func() error { return CheckWritable(path) },
				func() error { return RemoveTemporary(path) },
			} {
				if err := test.leave(filepath.Join(directory, ".base.json.tmp")); err != nil {
					t.Fatal(err)
				}
				if err := act(); err != nil {
					t.Error(err)
				}
			}
			if got := names(t, directory); !reflect.DeepEqual(got, []string{"base.json"}) {
				t.Errorf("the directory has %v", got)
			}
			if f, err := Read(path, terms); err != nil || !reflect.DeepEqual(f, example()) {
				t.Errorf("read back: %+v, %v", f, err)
			}
		})
	}
}

// A file of another user and a file with two names are neither reused nor changed.
func TestFilesOfOthersAreNotReused(t *testing.T) {
	for name, act := range map[string]func(path string) error{
		"Write":           func(path string) error { return Write(path, example()) },
		"CheckWritable":   CheckWritable,
		"RemoveTemporary": RemoveTemporary,
	} {
		t.Run(name, func(t *testing.T) {
			directory := t.TempDir()
			path, temporary := filepath.Join(directory, "base.json"), filepath.Join(directory, ".base.json.tmp")
			precious := filepath.Join(t.TempDir(), "precious")
			if err := os.WriteFile(precious, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Link(precious, temporary); err != nil {
				t.Fatal(err)
			}
			if err := act(path); err != nil {
				t.Error(err)
			}
			if text, err := os.ReadFile(precious); err != nil || string(text) != "precious" {
				t.Errorf("the linked file has %q: %v", text, err)
			}
			if os.Geteuid() != 0 {
				return // only root can make a file of another user
			}
			if err := os.WriteFile(temporary, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(temporary, 1234, 1234); err != nil {
				t.Fatal(err)
			}
			if err := act(path); err != nil {
				t.Error(err)
			}
			for _, file := range names(t, directory) {
				var status unix.Stat_t
				if err := unix.Stat(filepath.Join(directory, file), &status); err != nil || status.Uid != 0 {
					t.Errorf("%s belongs to user %d: %v", file, status.Uid, err)
				}
			}
		})
	}
}

// RemoveTemporary removes a temporary file, and does not change what is in it.
func TestRemovedFilesAreNotEmptied(t *testing.T) {
	path := filepath.Join(t.TempDir(), "base.json")
	if err := os.WriteFile(temporaryName(path), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(temporaryName(path))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := RemoveTemporary(path); err != nil {
		t.Error(err)
	}
	if info, err := file.Stat(); err != nil || info.Size() != 3 {
		t.Errorf("%d bytes are left: %v", info.Size(), err)
	}
}

// Processes that write one file at once do not spoil it.
func TestParallelWritesLeaveOneFile(t *testing.T) {
	directory := t.TempDir()
	path := filepath.Join(directory, "base.json")
	var running sync.WaitGroup
	for range 8 {
		running.Go(func() {
			for range 20 {
				if err := Write(path, example()); err != nil {
					t.Error(err)
				}
				if f, err := Read(path, terms); err != nil || !reflect.DeepEqual(f, example()) {
					t.Errorf("read back: %+v, %v", f, err)
				}
				if err := RemoveTemporary(path); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Wait()
	if got := names(t, directory); !reflect.DeepEqual(got, []string{"base.json"}) {
		t.Errorf("the directory has %v", got)
	}
}

// A temporary file that a process is writing is left alone.
func TestATemporaryFileInUseIsLeft(t *testing.T) {
	path := filepath.Join(t.TempDir(), "base.json")
	file, err := createTemporary(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for name, err := range map[string]error{"Write": Write(path, example()), "RemoveTemporary": RemoveTemporary(path)} {
		if err == nil || !strings.Contains(err.Error(), "another process writes "+path) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := os.Stat(file.Name()); err != nil {
		t.Error(err)
	}
}

// What is not a regular file is refused at once: opening a pipe would wait for a writer.
func TestSpecialFilesAreRefused(t *testing.T) {
	directory := t.TempDir()
	pipe, socket := filepath.Join(directory, "pipe"), filepath.Join(directory, "socket")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(socket, unix.S_IFSOCK|0o600, 0); err != nil {
		t.Fatal(err)
	}
	for path, kind := range map[string]string{pipe: "named pipe", socket: "socket", "/dev/null": "device", directory: "directory"} {
		want := fmt.Sprintf("%s is not a regular file (%s)", path, kind)
		if f, err := Read(path, terms); f != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %+v and the error %v, want %q", f, err, want)
		}
	}
}
