// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// A link holds its program on a network device wherever that is: the device may be renamed, or
// moved to another network namespace, where its index stays the same if it is free. So a hook
// is up only if a device of this namespace with the name and the index runs the program, and
// has the link type that the program parses.

// place is where a device is to run its program.
type place struct {
	name    string
	ifindex int // 0 while the device is not attached
	program ebpf.ProgramID
	link    netdev.LinkLayer // that the program parses
	reason  string           // why it is not attached
}

// isOn reports whether a network device is that place and runs the program.
func (p place) isOn(now netdev.Device) bool {
	return p.ifindex != 0 && now.Index == p.ifindex && now.Name == p.name && now.Link == p.link && now.Holds(uint32(p.program))
}

func (d *device) place() place {
	p := place{name: d.name, program: d.id, link: d.linkLayer, reason: d.reason}
	if d.link != nil {
		p.ifindex = d.ifindex
	}
	return p
}

// hooks returns the state of each listed device, also after close. The kernel is asked without the
// lock: it answers after a change of a network device that is under way.
func (s *deviceSet) hooks() []Hook {
	s.mu.Lock()
	hooks, places := make([]Hook, len(s.listed)), make([]place, len(s.listed))
	var indices []int
	for i, d := range s.listed {
		places[i] = d.place()
		hooks[i] = Hook{
			Device: d.name, Mode: string(d.mode), Driver: d.driver, Clock: string(s.config.Clock),
			ProgramID: uint32(d.id), ProgramTag: d.tag,
		}
		if places[i].ifindex != 0 {
			indices = append(indices, places[i].ifindex)
		}
	}
	s.mu.Unlock()

	here := map[int]netdev.Device{}
	devices, err := s.lookUp(indices)
	for _, now := range devices {
		here[now.Index] = now
	}
	for i := range hooks {
		now := here[places[i].ifindex]
		hooks[i].Up = places[i].isOn(now)
		if hooks[i].Up {
			hooks[i].Received = now.Received
		} else {
			hooks[i].Mode, hooks[i].Reason = "", places[i].whyDown(now, err)
		}
	}
	return hooks
}

// lookUp returns the network devices with these indices.
func (s *deviceSet) lookUp(indices []int) ([]netdev.Device, error) {
	if len(indices) == 0 {
		return nil, nil
	}
	return s.kernel.lookUp(indices...)
}

// whyDown returns why the hook is not up on the device that has the index now, if the kernel could
// be asked.
func (p place) whyDown(now netdev.Device, err error) string {
	switch {
	case p.ifindex == 0 && p.reason == "":
		return "it is not attached yet"
	case p.ifindex == 0:
		return p.reason
	case err != nil:
		return err.Error()
	case now.Index != p.ifindex:
		return "the device was removed, or moved to another network namespace"
	case now.Name != p.name:
		return fmt.Sprintf("the device was renamed to %s", now.Name)
	case now.Link != p.link:
		return "the link type of the device has changed"
	}
	return "another process has detached or replaced its program, or the device was replaced by another one of the same name"
}

// ready returns nil if a device is audited, and otherwise an error that says why none is. It asks
// the kernel for one device after the other, so that the answer costs little: clients without a
// password may be able to ask.
func (s *deviceSet) ready() error {
	const maxReasons = 3
	s.mu.Lock()
	places := make([]place, len(s.listed))
	for i, d := range s.listed {
		places[i] = d.place()
	}
	s.mu.Unlock()
	var reasons []string
	for _, p := range places {
		var now netdev.Device
		var err error
		if p.ifindex != 0 {
			var devices []netdev.Device
			if devices, err = s.kernel.lookUp(p.ifindex); err == nil {
				now = devices[0]
			}
			if p.isOn(now) {
				return nil
			}
		}
		reasons = append(reasons, p.name+": "+p.whyDown(now, err))
	}
	if len(reasons) == 0 && s.config.DefaultRoute {
		return errors.New("no device is audited: none holds a default route")
	}
	if len(reasons) == 0 {
		return fmt.Errorf("no device is audited: no device matches %s", strings.Join(s.config.Globs, ", "))
	}
	if more := len(reasons) - maxReasons; more > 0 {
		reasons = append(reasons[:maxReasons], fmt.Sprintf("and %d more", more))
	}
	return errors.New("no device is audited: " + strings.Join(reasons, "; "))
}
