// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"slices"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// attachedModes are the modes as a network device reports them.
var attachedModes = map[Mode]netdev.XDPMode{ModeDriver: netdev.XDPDriver, ModeGeneric: netdev.XDPGeneric}

// attach attaches the program of a device to a network device. If one of the set's hooks is on that
// already, its program is replaced. Otherwise the program is attached in the first mode of the
// configuration that the network device accepts.
func (s *deviceSet) attach(d *device, on netdev.Device) (err error) {
	driver := s.kernel.driver(d.name)
	s.write(func() {
		d.ifindex, d.driver, d.mode = on.Index, driver, ""
		s.pool.table.entries[d.index].ifindex = uint32(on.Index)
	})
	if s.config.Mode == ModeHW {
		return s.attachOffloaded(d)
	}
	if d.program == nil {
		if err := s.load(d, 0); err != nil {
			return explainLoad(err)
		}
		defer func() {
			if err != nil && !d.wasUp {
				s.write(func() { err = errors.Join(err, s.unload(d)) })
			}
		}()
	}
	modes := []Mode{s.config.Mode}
	if s.config.Mode == ModeAuto {
		modes = []Mode{ModeDriver, ModeGeneric}
	}
	if s.replaceProgram(d, on, modes) {
		return nil
	}
	var refusals []error
	for _, mode := range modes {
		l, err := s.kernel.attach(d.program, d.ifindex, mode)
		if err != nil {
			refusals = append(refusals, s.kernel.explain(d, d.program, mode, err))
			continue
		}
		if err := s.kernel.pin(l, d.ifindex, !s.isReplaced(d)); err != nil {
			return errors.Join(err, l.Close())
		}
		s.attached(d, l, mode)
		if len(refusals) > 0 {
			s.logger.Warn("Native mode was refused: auditing in generic mode, which is slower and sees merged frames",
				"device", d.name, "err", errors.Join(refusals...))
		}
		return nil
	}
	return refusals[len(refusals)-1]
}

// replaceProgram replaces the program of one of the set's hooks that is on a network device; no
// packet passes without one of the two. It reports whether that was possible. If not, that hook is
// detached.
func (s *deviceSet) replaceProgram(d *device, on netdev.Device, modes []Mode) bool {
	l, ok := s.unclaimedLinks[on.Index]
	if !ok {
		return false
	}
	s.write(func() { delete(s.unclaimedLinks, on.Index) })
	err := errors.New("the hook is in another mode")
	for _, mode := range modes {
		if attachedModes[mode] != on.XDP {
			continue
		}
		if err = l.replace(d.program); err == nil {
			s.attached(d, l, mode)
			return true
		}
	}
	s.logger.Info("Program of a hook cannot be replaced: detaching the hook and attaching a new one",
		"device", d.name, "mode", s.config.Mode, "err", err)
	s.noteRollback(d, l, on.XDP)
	if err := s.dropLink(l, on.Index); err != nil {
		s.logger.Warn("Hook could not be removed", "device", d.name, "err", err)
	}
	return false
}

// attachOffloaded loads the program for the hardware of the device, and attaches it there. The
// kernel refuses to load it if the driver has no offload.
func (s *deviceSet) attachOffloaded(d *device) error {
	err := s.load(d, d.ifindex)
	if err == nil {
		var l xdpLink
		if l, err = s.kernel.attach(d.program, d.ifindex, ModeHW); err == nil {
			s.attached(d, l, ModeHW)
			return nil
		}
	}
	err = s.kernel.explain(d, d.program, ModeHW, err)
	s.write(func() { err = errors.Join(err, s.unload(d)) })
	return err
}

// load loads the program of a device; offloadTo is the index of the network device whose hardware
// runs it, 0 for the CPU.
func (s *deviceSet) load(d *device, offloadTo int) error {
	p, err := s.kernel.load(d.index, offloadTo)
	if err == nil {
		s.loaded(d, p)
	}
	return err
}

// isReplaced reports whether a hook was detached from the device for another.
func (s *deviceSet) isReplaced(d *device) bool {
	return slices.ContainsFunc(s.rollbacks, func(r hookRollback) bool { return r.device == d })
}
