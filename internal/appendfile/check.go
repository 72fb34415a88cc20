// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package appendfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Check returns the error with which [Open] would fail, and creates no file. A pipe is not opened,
// because its reader would see it closed: whether it has a reader is not checked.
func Check(path string) error {
	if path == Stdout {
		return nil
	}
	switch info, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		return checkCreatable(path)
	case err != nil:
		return err
	case info.Mode().Type() == fs.ModeNamedPipe:
		return access(path, unix.W_OK)
	}
	file, err := open(path)
	if err != nil {
		return err
	}
	return file.Close()
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
