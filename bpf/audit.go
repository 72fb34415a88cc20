// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// Audit is a running audit: the programs attached to the devices, and the maps that they share.
type Audit struct {
	config  Config
	logger  *slog.Logger
	maps    *auditMaps
	events  *eventReader
	watcher *watcher // nil unless flows are watched
	pins    *pins    // nil unless maps and hooks are pinned

	changing sync.Mutex        // held while devices are attached and let go
	spare    map[int]link.Link // hooks without a device, by the index of the device that they are on
	ended    []endedHook       // taken off devices for others, until it is known how that went
	refused  map[string]bool   // devices for which there is no index

	mu       sync.Mutex // guards what follows, and the devices; taken after changing
	devices  []*device  // the named ones, then those that match a glob
	gone     []*device  // those that matched a glob and have vanished, but still have their index
	counters *counterReader
	isClosed bool
}

// device is one audited device. It has a program once it was attached for the first time, and a link while it is.
type device struct {
	name    string
	index   int
	isNamed bool // by the configuration, and not only matched by a glob
	isGone  bool // there is no such device now
	ifindex int
	mode    Mode
	driver  string
	program *ebpf.Program
	tag     string
	id      ebpf.ProgramID
	link    link.Link

	wasUp   bool          // it was attached once
	tried   netdev.Device // the device as it was at the last attempt
	refusal string        // of the last attempt; empty if it succeeded
	pause   int           // resyncs from the last attempt to the next, if that was refused
	waited  int           // of these
}

// Open loads the program for each device and attaches it. The error says what stands in the way and what helps; then
// nothing is left attached that was not before. If some but not all devices can be attached, the others are logged and have
// a [Hook] that is not up. The audit ends with [Audit.Close], or with [Audit.Abandon] if what it was opened for then fails.
// A hook that was pinned on a device which is not configured any more goes on until [Audit.Follow] or Close.
func Open(config Config, logger *slog.Logger) (audit *Audit, err error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if err := checkCapabilities(); err != nil {
		return nil, err
	}
	ifaces, err := netdev.List()
	if err != nil {
		return nil, err
	}
	if err := config.checkAnyIsHere(ifaces); err != nil {
		return nil, err
	}
	if !config.Follow {
		if config, err = config.expandGlobs(ifaces); err != nil {
			return nil, err
		}
	}
	audit, err = load(config, rand.Reader, logger)
	if err != nil {
		return nil, err
	}
	err = audit.attachAll(ifaces)
	if err == nil {
		err = audit.maps.replacePins(audit.pins, logger)
	}
	if err != nil {
		return nil, errors.Join(err, audit.Abandon())
	}
	return audit, nil
}

// load creates the maps and their readers, or takes over those that are pinned, and attaches nothing. The keys of the hash
// of flows are read from keys.
func load(config Config, keys io.Reader, logger *slog.Logger) (audit *Audit, err error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("raising the limit of locked memory: %w", err)
	}
	if err := checkKernel(); err != nil {
		return nil, err
	}
	a := &Audit{config: config, logger: logger, spare: map[int]link.Link{}, refused: map[string]bool{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Abandon())
		}
	}()
	if config.PinPath != "" {
		if a.pins, err = openPins(config.PinPath); err != nil {
			return nil, err
		}
	}
	if a.maps, err = newAuditMaps(config, keys, a.pins); err != nil {
		return nil, err
	}
	devices := len(a.maps.devices.entries)
	if a.counters, err = mapCounters(a.maps.byName[programMapAuditCounters], a.maps.cpus, devices, config); err != nil {
		return nil, err
	}
	if a.pins != nil {
		if err := a.takeOver(); err != nil {
			return nil, err
		}
	}
	if a.events, err = newEventReader(a.maps, config, devices); err != nil {
		return nil, err
	}
	if config.Watches > 0 {
		if a.watcher, err = newWatcher(a.maps, config); err != nil {
			return nil, err
		}
	}
	for _, name := range config.Devices {
		if _, err := a.admit(name, true); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// attachAll attaches every device that can be, and fails if none can.
func (a *Audit) attachAll(ifaces []netdev.Device) error {
	a.changing.Lock()
	defer a.changing.Unlock()
	failed := a.reconcile(ifaces, true)
	for _, glob := range a.config.Globs {
		if len(netdev.Match(glob, ifaces)) == 0 {
			failed = append(failed, noMatch(glob, ifaces))
		}
	}
	attached := slices.ContainsFunc(a.devices, func(d *device) bool { return d.link != nil })
	if !attached && !a.config.AllowNone && len(failed) > 0 {
		return errors.Join(joinInOneLine(failed), a.restoreEnded())
	}
	for _, err := range failed {
		a.logger.Error("Device is not audited", "err", err)
	}
	a.forgetEnded()
	return nil
}

// attach puts the program on a device, in the place of one that is on it already if that is ours, or else in the first mode
// that the device takes.
func (a *Audit) attach(d *device, on netdev.Device) (err error) {
	driver := netdev.Driver(d.name)
	a.change(func() {
		d.ifindex, d.driver, d.mode = on.Index, driver, ""
		a.maps.devices.entries[d.index].ifindex = uint32(on.Index)
	})
	if a.config.Mode == ModeHW {
		return a.attachOffloaded(d)
	}
	if d.program == nil {
		if err := a.loadProgram(d.index, d, 0); err != nil {
			return explainLoad(err)
		}
		defer func() {
			if err != nil && !d.wasUp {
				a.change(func() { err = errors.Join(err, d.unload()) })
			}
		}()
	}
	modes := []Mode{a.config.Mode}
	if a.config.Mode == ModeAuto {
		modes = []Mode{ModeDriver, ModeGeneric}
	}
	if a.replaceProgram(d, on, modes) {
		return nil
	}
	var refusals []error
	for _, mode := range modes {
		l, err := link.AttachXDP(link.XDPOptions{Program: d.program, Interface: d.ifindex, Flags: attachFlags[mode]})
		if err != nil {
			refusals = append(refusals, explainRefusal(d, mode, err))
			continue
		}
		if err := a.pinNewLink(l, d); err != nil {
			return errors.Join(err, l.Close())
		}
		a.change(func() { d.link, d.mode, d.wasUp = l, mode, true })
		if len(refusals) > 0 {
			a.logger.Warn("Native mode was refused: auditing in generic mode, which is slower and sees merged frames",
				"device", d.name, "err", errors.Join(refusals...))
		}
		return nil
	}
	return refusals[len(refusals)-1]
}

// replaceProgram swaps the program of a hook that is on the device already, without a packet in between. It reports whether
// that was possible; if not, that hook is gone.
func (a *Audit) replaceProgram(d *device, on netdev.Device, modes []Mode) bool {
	l, ok := a.spare[on.Index]
	if !ok {
		return false
	}
	delete(a.spare, on.Index)
	var err error
	for _, mode := range modes {
		if attachedModes[mode] != on.XDP {
			continue
		}
		if err = l.Update(d.program); err == nil {
			a.change(func() { d.link, d.mode, d.wasUp = l, mode, true })
			return true
		}
	}
	a.logger.Info("Hook is attached anew, because its program cannot be replaced", "device", d.name, "mode", a.config.Mode, "err", err)
	a.noteEnded(d, l, on.XDP)
	if err := a.dropLink(l, on.Index); err != nil {
		a.logger.Warn("Hook could not be removed", "device", d.name, "err", err)
	}
	return false
}

// attachOffloaded tries to run the program on the device itself. Loading for a device fails in the kernel where its
// driver has no offload.
func (a *Audit) attachOffloaded(d *device) error {
	var l link.Link
	err := a.loadProgram(d.index, d, uint32(d.ifindex))
	if err == nil {
		l, err = link.AttachXDP(link.XDPOptions{Program: d.program, Interface: d.ifindex, Flags: link.XDPOffloadMode})
	}
	if err != nil {
		err = explainRefusal(d, ModeHW, err)
		a.change(func() { err = errors.Join(err, d.unload()) })
		return err
	}
	a.change(func() { d.link, d.mode, d.wasUp = l, ModeHW, true })
	return nil
}

// change calls f while nobody reads the devices.
func (a *Audit) change(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

// pinNewLink pins a hook that this process has attached, if hooks are pinned. One in the place of a hook that was pinned
// before is not new: it goes on if the start fails.
func (a *Audit) pinNewLink(l link.Link, d *device) error {
	if a.pins == nil {
		return nil
	}
	if err := a.pins.pinLink(l, d.ifindex); err != nil {
		return err
	}
	if !slices.ContainsFunc(a.ended, func(ended endedHook) bool { return ended.device == d }) {
		a.pins.newLinks[d.ifindex] = l
	}
	return nil
}

// dropLink ends a hook. It is unpinned first: the kernel detaches at once with the last descriptor, but some time after the
// last pin.
func (a *Audit) dropLink(l link.Link, ifindex int) error {
	var err error
	if a.pins != nil {
		err = a.pins.unpinLink(ifindex)
	}
	return errors.Join(err, l.Close())
}

var attachFlags = map[Mode]link.XDPAttachFlags{ModeDriver: link.XDPDriverMode, ModeGeneric: link.XDPGenericMode}

// attachedModes are the modes as a device tells them.
var attachedModes = map[Mode]netdev.XDPMode{ModeDriver: netdev.XDPDriver, ModeGeneric: netdev.XDPGeneric}

// loadProgram loads the instance of the program for the device with that index; ifindex is 0 unless it is to be
// offloaded.
func (a *Audit) loadProgram(index int, d *device, ifindex uint32) error {
	spec, err := a.maps.programSpec(a.config, index)
	if err != nil {
		return err
	}
	spec.Programs[programProgXdpAudit].Ifindex = ifindex
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: a.maps.byName})
	if err != nil {
		return err
	}
	defer collection.Close()
	info, err := collection.Programs[programProgXdpAudit].Info()
	if err != nil {
		return fmt.Errorf("reading back the program: %w", err)
	}
	id, _ := info.ID()
	a.change(func() {
		d.program, d.id, d.tag = collection.DetachProgram(programProgXdpAudit), id, info.Tag
	})
	return nil
}

// isUp reports whether the kernel still runs the program on the device: a link outlives its device, but not its index.
// A kernel before 5.19 tells of a link to the privileged only, and of the device to everyone.
func (d *device) isUp() bool {
	if d.link == nil {
		return false
	}
	info, err := d.link.Info()
	if errors.Is(err, unix.EPERM) {
		return d.id != 0 && netdev.ProgramID(d.ifindex) == uint32(d.id)
	}
	return err == nil && info.XDP() != nil && int(info.XDP().Ifindex) == d.ifindex
}

// unload gives up the hook of the device, which detaches it unless it is pinned, and forgets its program.
func (d *device) unload() error {
	var errs []error
	if d.link != nil {
		errs = append(errs, d.link.Close())
	}
	if d.program != nil {
		errs = append(errs, d.program.Close())
	}
	d.link, d.program = nil, nil
	return errors.Join(errs...)
}

// Close detaches every device, or leaves the hooks to the process after this one if they are pinned, and gives back all that
// the audit holds.
func (a *Audit) Close() error {
	a.changing.Lock()
	defer a.changing.Unlock()
	a.dropSpare()
	return a.release()
}

// release gives back all that the audit holds. Hooks that are pinned go on. a.changing is held.
func (a *Audit) release() error {
	var errs []error
	if a.events != nil {
		errs = append(errs, a.events.close()) // before the table that it counts in is unmapped
	}
	if a.watcher != nil {
		errs = append(errs, a.watcher.close())
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.isClosed = true
	for _, d := range slices.Concat(a.devices, a.gone) {
		if err := d.unload(); err != nil {
			errs = append(errs, fmt.Errorf("detaching %s: %w", d.name, err))
		}
	}
	for _, l := range a.spare {
		errs = append(errs, l.Close())
	}
	if a.counters != nil {
		errs = append(errs, a.counters.close())
		a.counters = nil
	}
	if a.maps != nil {
		errs = append(errs, a.maps.close())
		a.maps = nil
	}
	if a.pins != nil {
		errs = append(errs, a.pins.close())
		a.pins = nil
	}
	return errors.Join(errs...)
}

// Abandon is Close for a start that failed: hooks that were pinned before go on, and nothing else stays attached or pinned.
// It needs no capability, but it has to be able to remove files from the folder of the pins.
func (a *Audit) Abandon() error {
	a.changing.Lock()
	defer a.changing.Unlock()
	var err error
	if a.pins != nil {
		err = a.pins.discardNew()
	}
	return errors.Join(err, a.release())
}

// Slots returns the slots of the flow table.
func (a *Audit) Slots() int { return a.config.Slots() }

// Hooks returns the state of every configured device, in the order of the configuration.
func (a *Audit) Hooks() []Hook {
	a.mu.Lock()
	defer a.mu.Unlock()
	hooks := make([]Hook, len(a.devices))
	for i, d := range a.devices {
		hooks[i] = Hook{
			Device: d.name, Up: d.isUp(), Mode: string(d.mode), Driver: d.driver, Clock: string(a.config.Clock),
			ProgramID: uint32(d.id), ProgramTag: d.tag,
		}
	}
	return hooks
}

// Runs returns what the kernel accounts for each attached program; nil while it does not, which is its default.
func (a *Audit) Runs() ([]Runs, error) {
	enabled, err := os.ReadFile("/proc/sys/kernel/bpf_stats_enabled")
	if err != nil || len(enabled) == 0 || enabled[0] != '1' {
		return nil, nil //nolint:nilerr // a kernel without the setting accounts nothing
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var runs []Runs
	for _, d := range a.devices {
		if d.program == nil {
			continue
		}
		stats, err := d.program.Stats()
		if errors.Is(err, unix.EPERM) { // before 5.19 it is told to the privileged only
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the run time of the program on %s: %w", d.name, err)
		}
		runs = append(runs, Runs{Device: d.name, Count: stats.RunCount, TimeNs: uint64(stats.Runtime)})
	}
	return runs, nil
}
