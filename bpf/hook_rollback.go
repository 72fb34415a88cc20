// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// modeOf returns the mode that a network device reports; empty if no hook of an audit has it.
func modeOf(attached netdev.XDPMode) Mode {
	for mode, reported := range attachedModes {
		if reported == attached {
			return mode
		}
	}
	return ""
}

// changeMode replaces a hook of the set by one in a mode of the configuration. The new hook has
// the program of the old one, so it counts where that counted, and a start that fails later
// leaves it like any other hook. If the program may not be opened, which takes CAP_SYS_ADMIN,
// the new hook has the program of this process. If that may not count before the commit, the
// hook keeps its mode.
func (s *deviceSet) changeMode(d *device, h *preparedHook) error {
	p := h.link.program()
	if p != nil {
		defer func() { s.closeProgram(d, p) }()
	} else if h.identity == nil && (!s.isStarting || !s.isReplacingMaps) {
		p = h.program
	}
	if p == nil {
		s.logger.Warn("Hook keeps its mode: its program cannot move to another mode without CAP_SYS_ADMIN: restart to change the mode",
			"device", d.name, "mode", h.mode, "wanted", s.config.Mode)
		return nil
	}
	return s.reattach(d, h, p, p, errors.New("the hook is in another mode"))
}

// reattach detaches a hook and attaches a new one with a program. The kernel has no other way to
// change the mode of a hook. If the network device refuses that, it gets a hook in the old mode,
// with another program.
func (s *deviceSet) reattach(d *device, h *preparedHook, p, old *loadedProgram, reason error) error {
	s.logger.Info("Program of a hook cannot be replaced: detaching the hook and attaching a new one",
		"device", d.name, "mode", s.config.Mode, "err", reason)
	if err := s.dropLink(h.link, d.ifindex); err != nil {
		s.logger.Warn("Hook could not be removed", "device", d.name, "err", err)
	}
	before := h.mode
	h.link = nil
	l, mode, err := s.attachNew(d, p)
	if err == nil {
		h.link, h.mode, h.attached = l, mode, p.id
		return s.kernel.pin(l, d.ifindex, false)
	}
	l, failure := s.kernel.attach(old, d.ifindex, before)
	if failure != nil {
		return errors.Join(err, fmt.Errorf("device %s is no longer audited in mode %s as before: %w", d.name, before, failure))
	}
	h.link, h.attached = l, old.id
	s.logger.Info("Hook restored as it was", "device", d.name, "mode", before)
	return errors.Join(err, s.kernel.pin(l, d.ifindex, false))
}

func (s *deviceSet) closeProgram(d *device, p *loadedProgram) {
	if err := s.kernel.unload(p); err != nil {
		s.logger.Warn("Program could not be closed", "device", d.name, "err", err)
	}
}
