// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// hookRollback is a hook that was detached so that its device could get a hook in another mode: the
// kernel has no other way to change the mode. It is restored if the start fails.
type hookRollback struct {
	device  *device
	mode    Mode
	program *loadedProgram // nil if it may not be opened
}

// noteRollback remembers a hook that is about to be detached.
func (s *deviceSet) noteRollback(d *device, l xdpLink, attached netdev.XDPMode) {
	for mode := range attachedModes {
		if attachedModes[mode] == attached {
			r := hookRollback{d, mode, l.program()}
			s.write(func() { s.rollbacks = append(s.rollbacks, r) })
		}
	}
}

// rollBack restores the hooks that were detached, and pins them as they were. If the program of a
// hook may not be opened, the hook gets that of this process.
func (s *deviceSet) rollBack() error {
	var errs []error
	for _, r := range s.rollbacks {
		if r.device.link != nil {
			continue // it has its new hook
		}
		if err := s.restore(r); err != nil {
			errs = append(errs, fmt.Errorf("device %s is no longer audited in mode %s as before the start: %w", r.device.name, r.mode, err))
		}
	}
	s.forgetRollbacks()
	return errors.Join(errs...)
}

func (s *deviceSet) restore(r hookRollback) error {
	d, p := r.device, r.program
	if h := d.prepared; h != nil {
		s.write(func() { d.prepared = nil })
		if err := s.discard(d, h); err != nil {
			return err
		}
	}
	if p == nil && !d.hasIndex() {
		return errors.New("its program may not be opened")
	}
	if p == nil {
		if d.program == nil {
			if err := s.load(d, 0); err != nil {
				return explainLoad(err)
			}
		}
		p = d.program
	}
	l, err := s.kernel.attach(p, d.ifindex, r.mode)
	if err != nil {
		return err
	}
	if err := errors.Join(s.kernel.pin(l, d.ifindex, false), l.Close()); err != nil {
		return err
	}
	s.logger.Info("Hook restored as it was before the start", "device", d.name, "mode", r.mode)
	return nil
}

// forgetRollbacks closes the programs of the hooks that were detached.
func (s *deviceSet) forgetRollbacks() {
	for _, r := range s.rollbacks {
		if r.program == nil {
			continue
		}
		if err := s.kernel.unload(r.program); err != nil {
			s.logger.Warn("Program could not be closed", "device", r.device.name, "err", err)
		}
	}
	s.write(func() { s.rollbacks = nil })
}
