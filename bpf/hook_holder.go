// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
)

// bpfFileSystem is where a bpf file system is mounted by convention.
const bpfFileSystem = "/sys/fs/bpf"

// hookHolder is the XDP program on a network device that keeps other programs off it, and what
// holds the program there.
type hookHolder struct {
	program uint32
	name    string  // of the program; empty if it may not be read
	link    link.ID // 0 if no link is known
	pinPath string  // directory of an exporter's pins that has the link
	isSure  bool    // without a link, the program is attached without one
}

// findHolder looks for what holds a program on the network device with that index. It looks for
// pins where exporters usually have them, and next to pinPath. Names and links that are not pinned
// are found with CAP_SYS_ADMIN only.
func findHolder(program uint32, ifindex int, pinPath string) hookHolder {
	h := hookHolder{program: program}
	if p, err := ebpf.NewProgramFromID(ebpf.ProgramID(program)); err == nil {
		if info, err := p.Info(); err == nil {
			h.name = info.Name
		}
		p.Close()
	}
	holds := func(l link.Link) bool {
		info, err := l.Info()
		if err != nil || info.XDP() == nil || int(info.XDP().Ifindex) != ifindex || info.Program != ebpf.ProgramID(program) {
			return false
		}
		h.link = info.ID
		return true
	}
	parents := []string{bpfFileSystem}
	if pinPath != "" {
		parents = append(parents, filepath.Dir(filepath.Clean(pinPath)))
	}
	for _, parent := range parents {
		found, _ := filepath.Glob(filepath.Join(parent, "*", linkName(ifindex))) // it is valid
		for _, path := range found {
			l, err := link.LoadPinnedLink(path, nil)
			if err != nil {
				continue
			}
			isHolder := holds(l)
			l.Close()
			if isHolder {
				h.pinPath = filepath.Dir(path)
				return h
			}
		}
	}
	var links link.Iterator
	defer links.Close()
	for links.Next() {
		if holds(links.Link) {
			return h
		}
	}
	h.isSure = links.Err() == nil || errors.Is(links.Err(), unix.ENOENT)
	return h
}

// explain returns why a device refuses other programs, and the remedy.
func (h hookHolder) explain(device string) string {
	return fmt.Sprintf("device %s already holds %s: %s", device, h.describe(), h.remedy(device))
}

// describe names the program, and what holds it.
func (h hookHolder) describe() string {
	text := fmt.Sprint("XDP program ", h.program)
	if h.name != "" {
		text += " (" + h.name + ")"
	}
	switch {
	case h.pinPath != "":
		text += ", which is pinned at " + h.pinPath
	case h.link != 0:
		text += fmt.Sprintf(", attached by link %d", h.link)
	}
	return text
}

// remedy returns how to free the hook of a device. A program that is attached by a link cannot be
// detached with ip(8).
func (h hookHolder) remedy(device string) string {
	byIP := fmt.Sprintf("ip link set dev %s xdp off", printable.ShellName(device))
	switch {
	case h.pinPath != "":
		path := printable.ShellWord(h.pinPath)
		return fmt.Sprintf("take it over with --bpf.pin-path=%s, or remove it with --bpf.pin-path=%s --bpf.unpin", path, path)
	case h.link != 0:
		return fmt.Sprintf("end the process that owns the link, or run bpftool link detach id %d", h.link)
	case h.isSure:
		return "end the process that owns it, or run " + byIP
	}
	return fmt.Sprintf("end the process that owns it, or run %s, or if a link holds the program, bpftool link detach id N with the id from bpftool link", byIP)
}
