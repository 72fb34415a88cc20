// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
)

// Unpin detaches every hook and removes every map that is pinned at path, and logs one line for
// each. It returns an error while an exporter uses the path.
func Unpin(path string, logger *slog.Logger) (err error) {
	if err := checkPinPath(path); err != nil {
		return &ConfigError{"PinPath", err}
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		logger.Info("Nothing is pinned", "path", path)
		return nil
	}
	p, err := openPins(path)
	if err != nil {
		return &ConfigError{"PinPath", err}
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := p.unpinHooks(logger); err != nil {
		return err
	}
	maps, err := p.names(mapPinPrefix)
	if err != nil {
		return err
	}
	if err := p.removeMaps(); err != nil {
		return err
	}
	for _, name := range maps {
		logger.Info("Map removed", "map", strings.TrimPrefix(name, mapPinPrefix))
	}
	if err := os.Remove(path); err != nil {
		logger.Warn("Directory kept: it holds other files", "path", path, "err", rootCause(err))
		return nil
	}
	logger.Info("Directory removed", "path", path)
	return nil
}

// unpinHooks detaches every pinned hook. The index of a network device means another device in
// another network namespace, so the name is the one that the pinned table of devices has.
func (p *pins) unpinHooks(logger *slog.Logger) error {
	links, err := p.loadLinks()
	if err != nil {
		return err
	}
	record, _ := p.readLayout() // without a layout the namespace is taken for this one
	layout := unix.ByteSliceToString(record.Text[:])
	namespace, here := fieldOf(layout, "netns"), fmt.Sprint(networkNamespace())
	isHere := layout == "" || namespace == here
	entries := p.readDevices()
	for ifindex, l := range links {
		device := nameOfHook(entries, ifindex)
		if device == "" && isHere {
			if iface, err := net.InterfaceByIndex(ifindex); err == nil {
				device = printable.Name(iface.Name)
			}
		}
		if device == "" {
			device = fmt.Sprint("ifindex ", ifindex)
		}
		if err := errors.Join(p.unpinLink(ifindex), l.Close()); err != nil {
			return fmt.Errorf("detaching %s: %w", device, err)
		}
		if isHere {
			logger.Info("Hook detached", "device", device)
			continue
		}
		logger.Info("Hook detached in another network namespace", "device", device, "netns", namespace)
	}
	return nil
}

// readDevices returns the pinned table of devices; nil if there is none that this version can read.
func (p *pins) readDevices() []deviceEntry {
	m, err := ebpf.LoadPinnedMap(p.mapPath(deviceMapName), nil)
	if err != nil {
		return nil
	}
	defer m.Close()
	if m.ValueSize() != uint32(unsafe.Sizeof(deviceEntry{})) {
		return nil
	}
	entries := make([]deviceEntry, m.MaxEntries())
	for i := range entries {
		value, err := m.LookupBytes(uint32(i))
		if err != nil {
			return nil
		}
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&entries[i])), unsafe.Sizeof(entries[i])), value)
	}
	return entries
}

// nameOfHook returns the name of the device whose hook is on the network device with that index;
// empty if no device has that hook. After the network device was renamed, several entries have its
// index; the hook is that of the device which is audited, or vanished last.
func nameOfHook(entries []deviceEntry, ifindex int) (name string) {
	var last uint64
	for i := range entries {
		e := &entries[i]
		if !e.isTaken() || int(e.ifindex) != ifindex {
			continue
		}
		if e.goneNs == 0 {
			return e.deviceName()
		}
		if e.goneNs > last {
			name, last = e.deviceName(), e.goneNs
		}
	}
	return name
}
