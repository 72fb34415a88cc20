// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Each map is pinned as map_NAME, and the hook of each device as link_IFINDEX: the name of a device
// may have dots, which a bpf file system refuses. map_audit_layout is pinned last and removed
// first. Without it no map is taken over.
const (
	mapPinPrefix  = "map_"
	linkPinPrefix = "link_"
	newPinPrefix  = "new_" // of maps that are about to replace others
)

// pins is a directory in a bpf file system that this process has locked.
type pins struct {
	path       string
	directory  *os.File
	isNew      bool            // this process has created the maps that are pinned
	isLookOnly bool            // nothing in the directory is changed, nor what is pinned there
	newLinks   map[int]xdpLink // hooks on devices that had none, by the index of their device
}

// openPins creates the directory if it does not exist, and locks it until close. The lock ends with
// the process at the latest.
func openPins(path string) (*pins, error) {
	if err := checkPinPath(path); err != nil {
		return nil, err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, explainPin(path, err)
	}
	directory, err := os.Open(path)
	if err != nil {
		return nil, explainPin(path, err)
	}
	p := &pins{path: path, directory: directory, newLinks: map[int]xdpLink{}}
	if err := p.lock(unix.LOCK_EX); err != nil {
		directory.Close()
		return nil, err
	}
	_ = p.removeNewMaps() // of a process that was killed; what is left does no harm
	return p, nil
}

// lock locks the directory, unless another process has locked it.
func (p *pins) lock(how int) error {
	err := unix.Flock(int(p.directory.Fd()), how|unix.LOCK_NB)
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, unix.EWOULDBLOCK):
		return fmt.Errorf("locking the pin path %s: %w", p.path, err)
	}
	owner := ""
	if record, err := p.readLayout(); err == nil && record.PID != 0 {
		owner = fmt.Sprintf(" (process %d)", record.PID)
	}
	return fmt.Errorf("pin path %s is in use by another exporter%s: stop it, or give each exporter its own path", p.path, owner)
}

const pinRemedy = "mount one with mount -t bpf bpf /sys/fs/bpf, and use a directory in it such as /sys/fs/bpf/xdp_audit"

// checkPinPath returns an error unless path is, or can become, a directory in a bpf file system
// that is writable.
func checkPinPath(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("pin path %s is not absolute: use a directory such as /sys/fs/bpf/xdp_audit", path)
	}
	parent := filepath.Dir(filepath.Clean(path))
	var system unix.Statfs_t
	if err := unix.Statfs(parent, &system); err != nil {
		return fmt.Errorf("pin path %s: %s: %w: its parent directory must be in a bpf file system: %s", path, parent, err, pinRemedy)
	}
	if system.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("pin path %s: %s is not in a bpf file system: %s", path, parent, pinRemedy)
	}
	if system.Flags&unix.ST_RDONLY != 0 {
		return explainPin(path, unix.EROFS)
	}
	return nil
}

// explainPin returns an error that says why pinning failed, and the remedy.
func explainPin(path string, err error) error {
	switch {
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("pin path %s is on a read-only file system: remount it with mount -o remount,rw: %w", path, rootCause(err))
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("pin path %s is not writable: own the directory, use no dots in its name, and %s: %w", path, privilegeRemedy, rootCause(err))
	}
	return fmt.Errorf("pin path %s: %w", path, err)
}

// explainOpening returns an error that says why a pin cannot be opened, and the remedy.
func (p *pins) explainOpening(name string, err error) error {
	cause := causeOfFiles(err)
	if cause == "" && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)) {
		cause = fmt.Sprintf("let user %d read and write it, or remove the audit with --bpf.unpin as its owner", os.Geteuid())
	}
	if cause != "" {
		cause += ": "
	}
	return fmt.Errorf("opening the pin %s in %s: %s%w", name, p.path, cause, err)
}

// isDenied reports whether a pin could not be opened for want of a privilege or of a resource, and
// not because of what is pinned.
func isDenied(err error) bool {
	for _, errno := range []unix.Errno{unix.ENOMEM, unix.EMFILE, unix.ENFILE, unix.EPERM, unix.EACCES, unix.EAGAIN} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

func (p *pins) close() error {
	if p.directory == nil {
		return nil
	}
	return p.directory.Close()
}

func (p *pins) mapPath(name string) string { return filepath.Join(p.path, mapPinPrefix+name) }

func linkName(ifindex int) string { return fmt.Sprint(linkPinPrefix, ifindex) }

// pinLink pins the hook of a device and removes the pin that the device had. A hook that is new is
// unpinned by discardNew.
func (p *pins) pinLink(l xdpLink, ifindex int, isNew bool) error {
	if err := p.unpinLink(ifindex); err != nil {
		return err
	}
	if err := l.Pin(filepath.Join(p.path, linkName(ifindex))); err != nil {
		return explainPin(p.path, err)
	}
	if isNew {
		p.newLinks[ifindex] = l
	}
	return nil
}

// unpinLink removes the pin of the hook of a device, if there is one.
func (p *pins) unpinLink(ifindex int) error {
	delete(p.newLinks, ifindex)
	return p.remove(linkName(ifindex))
}

// hasLink reports whether the hook of a device is pinned.
func (p *pins) hasLink(ifindex int) bool {
	_, err := os.Lstat(filepath.Join(p.path, linkName(ifindex)))
	return err == nil
}

// names returns the names of the pins that begin with prefix.
func (p *pins) names(prefix string) ([]string, error) {
	entries, err := os.ReadDir(p.path)
	if p.isLookOnly && errors.Is(err, os.ErrNotExist) {
		return nil, nil // a start creates the directory
	}
	if err != nil {
		return nil, explainPin(p.path, err)
	}
	var names []string
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), prefix) {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

// remove removes a pin, if there is one of that name.
func (p *pins) remove(name string) error {
	if p.isLookOnly {
		return nil
	}
	if err := os.Remove(filepath.Join(p.path, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return explainPin(p.path, err)
	}
	return nil
}

// removeMaps removes the pins of all maps, that of the layout first.
func (p *pins) removeMaps() error {
	names, err := p.names(mapPinPrefix)
	if err != nil {
		return err
	}
	for _, name := range append([]string{mapPinPrefix + layoutName}, names...) {
		if err := p.remove(name); err != nil {
			return err
		}
	}
	return nil
}

// replaceMaps replaces the pinned maps and their layout. What may fail precedes the end of the old
// pins: the new maps are pinned next to the old ones, and renamed.
func (p *pins) replaceMaps(maps map[string]*ebpf.Map, layout *ebpf.Map) error {
	err := p.removeNewMaps()
	pin := func(name string, m *ebpf.Map) {
		if err == nil {
			err = m.Pin(filepath.Join(p.path, newPinPrefix+name))
		}
	}
	for name, m := range maps {
		pin(name, m)
	}
	if pin(layoutName, layout); err != nil {
		return errors.Join(explainPin(p.path, err), p.removeNewMaps())
	}
	if err := p.removeMaps(); err != nil {
		return errors.Join(err, p.removeNewMaps())
	}
	return p.pinMaps(maps, layout)
}

// removeNewMaps removes the pins of maps that have not replaced others.
func (p *pins) removeNewMaps() error {
	names, err := p.names(newPinPrefix)
	errs := []error{err}
	for _, name := range names {
		errs = append(errs, p.remove(name))
	}
	return errors.Join(errs...)
}

// discardNew removes the pins that a failed start has created, and the directory if it is empty
// then. New maps stay pinned if hooks of an earlier process count in them by now. A hook whose pin
// cannot be removed is detached.
func (p *pins) discardNew() error {
	if p.isLookOnly {
		return nil
	}
	defer func() { _ = os.Remove(p.path) }()
	var errs []error
	for ifindex, l := range p.newLinks {
		if err := p.unpinLink(ifindex); err != nil {
			errs = append(errs, err, l.Detach())
		}
	}
	left, err := p.names(linkPinPrefix)
	if errs = append(errs, err); p.isNew && err == nil && len(left) == 0 {
		errs = append(errs, p.removeMaps())
	}
	return errors.Join(errs...)
}

// pinMaps pins maps, and then their layout. No maps may have these pins.
func (p *pins) pinMaps(maps map[string]*ebpf.Map, layout *ebpf.Map) error {
	p.isNew = true
	for name, m := range maps {
		if err := p.pinMap(name, m); err != nil {
			return err
		}
	}
	return p.pinMap(layoutName, layout)
}

func (p *pins) pinMap(name string, m *ebpf.Map) error {
	if err := m.Pin(p.mapPath(name)); err != nil {
		return explainPin(p.path, err)
	}
	return nil
}

// loadMaps opens the maps of those names, if all of them are pinned and their layout is text.
// Otherwise it returns no maps, and what differs; differs is empty if no maps are pinned. Pins that
// this process cannot open are an error: they may hold an audit, and are not to be replaced.
func (p *pins) loadMaps(names []string, text string) (maps map[string]*ebpf.Map, differs string, err error) {
	record, err := p.readLayout()
	if errors.Is(err, os.ErrNotExist) {
		pinned, err := p.names(mapPinPrefix)
		if len(pinned) > 0 {
			differs = "they have no layout, which means that a start was interrupted"
		}
		return nil, differs, err
	}
	if isDenied(err) {
		return nil, "", p.explainOpening(mapPinPrefix+layoutName, err)
	}
	if err != nil {
		return nil, "their layout cannot be read", nil //nolint:nilerr // the layout is replaced
	}
	if before := unix.ByteSliceToString(record.Text[:]); before != text {
		return nil, differingFields(before, text), p.checkNamespace(before, text)
	}
	maps = map[string]*ebpf.Map{}
	for _, name := range names {
		if maps[name], err = ebpf.LoadPinnedMap(p.mapPath(name), nil); err != nil {
			delete(maps, name)
			if isDenied(err) {
				return nil, "", errors.Join(p.explainOpening(mapPinPrefix+name, err), closeMaps(maps))
			}
			return nil, name + " is missing", closeMaps(maps)
		}
	}
	return maps, "", nil
}

// checkNamespace returns an error if hooks are pinned that an exporter in another network namespace
// has left: the indices of their devices are those of other devices here.
func (p *pins) checkNamespace(before, now string) error {
	if fieldOf(before, "netns") == fieldOf(now, "netns") {
		return nil
	}
	links, err := p.loadLinks()
	for _, l := range links {
		err = errors.Join(err, l.Close())
	}
	if err == nil && len(links) > 0 {
		err = fmt.Errorf("pin path %s holds %d hooks of another network namespace: give each exporter its own path, or remove the hooks with --bpf.unpin",
			p.path, len(links))
	}
	return err
}

func closeMaps(maps map[string]*ebpf.Map) error {
	var errs []error
	for _, m := range maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// loadLinks opens the pinned hooks, by the index of their device. It removes the pins of hooks
// whose device is gone.
func (p *pins) loadLinks() (map[int]xdpLink, error) {
	names, err := p.names(linkPinPrefix)
	if err != nil {
		return nil, err
	}
	links := map[int]xdpLink{}
	for _, name := range names {
		l, err := link.LoadPinnedLink(filepath.Join(p.path, name), nil)
		if err != nil {
			return links, p.explainOpening(name, err)
		}
		ifindex := ifindexOf(l)
		if ifindex != 0 && name == linkName(ifindex) {
			links[ifindex] = kernelLink{l}
			continue
		}
		if err := errors.Join(p.remove(name), l.Close()); err != nil {
			return links, err
		}
	}
	return links, nil
}

// ifindexOf returns the index of the device that a link is attached to; 0 if the device or the hook
// is gone.
func ifindexOf(l link.Link) int {
	info, err := l.Info()
	if err != nil || info.XDP() == nil {
		return 0
	}
	return int(info.XDP().Ifindex)
}
