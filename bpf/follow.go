// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// resyncInterval is how often devices are looked at when the kernel reports nothing: it does not report that a program was
// detached by force, nor that another's program is off a device.
const resyncInterval = 10 * time.Second

// maxPause is the most resyncs from one attempt to the next at a device that never took the program. An attempt has the whole
// program verified and compiled.
const maxPause = 30

func noDevice(name string, ifaces []netdev.Device) error {
	return fmt.Errorf("device %s does not exist: the devices here are %s", name, netdev.Names(ifaces))
}

func noMatch(glob string, ifaces []netdev.Device) error {
	return fmt.Errorf("no device matches %s: the devices here are %s", glob, netdev.Names(ifaces))
}

// checkAnyIsHere returns an error if there is no device to audit and there has to be one. That is known before anything is
// taken from an audit that is pinned, such as the index of a device.
func (c Config) checkAnyIsHere(ifaces []netdev.Device) error {
	if c.AllowNone {
		return nil
	}
	var missing []error
	for _, name := range c.Devices {
		if netdev.Has(name, ifaces) {
			return nil
		}
		missing = append(missing, noDevice(name, ifaces))
	}
	for _, glob := range c.Globs {
		if len(netdev.Match(glob, ifaces)) > 0 {
			return nil
		}
		missing = append(missing, noMatch(glob, ifaces))
	}
	return joinInOneLine(missing)
}

// expandGlobs returns the configuration with the devices that its globs match now in their place.
func (c Config) expandGlobs(ifaces []netdev.Device) (Config, error) {
	c.Devices = slices.Clone(c.Devices)
	for _, glob := range c.Globs {
		names := netdev.Match(glob, ifaces)
		if len(names) == 0 {
			return c, noMatch(glob, ifaces)
		}
		for _, name := range names {
			if !slices.Contains(c.Devices, name) {
				c.Devices = append(c.Devices, name)
			}
		}
	}
	c.Globs = nil
	return c, c.Validate()
}

// Follow attaches devices of the configuration when they appear, and lets go of those that vanish, until the context ends.
// Without Config.Follow it only ends the hooks that were pinned on other devices, and waits for that.
func (a *Audit) Follow(ctx context.Context) error {
	a.changing.Lock()
	a.dropSpare()
	a.changing.Unlock()
	if !a.config.Follow {
		<-ctx.Done()
		return nil
	}
	resync := time.NewTicker(resyncInterval)
	defer resync.Stop()
	var changes *netdev.Subscription
	defer func() { changes.Close() }()
	refusal := ""
	for isRetry := false; ctx.Err() == nil; {
		if changes == nil {
			var err error
			if changes, err = netdev.Subscribe(); err != nil && err.Error() != refusal {
				refusal = err.Error()
				a.logger.Error("Devices are looked for every 10 seconds only", "err", err)
			}
		}
		if err := a.followOnce(isRetry); err != nil {
			a.logger.Error("Devices are not followed", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-resync.C:
			isRetry = true
		case _, isOpen := <-changes.Changes():
			isRetry = false
			if !isOpen { // the kernel had more to say than the socket holds
				changes.Close()
				changes = nil
				continue
			}
		}
	}
	return nil
}

// followOnce compares the devices that there are with those that are audited. Those that were refused and look as they did
// then are tried again if isRetry and they are due.
func (a *Audit) followOnce(isRetry bool) error {
	a.changing.Lock()
	defer a.changing.Unlock()
	if a.isClosed {
		return nil
	}
	ifaces, err := netdev.List()
	if err != nil {
		return err
	}
	for _, err := range a.reconcile(ifaces, isRetry) {
		a.logger.Error("Device is not audited", "err", err)
	}
	a.dropSpare()
	return nil
}

// reconcile attaches the devices of the configuration that are there and not attached, and lets go of the rest. It returns
// what kept devices from being attached, as far as that is not what it was before. a.changing is held.
func (a *Audit) reconcile(ifaces []netdev.Device, isRetry bool) (failures []error) {
	here := make(map[string]netdev.Device, len(ifaces))
	for _, i := range ifaces {
		here[i.Name] = i
	}
	a.letGo(here)
	wanted := slices.Clone(a.config.Devices)
	for _, glob := range a.config.Globs {
		for _, name := range netdev.Match(glob, ifaces) {
			if !slices.Contains(wanted, name) {
				wanted = append(wanted, name)
			}
		}
	}
	for i, name := range wanted {
		isNamed := i < len(a.config.Devices)
		d, err := a.admit(name, isNamed)
		if d != nil {
			err = a.ensureAttached(d, here, ifaces, isRetry)
		}
		if err != nil {
			failures = append(failures, err)
		}
	}
	for name := range a.refused {
		if _, isHere := here[name]; !isHere {
			a.change(func() { delete(a.refused, name) })
		}
	}
	return failures
}

// dropSpare ends the hooks that no device of the configuration has taken, and forgets those that were ended for others.
func (a *Audit) dropSpare() {
	a.forgetEnded()
	for ifindex := range a.spare {
		a.logger.Info("Hook detached from a device that is not to be audited", "ifindex", ifindex)
		a.dropSpareOn(ifindex)
	}
}

func (a *Audit) dropSpareOn(ifindex int) {
	l, ok := a.spare[ifindex]
	if !ok {
		return
	}
	delete(a.spare, ifindex)
	if err := a.dropLink(l, ifindex); err != nil {
		a.logger.Warn("Hook could not be removed", "ifindex", ifindex, "err", err)
	}
}

// letGo takes the hooks from the devices that are no longer what they were: gone, made anew, renamed, or with their hook
// detached by somebody. A hook that still runs is kept for the device's new name.
func (a *Audit) letGo(here map[string]netdev.Device) {
	for _, d := range slices.Clone(a.devices) {
		now, isHere := here[d.name]
		if d.link != nil && (now.Index != d.ifindex || !d.isUp()) {
			if d.isUp() {
				a.spare[d.ifindex] = d.link
			} else if err := a.dropLink(d.link, d.ifindex); err != nil {
				a.logger.Warn("Hook could not be removed", "device", d.name, "err", err)
			}
			a.change(func() { d.link, d.mode = nil, "" })
		}
		if isHere || d.isGone || d.tried == (netdev.Device{}) {
			continue
		}
		a.change(func() {
			d.isGone, d.tried, d.refusal = true, netdev.Device{}, ""
			if !d.isNamed {
				a.devices = slices.DeleteFunc(a.devices, func(other *device) bool { return other == d })
				a.gone = append(a.gone, d)
				a.maps.devices.setGone(d.index, true)
			}
		})
		if d.wasUp {
			a.logger.Info("Device is gone", "device", d.name)
		}
	}
}

// ensureAttached attaches a device if it is there and not attached, and not as it was when that was refused.
func (a *Audit) ensureAttached(d *device, here map[string]netdev.Device, ifaces []netdev.Device, isRetry bool) error {
	now, isHere := here[d.name]
	if d.link != nil {
		return nil
	}
	var err error
	tried := now
	tried.XDP = d.tried.XDP // that changes with every attempt
	switch {
	case !isHere && (d.wasUp || d.isGone):
		return nil
	case isHere && d.refusal != "" && tried == d.tried && (!isRetry || !d.isDue(now)):
		return nil
	case !isHere:
		a.change(func() { d.isGone = true })
		err = noDevice(d.name, ifaces)
	default:
		a.change(func() { d.isGone = false })
		err = a.attach(d, now)
	}
	d.waited, d.pause = 0, min(2*d.pause, maxPause)
	if d.tried != now || d.refusal == "" {
		d.pause = 1
	}
	d.tried = now
	if err == nil {
		d.refusal = ""
		a.logger.Info(fmt.Sprintf("XDP audit hook attached on %s with mode=%s", d.name, d.mode),
			"driver", d.driver, "program_id", d.id, "clock", a.config.Clock)
		if _, isFrozen := a.config.Frozen[d.name]; len(a.config.Frozen) > 0 && !isFrozen {
			a.logger.Warn("Device is not in the saved baseline: it is audited against what it learns, which is not saved", "device", d.name)
		}
		return nil
	}
	if before := d.refusal; before == err.Error() {
		return nil
	}
	d.refusal = err.Error()
	return err
}

// isDue reports whether a device that was refused is to be tried again at a resync: at each one after it was up once, or if it
// looks otherwise than at the last attempt, which includes a program of somebody else that is gone. Else it is after a
// pause, which each attempt doubles.
func (d *device) isDue(now netdev.Device) bool {
	d.waited++
	return d.wasUp || now != d.tried || d.waited >= d.pause
}

// admit returns the device of that name, and gives it an index if it has none.
func (a *Audit) admit(name string, isNamed bool) (*device, error) {
	for _, d := range a.devices {
		if d.name == name {
			return d, nil
		}
	}
	for i, d := range a.gone {
		if d.name == name {
			a.change(func() {
				a.gone = slices.Delete(a.gone, i, i+1)
				a.devices = append(a.devices, d)
				a.maps.devices.setGone(d.index, false)
			})
			return d, nil
		}
	}
	table := a.maps.devices
	index := table.find(name)
	if index < 0 {
		var err error
		if index, err = a.takeIndex(name); err != nil {
			isFirst := len(a.refused) == 0
			if isKnown := a.refused[name]; !isKnown {
				a.change(func() { a.refused[name] = true })
			}
			if errors.Is(err, errNoIndex) && !isFirst {
				return nil, nil
			}
			return nil, err
		}
	}
	d := &device{name: name, index: index, isNamed: isNamed}
	a.change(func() {
		delete(a.refused, name)
		a.devices = append(a.devices, d)
		table.setGone(index, false)
	})
	a.events.setOwner(index, eventOwner{id: table.owner(index), name: name, received: &table.entries[index].received})
	return d, nil
}

// takeIndex gives a device an index, that of one which vanished if no other is left.
func (a *Audit) takeIndex(name string) (int, error) {
	table := a.maps.devices
	index, err := table.choose()
	if err != nil {
		return 0, fmt.Errorf("device %s: %w: there are %d, for more raise the maximum of devices (--audit.max-devices)",
			name, err, len(table.entries))
	}
	if table.entries[index].generation > 0 {
		if err := a.clearIndex(index); err != nil {
			return 0, err
		}
	}
	a.events.retire(index) // before its count begins anew
	a.change(func() { err = table.take(index, name) })
	return index, err
}

// clearIndex leaves nothing of the device that had the index, and no program that counts there.
func (a *Audit) clearIndex(index int) error {
	a.dropSpareOn(int(a.maps.devices.entries[index].ifindex))
	var err error
	a.change(func() {
		a.maps.devices.release(index)
		for _, d := range a.gone {
			if d.index == index {
				err = d.unload()
			}
		}
		a.gone = slices.DeleteFunc(a.gone, func(d *device) bool { return d.index == index })
	})
	awaitPrograms()
	a.change(func() {
		a.maps.devices.entries[index].goneFlows += a.counters.netInserts(index)
		err = errors.Join(err, a.maps.clearCounters(index))
		a.counters.reset(index)
	})
	return err
}

// takeOver opens the hooks that are pinned, for the devices that they are on, and accounts for the events that nobody can
// read any more.
func (a *Audit) takeOver() error {
	var err error
	if a.spare, err = a.pins.loadLinks(); err != nil {
		return err
	}
	table := a.maps.devices
	for i := range table.entries {
		if table.entries[i].goneNs == 0 {
			table.setGone(i, true)
		}
	}
	if !a.maps.isTakenOver {
		return nil
	}
	rings := a.maps.byName[programMapAuditEvents]
	for ring := range rings.MaxEntries() {
		// The kernel has emptied them when the process ended, or is about to.
		_ = rings.Delete(ring)
	}
	awaitPrograms()
	var left uint64
	for i := range table.entries {
		e := &table.entries[i]
		if !e.isTaken() {
			continue
		}
		var counters Counters
		a.counters.read(i, &counters)
		if sent := counters.Fates[FateSent]; sent > e.received+e.gap {
			left += sent - e.received - e.gap
			e.gap = sent - e.received
		}
	}
	a.logger.Info("Audit taken over, with its counters and baselines", "path", a.pins.path, "hooks", len(a.spare), "reader_gap", left)
	return nil
}

// DeviceSlots returns how many devices there is room for, have a place, and have none. It is zero after [Audit.Close].
func (a *Audit) DeviceSlots() DeviceSlots {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.maps == nil {
		return DeviceSlots{}
	}
	entries := a.maps.devices.entries
	slots := DeviceSlots{Total: len(entries), Used: len(a.devices), Refused: len(a.refused)}
	for i := range entries {
		slots.GoneFlows += entries[i].goneFlows
		isShown := slices.ContainsFunc(a.devices, func(d *device) bool { return d.index == i && d.program != nil && !d.isGone })
		if !isShown {
			slots.GoneFlows += a.counters.netInserts(i)
		}
	}
	return slots
}
