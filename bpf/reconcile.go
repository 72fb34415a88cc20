// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// All functions here run in a change of the set.

// start attaches the devices of the configuration to the network devices. It returns an error if
// none can be attached and at least one has to be, or if the context ends. commit completes a start
// that has succeeded.
func (s *deviceSet) start(ctx context.Context, devices []netdev.Device) error {
	s.isStarting = true
	s.noteOwners()
	failures := s.reconcile(ctx, devices, true)
	if err := ctx.Err(); err != nil {
		return err
	}
	failures = append(failures, s.config.unmatched(devices)...)
	isAnyUp := slices.ContainsFunc(s.listed, func(d *device) bool { return d.link != nil || d.prepared != nil })
	if !isAnyUp && !s.config.AllowNone && len(failures) > 0 {
		return joinInOneLine(failures)
	}
	s.logFailures(failures)
	s.warnAtStart(devices)
	return nil
}

// resync attaches devices that have appeared or are to be tried again, and then detaches the hooks
// that no device has taken.
func (s *deviceSet) resync(ctx context.Context, devices []netdev.Device, isRetry bool) {
	if isRetry {
		s.regain()
		s.isNoRoomReported = s.isNoRoomReported && len(s.noIndex) > 0
	}
	s.logFailures(s.reconcile(ctx, devices, isRetry))
	if ctx.Err() != nil || s.isStarting { // a start that fails leaves these hooks
		return
	}
	s.dropUnclaimed()
}

func (s *deviceSet) logFailures(failures []error) {
	for _, err := range failures {
		var absent *absentError
		switch {
		case err == nil:
		case s.config.Follow && errors.As(err, &absent):
			s.logger.Log(context.Background(), absent.level, "Waiting for a device", "reason", err)
		default:
			s.logger.Error("Device is not audited", "err", err)
		}
	}
}

// reconcile brings the set in line with the network devices. Devices that were refused and have not
// changed are tried again only if isRetry, and only if they are due. It returns why devices are not
// attached, as far as that is news. It stops when the context ends.
func (s *deviceSet) reconcile(ctx context.Context, devices []netdev.Device, isRetry bool) (failures []error) {
	here := make(map[string]netdev.Device, len(devices))
	for _, d := range devices {
		d.AltNames, d.HasDefaultRoute = "", false // these do not let a device take a program
		here[d.Name] = d
	}
	s.detachStale(devices)
	wanted := s.noteNames(devices)
	s.claimIndices(wanted)
	for _, name := range netdev.LowersFirst(wanted, devices) {
		if ctx.Err() != nil {
			return failures
		}
		d, err := s.appeared(name)
		switch now, isHere := here[name]; {
		case d == nil:
		case isHere:
			err = s.ensureAttached(d, now, isRetry)
		default:
			err = s.absent(d, devices)
		}
		if err != nil {
			failures = append(failures, err)
		}
	}
	s.forgetNoIndex(here)
	return failures
}

// detachStale takes the hooks from devices that are not what they were: vanished, moved to
// another network namespace, replaced by another device of the name, renamed, or with their
// program detached by force. If devices are followed, the hook of a renamed device waits for
// the new name, and a device that has vanished is noted.
func (s *deviceSet) detachStale(devices []netdev.Device) {
	for _, d := range slices.Clone(s.listed) {
		now, wasUp := withName(d.name, devices), d.link != nil
		if p := d.place(); wasUp && !p.isOn(now) {
			holder := withIndex(d.ifindex, devices)
			switch reason := p.whyDown(holder, nil); {
			case s.config.Follow && holder.Name != d.name && holder.Holds(uint32(d.id)):
				s.renamed(d)
			case s.config.Follow && now.Index == 0:
				s.hookLost(d, reason) // vanished says so
			case s.config.Follow:
				s.hookLost(d, reason)
				s.logger.Warn("Hook is lost: attaching it again when that is possible", "device", d.name, "reason", reason)
			default:
				s.hookLost(d, reason)
				s.logger.Warn("Device is no longer audited: restart the exporter, or use --audit.follow", "device", d.name, "reason", reason)
			}
		}
		wasHere := !d.isGone && d.retry.tried != netdev.Device{}
		if s.config.Follow && now.Index == 0 && wasHere {
			s.vanished(d)
			if wasUp {
				s.logger.Info("Device is gone", "device", d.name)
			}
		}
	}
}

// regain notes a resync, and allows devices that change all the time one more attempt at once,
// if it is time.
func (s *deviceSet) regain() {
	if s.resyncs++; s.resyncs%regainInterval != 0 {
		return
	}
	for _, d := range slices.Concat(s.listed, s.gone) {
		d.retry.regain()
	}
	for name, retry := range s.retries {
		if retry.regain() {
			delete(s.retries, name)
		} else {
			s.retries[name] = retry
		}
	}
}

// withName returns the device of that name; the zero device if there is none.
func withName(name string, devices []netdev.Device) netdev.Device {
	if i := slices.IndexFunc(devices, func(d netdev.Device) bool { return d.Name == name }); i >= 0 {
		return devices[i]
	}
	return netdev.Device{}
}

// withIndex returns the device with that index; the zero device if there is none.
func withIndex(index int, devices []netdev.Device) netdev.Device {
	if i := slices.IndexFunc(devices, func(d netdev.Device) bool { return d.Index == index }); i >= 0 {
		return devices[i]
	}
	return netdev.Device{}
}

// absent returns an error the first time that a named device is looked for and does not exist.
func (s *deviceSet) absent(d *device, devices []netdev.Device) error {
	if d.wasUp || d.isGone {
		return nil
	}
	s.write(func() { d.isGone = true })
	return s.refused(d, netdev.Device{}, noDevice(d.name, devices))
}

// ensureAttached attaches a device that is present, unless it is attached or not due to be tried.
func (s *deviceSet) ensureAttached(d *device, now netdev.Device, isRetry bool) error {
	if d.link != nil || d.prepared != nil || !d.retry.isDue(now, isRetry, d.wasUp) {
		return nil
	}
	s.write(func() { d.isGone = false })
	if err := s.attach(d, now); err != nil {
		return s.refused(d, now, err)
	}
	d.retry.succeeded(now)
	if d.prepared == nil {
		s.announce(d)
	}
	return nil
}

// announce logs that a device is attached.
func (s *deviceSet) announce(d *device) {
	s.logger.Info(fmt.Sprintf("XDP audit hook attached on %s with mode=%s", d.name, d.mode),
		"driver", d.driver, "program_id", d.id, "clock", s.config.Clock)
	if _, isFrozen := s.config.Frozen[d.name]; len(s.config.Frozen) > 0 && !isFrozen {
		s.logger.Warn("Device is not in the saved baseline: scoring it against a baseline that it learns now and that is not saved", "device", d.name)
	}
}

// noteOwners notes which devices the pinned hooks count for.
func (s *deviceSet) noteOwners() {
	s.pinnedFor = map[int]string{}
	for ifindex := range s.unclaimedLinks {
		if !s.isReplacingMaps {
			s.pinnedFor[ifindex] = nameOfHook(s.pool.table.entries, ifindex)
		}
	}
}

// isKept reports whether an unclaimed hook counts for a device that waits for a program.
func (s *deviceSet) isKept(ifindex int) bool {
	return slices.ContainsFunc(s.listed, func(d *device) bool {
		return d.keepsHook && d.link == nil && !d.isGone && d.ifindex == ifindex
	})
}

// dropUnclaimed detaches the hooks that no device of the configuration has taken, except those that
// count for a device whose program could not be loaded: nothing is lost until that is possible.
func (s *deviceSet) dropUnclaimed() {
	for ifindex := range s.unclaimedLinks {
		if s.isKept(ifindex) {
			continue
		}
		name := nameOfHook(s.pool.table.entries, ifindex)
		if devices, err := s.lookUp([]int{ifindex}); name == "" && err == nil {
			// It counted in other maps.
			name = devices[0].Name
		}
		message := "Hook detached from a device that is not in the configuration"
		if s.config.DefaultRoute {
			message = "Hook detached from a device that holds no default route"
		}
		s.logger.Info(message, "device", name, "ifindex", ifindex)
		s.dropUnclaimedOn(ifindex)
	}
}

func (s *deviceSet) dropUnclaimedOn(ifindex int) {
	l, ok := s.unclaimedLinks[ifindex]
	if !ok {
		return
	}
	s.write(func() { delete(s.unclaimedLinks, ifindex) })
	if err := s.dropLink(l, ifindex); err != nil {
		s.logger.Warn("Hook could not be removed", "ifindex", ifindex, "err", err)
	}
}

// dropLink detaches a hook. It unpins the hook first: the kernel detaches at once with the last
// descriptor, but some time after the last pin. If the pin cannot be removed, the next start
// removes it.
func (s *deviceSet) dropLink(l xdpLink, ifindex int) error {
	err := s.kernel.unpin(ifindex)
	if err != nil {
		err = errors.Join(err, l.Detach())
	}
	return errors.Join(err, l.Close())
}
