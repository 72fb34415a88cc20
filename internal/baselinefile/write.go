// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package baselinefile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lockTimeout bounds the wait for another process that writes the same file.
const lockTimeout = time.Second

// Write replaces the file at path atomically: a reader finds either the previous file or this
// one, complete, even after a crash of the machine. Only the owner can read the file. Write
// refuses a file that is too large for Read.
//
// A process that is killed in Write leaves a temporary file, which the next Write reuses and
// [RemoveTemporary] removes.
func Write(path string, f *File) error {
	text, err := f.Encode()
	if err != nil {
		return err
	}
	if len(text) > maxBytes {
		return fmt.Errorf("%s was not written: %d devices take %d bytes, and at most %d can be read: audit fewer devices",
			path, len(f.Devices), len(text), maxBytes)
	}
	temporary, err := createTemporary(path)
	if err != nil {
		return err
	}
	defer temporary.Close() // only then is the name free for another process
	if err = temporary.Truncate(0); err == nil {
		_, err = temporary.Write(text)
	}
	if err = errors.Join(err, temporary.Sync()); err == nil {
		err = os.Rename(temporary.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temporary.Name()))
	}
	directory, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(directory.Sync(), directory.Close())
}

// CheckWritable returns an error unless a file can be created in the directory of path.
func CheckWritable(path string) error {
	temporary, err := createTemporary(path)
	if err != nil {
		return err
	}
	return errors.Join(os.Remove(temporary.Name()), temporary.Close())
}

// CheckAccess is CheckWritable by the permissions of the directory alone: it creates no file.
func CheckAccess(path string) error {
	directory := filepath.Dir(path)
	if err := unix.Faccessat(unix.AT_FDCWD, directory, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return &fs.PathError{Op: "access", Path: directory, Err: err}
	}
	return nil
}

// RemoveTemporary removes the temporary file that a process left which was killed while it wrote
// the file at path. It leaves a temporary file that a process is writing.
func RemoveTemporary(path string) error {
	if _, err := os.Lstat(temporaryName(path)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return CheckWritable(path)
}

// temporaryName returns the name of the temporary file for path. The name is always the same, so
// that there is never more than one such file.
func temporaryName(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
}

// createTemporary opens the temporary file for path, locked until it is closed. It has what a
// process has left in it. A file that has its name and is not [isOwn] is removed.
func createTemporary(path string) (*os.File, error) {
	for begin := time.Now(); ; {
		file, err := openTemporary(temporaryName(path))
		switch {
		case err == nil:
			return file, nil
		case errors.Is(err, unix.EWOULDBLOCK) && time.Since(begin) < lockTimeout:
			time.Sleep(lockTimeout / 100)
		case errors.Is(err, unix.EWOULDBLOCK):
			return nil, fmt.Errorf("another process writes %s", path)
		case !errors.Is(err, errReplaced) || time.Since(begin) >= lockTimeout:
			return nil, err
		}
	}
}

// errReplaced is the error of a temporary file that was renamed or removed while it was opened.
var errReplaced = errors.New("the temporary file was replaced")

func openTemporary(name string) (file *os.File, err error) {
	file, err = os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, fs.ErrExist) {
		file, err = os.OpenFile(name, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errReplaced // what has the name by now may be in use
		}
		if err == nil && !isOwn(file) {
			file.Close()
			err = fs.ErrInvalid
		}
		if err != nil {
			if failure := os.Remove(name); failure != nil && !errors.Is(failure, fs.ErrNotExist) {
				return nil, err
			}
			return nil, errReplaced
		}
	}
	if err != nil {
		return nil, err
	}
	defer func(candidate *os.File) {
		if err != nil {
			candidate.Close()
		}
	}(file)
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, err
	}
	// The process that had the lock may have renamed the file, which must not be written then.
	opened, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if named, err := os.Lstat(name); err != nil || !os.SameFile(opened, named) {
		return nil, errReplaced
	}
	return file, nil
}

// isOwn reports whether a file may be written: a regular file of the user of the process, which no
// other user can open, and which has no other name. A file that has just been renamed or removed
// is not refused here.
func isOwn(file *os.File) bool {
	info, err := file.Stat()
	if err != nil {
		return false
	}
	status, ok := info.Sys().(*syscall.Stat_t)
	return ok && info.Mode().IsRegular() && info.Mode().Perm()&0o077 == 0 &&
		status.Nlink <= 1 && int(status.Uid) == os.Geteuid()
}
