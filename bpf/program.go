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
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Audit is a running audit: the programs attached to the devices, and the maps that they share.
type Audit struct {
	config Config
	logger *slog.Logger
	tables *tables
	events *eventReader

	mu       sync.Mutex // guards what follows
	devices  []*device
	counters *counterReader
}

// device is one audited device. program and link are nil where it could not be attached.
type device struct {
	name    string
	ifindex int
	mode    Mode
	driver  string
	program *ebpf.Program
	tag     string
	id      ebpf.ProgramID
	link    link.Link
}

// Open loads the program for each device and attaches it. The error says what stands in the way and what helps; then
// nothing is left attached. If some but not all devices can be attached, the others are logged and have a [Hook] that is
// not up.
func Open(config Config, logger *slog.Logger) (audit *Audit, err error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if err := checkCapabilities(); err != nil {
		return nil, err
	}
	audit, err = load(config, rand.Reader, logger)
	if err != nil {
		return nil, err
	}
	if err := audit.attachAll(); err != nil {
		return nil, errors.Join(err, audit.Close())
	}
	return audit, nil
}

// load creates the maps and their readers, and attaches nothing. The keys of the hash of flows are read from keys.
func load(config Config, keys io.Reader, logger *slog.Logger) (audit *Audit, err error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("raising the limit of locked memory: %w", err)
	}
	a := &Audit{config: config, logger: logger}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	if a.tables, err = newTables(config, keys); err != nil {
		return nil, err
	}
	if a.counters, err = newCounterReader(a.tables.maps[programMapAuditCounters], a.tables.cpus, config); err != nil {
		return nil, err
	}
	if a.events, err = newEventReader(a.tables, config); err != nil {
		return nil, err
	}
	for _, name := range config.Devices {
		a.devices = append(a.devices, &device{name: name})
	}
	return a, nil
}

// attachAll attaches every device that can be, and fails if none can.
func (a *Audit) attachAll() error {
	var failed []error
	for i, d := range a.devices {
		if err := a.attach(i, d); err != nil {
			failed = append(failed, err)
			continue
		}
		a.logger.Info(fmt.Sprintf("XDP audit hook attached on %s with mode=%s", d.name, d.mode),
			"driver", d.driver, "program_id", d.id, "clock", a.config.Clock)
	}
	if len(failed) == len(a.devices) {
		return inOneLine(failed)
	}
	for _, err := range failed {
		a.logger.Error("Device is not audited", "err", err)
	}
	return nil
}

// attach loads the program of one device and attaches it in the first mode that the device takes.
func (a *Audit) attach(index int, d *device) (err error) {
	iface, err := findInterface(d.name)
	if err != nil {
		return err
	}
	d.ifindex, d.driver = iface.Index, driverOf(d.name)
	if a.config.Mode == ModeHW {
		return a.attachOffloaded(index, d)
	}
	if err := a.loadProgram(index, d, 0); err != nil {
		return explainLoad(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.unload())
		}
	}()
	modes := []Mode{a.config.Mode}
	if a.config.Mode == ModeAuto {
		modes = []Mode{ModeDriver, ModeGeneric}
	}
	var refusals []error
	for _, mode := range modes {
		d.link, err = link.AttachXDP(link.XDPOptions{Program: d.program, Interface: d.ifindex, Flags: attachFlags[mode]})
		if err == nil {
			d.mode = mode
			if len(refusals) > 0 {
				a.logger.Warn("Native mode was refused: auditing in generic mode, which is slower and sees merged frames",
					"device", d.name, "err", errors.Join(refusals...))
			}
			return nil
		}
		refusals = append(refusals, explainRefusal(d, mode, err))
	}
	return refusals[len(refusals)-1]
}

// attachOffloaded tries to run the program on the device itself. Loading for a device fails in the kernel where its
// driver has no offload.
func (a *Audit) attachOffloaded(index int, d *device) error {
	err := a.loadProgram(index, d, uint32(d.ifindex))
	if err == nil {
		d.link, err = link.AttachXDP(link.XDPOptions{Program: d.program, Interface: d.ifindex, Flags: link.XDPOffloadMode})
	}
	if err != nil {
		return errors.Join(explainRefusal(d, ModeHW, err), d.unload())
	}
	d.mode = ModeHW
	return nil
}

var attachFlags = map[Mode]link.XDPAttachFlags{ModeDriver: link.XDPDriverMode, ModeGeneric: link.XDPGenericMode}

// loadProgram loads the instance of the program for the device with that index; ifindex is 0 unless it is to be
// offloaded.
func (a *Audit) loadProgram(index int, d *device, ifindex uint32) error {
	spec, err := a.tables.programSpec(a.config, index)
	if err != nil {
		return err
	}
	spec.Programs[programProgXdpAudit].Ifindex = ifindex
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: a.tables.maps})
	if err != nil {
		return err
	}
	defer collection.Close()
	d.program = collection.DetachProgram(programProgXdpAudit)
	info, err := d.program.Info()
	if err != nil {
		return fmt.Errorf("reading back the program: %w", err)
	}
	d.id, _ = info.ID()
	d.tag = info.Tag
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
		return d.id != 0 && programOn(d.ifindex) == uint32(d.id)
	}
	return err == nil && info.XDP() != nil && int(info.XDP().Ifindex) == d.ifindex
}

// unload detaches the device and forgets its program.
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

// Close detaches every device and gives back all that the audit holds in the kernel.
func (a *Audit) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for _, d := range a.devices {
		if err := d.unload(); err != nil {
			errs = append(errs, fmt.Errorf("detaching %s: %w", d.name, err))
		}
	}
	if a.events != nil {
		errs = append(errs, a.events.close())
	}
	if a.counters != nil {
		errs = append(errs, a.counters.close())
		a.counters = nil
	}
	if a.tables != nil {
		errs = append(errs, a.tables.close())
	}
	return errors.Join(errs...)
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
