// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// endedHook is a hook that was taken off a device so that it could get one in another mode: the kernel has no other way.
type endedHook struct {
	device  *device
	mode    Mode
	program *ebpf.Program // nil if it may not be opened, which takes CAP_SYS_ADMIN
}

// noteEnded remembers a hook that is about to be ended; mode is as the device tells it.
func (a *Audit) noteEnded(d *device, l link.Link, mode netdev.XDPMode) {
	for m, attached := range attachedModes {
		if attached != mode {
			continue
		}
		ended := endedHook{device: d, mode: m}
		if info, err := l.Info(); err == nil {
			ended.program, _ = ebpf.NewProgramFromID(info.Program)
		}
		a.ended = append(a.ended, ended)
	}
}

// restoreEnded puts the hooks that were ended back on their devices, and pins them as they were. Where the program that was
// there may not be opened, that of this process goes on in its place.
func (a *Audit) restoreEnded() error {
	var errs []error
	for _, ended := range a.ended {
		if err := a.restore(ended); err != nil {
			errs = append(errs, fmt.Errorf("device %s is no longer audited in mode %s as it was: %w", ended.device.name, ended.mode, err))
		}
	}
	a.forgetEnded()
	return errors.Join(errs...)
}

func (a *Audit) restore(ended endedHook) error {
	d := ended.device
	program := ended.program
	if program == nil {
		if d.program == nil {
			if err := a.loadProgram(d.index, d, 0); err != nil {
				return explainLoad(err)
			}
		}
		program = d.program
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: d.ifindex, Flags: attachFlags[ended.mode]})
	if err != nil {
		return err
	}
	if a.pins != nil {
		err = a.pins.pinLink(l, d.ifindex)
	}
	if err := errors.Join(err, l.Close()); err != nil {
		return err
	}
	a.logger.Info("Hook restored as it was", "device", d.name, "mode", ended.mode)
	return nil
}

// forgetEnded closes the programs of the hooks that were ended.
func (a *Audit) forgetEnded() {
	for _, ended := range a.ended {
		if ended.program == nil {
			continue
		}
		if err := ended.program.Close(); err != nil {
			a.logger.Warn("Program could not be closed", "device", ended.device.name, "err", err)
		}
	}
	a.ended = nil
}
