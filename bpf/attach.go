// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"

	"github.com/cilium/ebpf"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// attachedModes are the modes as a network device reports them.
var attachedModes = map[Mode]netdev.XDPMode{ModeDriver: netdev.XDPDriver, ModeGeneric: netdev.XDPGeneric}

// attach attaches the program of a device to a network device. If one of the set's hooks is on that
// already, its program is replaced. Otherwise the program is attached in the first mode of the
// configuration that the network device accepts. During a start, a hook may only be prepared: then
// the device has accepted it, and commit starts its program.
func (s *deviceSet) attach(d *device, on netdev.Device) (err error) {
	driver := s.kernel.driver(d.name)
	s.write(func() { d.ifindex, d.driver, d.mode = on.Index, driver, "" })
	if err := s.config.checkLink(on); err != nil {
		return err
	}
	s.setLink(d, on)
	isNewIndex := !d.hasIndex()
	id, isDisplacing, err := s.identify(d)
	if err != nil {
		return err
	}
	id.linkLayer, id.boundTo = d.linkLayer, d.boundTo
	if isNewIndex && (!isDisplacing || s.config.Mode == ModeHW) {
		if err := s.takeIndex(d, id); err != nil {
			return err
		}
		isDisplacing = false
		defer func() {
			if err != nil {
				s.returnIndex(d)
			}
		}()
	}
	if !isDisplacing {
		s.write(func() { s.pool.table.entries[d.index].ifindex = uint32(on.Index) })
	}
	if s.config.Mode == ModeHW {
		return s.attachOffloaded(d)
	}
	h, err := s.prepare(d, id, on, isDisplacing)
	if err != nil {
		return err
	}
	h.isDeferred = s.isStarting && (isDisplacing || s.isReplacingMaps)
	s.write(func() { d.prepared = h })
	if h.isDeferred {
		return nil
	}
	return s.settle(d)
}

// modes returns the modes to try on a device, in their order.
func (s *deviceSet) modes(d *device) []Mode {
	switch {
	case s.config.Mode == ModeAuto && d.linkLayer == netdev.LinkIP:
		return []Mode{ModeGeneric}
	case s.config.Mode == ModeAuto:
		return []Mode{ModeDriver, ModeGeneric}
	}
	return []Mode{s.config.Mode}
}

// attachNew attaches a program in the first mode that the network device accepts. If the device
// refuses a mode and says what to change, no other mode is tried: generic mode is slower, and sees
// merged frames.
func (s *deviceSet) attachNew(d *device, p *loadedProgram) (xdpLink, Mode, error) {
	var refusals []error
	for _, mode := range s.modes(d) {
		l, err := s.kernel.attach(p, d.ifindex, mode)
		if err != nil {
			reason := s.kernel.explain(d, p, mode, err)
			var r *refusal
			if errors.As(reason, &r) && r.namesCure {
				return nil, "", reason // another mode would hide it
			}
			refusals = append(refusals, reason)
			continue
		}
		if len(refusals) > 0 {
			s.logger.Warn("Native mode was refused: auditing in generic mode, which is slower and sees merged frames",
				"device", d.name, "err", errors.Join(refusals...))
		}
		return l, mode, nil
	}
	return nil, "", refusals[len(refusals)-1]
}

// claimLink returns the one of the set's hooks that is on a network device, with its mode; nil if
// there is none.
func (s *deviceSet) claimLink(d *device, on netdev.Device) (xdpLink, Mode) {
	l, ok := s.unclaimedLinks[on.Index]
	if !ok {
		return nil, ""
	}
	s.write(func() { delete(s.unclaimedLinks, on.Index) })
	delete(s.pinnedFor, on.Index)
	mode := modeOf(on.XDP)
	if mode != "" && l.isOn(on.Index, ebpf.ProgramID(on.Program)) {
		return l, mode
	}
	s.logger.Info("Hook detached that is not on this device, but on one with its index in another network namespace", "device", d.name)
	if err := s.dropLink(l, on.Index); err != nil {
		s.logger.Warn("Hook could not be removed", "device", d.name, "err", err)
	}
	return nil, ""
}

// attachOffloaded loads the program for the hardware of the device, and attaches it there. The
// kernel refuses to load it if the driver has no offload.
func (s *deviceSet) attachOffloaded(d *device) error {
	err := s.load(d, d.ifindex)
	if err == nil {
		var l xdpLink
		if l, err = s.kernel.attach(d.program, d.ifindex, ModeHW); err == nil {
			s.attached(d, d.program, l, ModeHW)
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
	id := s.pool.table.identity(d.index)
	id.linkLayer, id.boundTo = d.linkLayer, d.boundTo
	p, err := s.kernel.load(id, offloadTo)
	if err == nil {
		s.loaded(d, p)
	}
	return err
}
