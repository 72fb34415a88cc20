// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// inspectPins is openPins for a check: it creates no directory, and locks it for an instant only.
func inspectPins(path string) (*pins, error) {
	if err := checkPinPath(path); err != nil {
		return nil, err
	}
	p := &pins{path: path, isLookOnly: true, newLinks: map[int]xdpLink{}}
	directory, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return p, p.checkCreatable()
	}
	if err != nil {
		return nil, explainPin(path, err)
	}
	p.directory = directory
	if err := p.lock(unix.LOCK_SH); err != nil {
		return nil, errors.Join(err, p.close())
	}
	if err := unix.Flock(int(directory.Fd()), unix.LOCK_UN); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// checkCreatable returns an error if the directory cannot be created. A bpf file system refuses
// names with dots.
func (p *pins) checkCreatable() error {
	clean := filepath.Clean(p.path)
	if strings.Contains(filepath.Base(clean), ".") {
		return explainPin(p.path, unix.EPERM)
	}
	if err := unix.Faccessat(unix.AT_FDCWD, filepath.Dir(clean), unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return explainPin(p.path, err)
	}
	return nil
}

// copyWritten replaces the pinned maps that a start writes to by copies.
func (t *auditMaps) copyWritten(specs map[string]*ebpf.MapSpec) error {
	t.isBorrowed = true
	for _, name := range []string{deviceMapName, programMapAuditEvents, programMapEventAllowances} {
		m, err := newMap(name, specs[name], int(specs[name].MaxEntries))
		if err != nil {
			return err
		}
		pinned := t.byName[name]
		t.byName[name] = m
		if name == deviceMapName {
			err = copyArray(m, pinned)
		}
		if err := errors.Join(err, pinned.Close()); err != nil {
			return err
		}
	}
	return nil
}

func copyArray(to, from *ebpf.Map) error {
	for i := range from.MaxEntries() {
		value, err := from.LookupBytes(i)
		if err != nil {
			return err
		}
		if err := to.Put(i, value); err != nil {
			return err
		}
	}
	return nil
}
