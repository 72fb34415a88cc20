// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// preparedHook is a hook that its network device has accepted, and whose program is loaded and not
// attached yet. Until the program is attached, nothing is lost that the program would displace: the
// hook and the counters of the device whose index it takes, or counters of another layout.
type preparedHook struct {
	link        xdpLink
	mode        Mode
	attached    ebpf.ProgramID  // the program that the link holds
	isTakenOver bool            // the link is one of the set's hooks, and counts meanwhile
	isDeferred  bool            // commit attaches the program, and may have no privileges
	program     *loadedProgram  // of the device
	identity    *deviceIdentity // with the index of a gone device; nil if the device has an index
	placeholder *loadedProgram  // set with identity; a new link has it attached
	isVacated   bool            // no program counts in the index of identity
}

// prepare loads the program of a device, and finds out whether a network device accepts it.
func (s *deviceSet) prepare(d *device, id deviceIdentity, on netdev.Device, isDisplacing bool) (h *preparedHook, err error) {
	h = &preparedHook{program: d.program}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.discard(d, h))
		}
	}()
	if h.program == nil || d.isStale {
		h.program, err = s.kernel.load(id, 0)
		d.keepsHook = err != nil && s.pinnedFor[on.Index] == d.name
		if err != nil {
			return h, explainLoad(err)
		}
	}
	first := h.program
	if isDisplacing {
		h.identity = &id
		if h.placeholder, err = s.kernel.loadPlaceholder(); err != nil {
			return h, explainLoad(err)
		}
		first = h.placeholder
	}
	if h.link, h.mode = s.claimLink(d, on); h.link != nil {
		h.isTakenOver, h.attached = true, ebpf.ProgramID(on.Program)
		if !slices.Contains(s.modes(d), h.mode) {
			return h, s.changeMode(d, h)
		}
		return h, nil
	}
	h.attached = first.id
	h.link, h.mode, err = s.attachNew(d, first)
	return h, err
}

// settle attaches the program of a prepared hook.
func (s *deviceSet) settle(d *device) (err error) {
	h, hadIndex := d.prepared, d.hasIndex()
	s.write(func() { d.prepared = nil })
	defer func() {
		if err == nil {
			return
		}
		err = errors.Join(err, s.discard(d, h))
		if !hadIndex && d.hasIndex() {
			s.returnIndex(d)
		}
	}()
	if h.identity != nil {
		if err := s.displace(d, h); err != nil {
			return err
		}
	}
	if h.isTakenOver || h.placeholder != nil {
		if err := s.startProgram(d, h); err != nil {
			return err
		}
	}
	if !h.isTakenOver {
		if err := s.kernel.pin(h.link, d.ifindex, true); err != nil {
			return err
		}
	}
	s.attached(d, h.program, h.link, h.mode)
	if h.placeholder != nil {
		s.closeProgram(d, h.placeholder)
	}
	return nil
}

// startProgram replaces the program of a hook by that of the device. If that is not possible, one
// of the set's hooks is replaced by a new one, but not in a commit, which needs no privileges: the
// device is then tried again like one that was refused.
func (s *deviceSet) startProgram(d *device, h *preparedHook) error {
	err := h.link.replace(h.program)
	if err == nil {
		return nil
	}
	if !h.isTakenOver || h.isDeferred {
		return fmt.Errorf("starting the program on device %s: %w", d.name, err)
	}
	old := h.link.program()
	if old == nil {
		return s.reattach(d, h, h.program, h.program, err)
	}
	defer s.closeProgram(d, old)
	return s.reattach(d, h, h.program, old, err)
}

// displace takes the index of a gone device.
func (s *deviceSet) displace(d *device, h *preparedHook) error {
	if !h.isVacated {
		if err := s.vacateFor(d, h); err != nil {
			return err
		}
		awaitPrograms()
	}
	if err := s.assign(d, *h.identity); err != nil {
		return err
	}
	s.write(func() { s.pool.table.entries[d.index].ifindex = uint32(d.ifindex) })
	return nil
}

// vacateFor detaches the hook that counts in the index which a device is to take, or replaces its
// program by the placeholder. Its program may run until awaitPrograms.
func (s *deviceSet) vacateFor(d *device, h *preparedHook) error {
	if !h.link.isOn(d.ifindex, h.attached) {
		return fmt.Errorf("device %s has vanished", d.name)
	}
	if err := s.silence(d, h); err != nil {
		return err
	}
	s.vacate(h.identity.index)
	return nil
}

// silence puts the placeholder on the hook that counts in the index which a device is to take, if a
// device has prepared that hook: the network device was renamed.
func (s *deviceSet) silence(d *device, h *preparedHook) error {
	ifindex := int(s.pool.table.entries[h.identity.index].ifindex)
	for _, other := range s.listed {
		p := other.prepared
		if other == d {
			p = h
		}
		if p == nil || !p.isTakenOver || other.ifindex != ifindex {
			continue
		}
		if err := p.link.replace(h.placeholder); err != nil {
			return fmt.Errorf("taking over the hook of device %s: %w", other.name, err)
		}
		p.attached = h.placeholder.id
	}
	return nil
}

// discard gives up a prepared hook. One of the set's hooks goes on as it was.
func (s *deviceSet) discard(d *device, h *preparedHook) (err error) {
	s.write(func() { err = s.discardLocked(d, h) })
	return err
}

// discardLocked is discard for a caller that holds the lock.
func (s *deviceSet) discardLocked(d *device, h *preparedHook) error {
	var errs []error
	switch {
	case h.link == nil:
	case h.isTakenOver:
		s.unclaimedLinks[d.ifindex] = h.link
	default:
		errs = append(errs, h.link.Close())
	}
	for _, p := range []*loadedProgram{h.program, h.placeholder} {
		if p != nil && p != d.program {
			errs = append(errs, s.kernel.unload(p))
		}
	}
	return errors.Join(errs...)
}

// vacateAll vacates the indices that prepared devices are to take. What fails is tried again for
// the device alone, which reports it.
func (s *deviceSet) vacateAll(devices []*device) {
	isAny := false
	for _, d := range devices {
		if h := d.prepared; h.identity != nil {
			h.isVacated = s.vacateFor(d, h) == nil
			isAny = isAny || h.isVacated
		}
	}
	if isAny {
		awaitPrograms()
	}
}

// commit ends a start that has succeeded: it attaches the programs of all prepared hooks, and
// detaches the hooks that no device of the configuration has taken. It is not interrupted: it has
// displaced audits, and swapping programs takes milliseconds. Hooks that count meanwhile get their
// programs first, so that few packets pass a placeholder. All indices of a group are vacated at
// once, because awaitPrograms takes longer than everything else.
func (s *deviceSet) commit() {
	for _, isTakenOver := range []bool{true, false} {
		var group []*device
		for _, d := range s.listed {
			if d.prepared != nil && d.prepared.isTakenOver == isTakenOver {
				group = append(group, d)
			}
		}
		s.vacateAll(group)
		for _, d := range group {
			if err := s.settle(d); err != nil {
				s.logFailures([]error{s.refused(d, d.retry.tried, err)})
				continue
			}
			s.announce(d)
		}
	}
	s.isStarting = false
	for _, d := range s.listed {
		if _, isUnclaimed := s.unclaimedLinks[d.ifindex]; isUnclaimed && s.isKept(d.ifindex) {
			s.logger.Warn("Hook of the process before counts on, and its counters are not shown", "device", d.name)
		}
	}
	s.dropUnclaimed()
}
