// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// What is pinned: every map as map_NAME, the hook of every device as link_IFINDEX. Names of devices may have dots in them,
// which a bpf file system refuses. map_audit_layout is pinned last and removed first: without it nothing is taken over.
const (
	mapPinPrefix  = "map_"
	linkPinPrefix = "link_"
)

// pins is a folder of a bpf file system, locked by this process.
type pins struct {
	path     string
	folder   *os.File
	isNew    bool            // the maps that are pinned are of this process
	newLinks map[int]xdpLink // hooks that this process has pinned first, by the index of their device
}

// openPins makes the folder if there is none, and locks it until close. The lock ends with the process, however it ends.
func openPins(path string) (*pins, error) {
	if err := checkPinPath(path); err != nil {
		return nil, err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, explainPin(path, err)
	}
	folder, err := os.Open(path)
	if err != nil {
		return nil, explainPin(path, err)
	}
	p := &pins{path: path, folder: folder, newLinks: map[int]xdpLink{}}
	if err := unix.Flock(int(folder.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		owner := ""
		if record, err := p.readLayout(); err == nil && record.PID != 0 {
			owner = fmt.Sprintf(" (process %d)", record.PID)
		}
		folder.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("pin path %s is in use by another exporter%s: end it, or use a path of its own for each", path, owner)
		}
		return nil, fmt.Errorf("locking the pin path %s: %w", path, err)
	}
	return p, nil
}

const pinRemedy = "mount one with mount -t bpf bpf /sys/fs/bpf, and name a folder in it such as /sys/fs/bpf/xdp_audit"

// checkPinPath returns an error unless path is, or can be, a folder of a bpf file system that can be written.
func checkPinPath(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("pin path %s is not absolute: name a folder such as /sys/fs/bpf/xdp_audit", path)
	}
	parent := filepath.Dir(filepath.Clean(path))
	var system unix.Statfs_t
	if err := unix.Statfs(parent, &system); err != nil {
		return fmt.Errorf("pin path %s: %s: %w: there has to be a bpf file system: %s", path, parent, err, pinRemedy)
	}
	if system.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("pin path %s: %s is not in a bpf file system: %s", path, parent, pinRemedy)
	}
	if system.Flags&unix.ST_RDONLY != 0 {
		return explainPin(path, unix.EROFS)
	}
	return nil
}

// explainPin says why nothing can be pinned, and what would help.
func explainPin(path string, err error) error {
	switch {
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("pin path %s is on a file system that is mounted read-only: remount it with mount -o remount,rw: %w", path, rootCause(err))
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("pin path %s cannot be written: own the folder, use no dots in its name, and %s: %w", path, privilegeRemedy, rootCause(err))
	}
	return fmt.Errorf("pin path %s: %w", path, err)
}

func (p *pins) close() error { return p.folder.Close() }

func (p *pins) mapPath(name string) string { return filepath.Join(p.path, mapPinPrefix+name) }

func linkName(ifindex int) string { return fmt.Sprint(linkPinPrefix, ifindex) }

// pinLink pins a hook in the place of what is pinned as that of the device.
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

// unpinLink unpins the hook of a device, if one is pinned.
func (p *pins) unpinLink(ifindex int) error {
	delete(p.newLinks, ifindex)
	return p.remove(linkName(ifindex))
}

// names returns the names of what is pinned that begin with prefix.
func (p *pins) names(prefix string) ([]string, error) {
	entries, err := os.ReadDir(p.path)
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

// remove unpins; what is not pinned is no error.
func (p *pins) remove(name string) error {
	if err := os.Remove(filepath.Join(p.path, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return explainPin(p.path, err)
	}
	return nil
}

// removeMaps unpins all maps, the layout first.
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

// discardNew unpins what a start that failed has pinned, and removes the folder if nothing is in it. Maps that hooks of a
// process before count in by now stay. A hook that cannot be unpinned is detached.
func (p *pins) discardNew() error {
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

// pinMaps pins maps where none are pinned, and then their layout.
func (p *pins) pinMaps(maps map[string]*ebpf.Map, layout string) error {
	p.isNew = true
	for name, m := range maps {
		if err := p.pinMap(name, m); err != nil {
			return err
		}
	}
	return p.writeLayout(layout)
}

func (p *pins) pinMap(name string, m *ebpf.Map) error {
	if err := m.Pin(p.mapPath(name)); err != nil {
		return explainPin(p.path, err)
	}
	return nil
}

// loadMaps opens the maps of those names, if all are pinned and their layout is text. Otherwise it returns none, and what
// differs; nothing if nothing is pinned.
func (p *pins) loadMaps(names []string, text string) (maps map[string]*ebpf.Map, differs string, err error) {
	record, err := p.readLayout()
	if errors.Is(err, os.ErrNotExist) {
		pinned, err := p.names(mapPinPrefix)
		if len(pinned) > 0 {
			differs = "they have no layout, as a start that was cut short leaves them"
		}
		return nil, differs, err
	}
	if err != nil {
		return nil, "their layout cannot be read", nil //nolint:nilerr // it is replaced
	}
	if before := unix.ByteSliceToString(record.Text[:]); before != text {
		return nil, differingFields(before, text), p.checkNamespace(before, text)
	}
	maps = map[string]*ebpf.Map{}
	for _, name := range names {
		if maps[name], err = ebpf.LoadPinnedMap(p.mapPath(name), nil); err != nil {
			delete(maps, name)
			return nil, name + " is missing", closeMaps(maps)
		}
	}
	return maps, "", nil
}

// checkNamespace returns an error if hooks are pinned that another network namespace's exporter has left: the indices of
// their devices mean others here.
func (p *pins) checkNamespace(before, now string) error {
	if fieldOf(before, "netns") == fieldOf(now, "netns") {
		return nil
	}
	links, err := p.loadLinks()
	for _, l := range links {
		err = errors.Join(err, l.Close())
	}
	if err == nil && len(links) > 0 {
		err = fmt.Errorf("pin path %s holds %d hooks of another network namespace: use a path of its own for each, or remove them with --bpf.unpin",
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

// loadLinks opens the hooks that are pinned, by the index of their device, and unpins those whose device is gone.
func (p *pins) loadLinks() (map[int]xdpLink, error) {
	names, err := p.names(linkPinPrefix)
	if err != nil {
		return nil, err
	}
	links := map[int]xdpLink{}
	for _, name := range names {
		l, err := link.LoadPinnedLink(filepath.Join(p.path, name), nil)
		if err != nil {
			return links, fmt.Errorf("opening the pinned hook %s in %s: %w", name, p.path, err)
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

// ifindexOf returns the index of the device that a link holds its program on, 0 if that device or the hook is gone.
func ifindexOf(l link.Link) int {
	info, err := l.Info()
	if err != nil || info.XDP() == nil {
		return 0
	}
	return int(info.XDP().Ifindex)
}

// Unpin detaches every hook and removes every map that is pinned at path, and says so in one line for each. It is refused
// while an exporter runs on them.
func Unpin(path string, logger *slog.Logger) (err error) {
	if err := checkPinPath(path); err != nil {
		return err
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		logger.Info("Nothing is pinned", "path", path)
		return nil
	}
	p, err := openPins(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	links, err := p.loadLinks()
	if err != nil {
		return err
	}
	for ifindex, l := range links {
		device := fmt.Sprint(ifindex)
		if iface, err := net.InterfaceByIndex(ifindex); err == nil {
			device = iface.Name
		}
		if err := errors.Join(p.unpinLink(ifindex), l.Close()); err != nil {
			return fmt.Errorf("detaching %s: %w", device, err)
		}
		logger.Info("Hook detached", "device", device)
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
		logger.Warn("The folder is left, because something else is in it", "path", path, "err", rootCause(err))
		return nil
	}
	logger.Info("Folder removed", "path", path)
	return nil
}
