// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package regularfile reads and checks files whose paths come from flags.
package regularfile

import (
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Read returns the content of a regular file of at most maxBytes. It does not open anything else:
// that could wait, or have an effect. The error of a larger file has what the file is, such as
// "baseline", and the remedy.
func Read(path string, maxBytes int64, what, remedy string) ([]byte, error) {
	if err := Check(path); err != nil {
		return nil, err
	}
	// If the file was replaced since, opening a pipe must not wait for a writer.
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err == nil {
		err = check(path, info)
	}
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(file, maxBytes+1))
	if err != nil {
		return nil, err
	}
	if int64(len(text)) > maxBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes, which is more than any %s needs: %s", path, maxBytes, what, remedy)
	}
	return text, nil
}

// Check returns an error that names the path and what is there, unless it is a regular file. It
// does not open it.
func Check(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return check(path, info)
}

// check returns an error that says what a file is, unless it is a regular file.
func check(path string, info fs.FileInfo) error {
	kind := "special"
	switch mode := info.Mode(); {
	case mode.IsRegular():
		return nil
	case mode.IsDir():
		kind = "directory"
	case mode&fs.ModeNamedPipe != 0:
		kind = "named pipe"
	case mode&fs.ModeSocket != 0:
		kind = "socket"
	case mode&fs.ModeDevice != 0:
		kind = "device"
	}
	return fmt.Errorf("%s is not a regular file (%s): use the path of a regular file", path, kind)
}
