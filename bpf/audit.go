// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/cilium/ebpf/rlimit"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// Audit is a running audit: the devices with their programs, and the maps that the programs share.
type Audit struct {
	config    Config
	logger    *slog.Logger
	pins      *pins // nil unless maps and hooks are pinned
	maps      *auditMaps
	counters  *counterReader // read in devices.each only, and cleared in changes of the devices
	events    *eventReader
	watcher   *watcher // nil unless flows are watched
	cuts      *cutReader
	devices   *deviceSet
	exchanges *exchanges    // nil unless response times are measured
	before    []deviceEntry // of the pinned table, for a start that fails; nil after Commit
}

// Open loads the program for each device and attaches it. An error says what failed and what to do;
// then nothing stays attached that was not attached before. If some devices can be attached and
// others cannot, the others are logged and have a [Hook] that is not up. The audit ends with
// [Audit.Close], or with [Audit.Abandon] if the start of the caller fails after Open.
//
// Open is [Prepare] followed by [Audit.Commit].
func Open(config Config, logger *slog.Logger) (*Audit, error) {
	ctx := context.Background()
	audit, err := Prepare(ctx, config, logger)
	if err != nil {
		return nil, err
	}
	if err := audit.Commit(ctx); err != nil {
		return nil, errors.Join(err, audit.Abandon())
	}
	return audit, nil
}

// Prepare does the part of Open that may fail, for a caller whose own start may fail afterwards. It
// changes no hook, counter or baseline of a pinned audit, except that hooks on devices which are in
// both audits get the new mode, and the new program if that counts in the same maps. The start ends
// with [Audit.Commit], or with [Audit.Abandon] if it has failed. If the context ends before all
// devices are attached, the error wraps that of the context.
func Prepare(ctx context.Context, config Config, logger *slog.Logger) (audit *Audit, err error) {
	config, devices, err := config.resolve(logger)
	if err != nil {
		return nil, err
	}
	named, _ := config.named(devices)
	audit, err = load(config, named, rand.Reader, logger)
	if err != nil {
		return nil, err
	}
	if err = audit.devices.change(func() error { return audit.devices.start(ctx, devices) }); err != nil {
		return nil, errors.Join(err, audit.Abandon())
	}
	return audit, nil
}

// resolve checks what can be checked before anything is loaded. It returns the configuration with
// the kernel's names of the devices, unless they are followed, and lists the network devices.
func (c Config) resolve(logger *slog.Logger) (_ Config, devices []netdev.Device, err error) {
	if err := c.Validate(); err != nil {
		return c, nil, err
	}
	if c, err = c.canonical(); err != nil {
		return c, nil, err
	}
	if err := checkCapabilities(); err != nil {
		return c, nil, err
	}
	if err := checkFiles(spareFiles); err != nil {
		return c, nil, err
	}
	if devices, err = c.listDevices(); err != nil {
		return c, nil, err
	}
	if err := c.checkAnyIsHere(devices); err != nil {
		return c, nil, err
	}
	if !c.Follow {
		_, aliases := c.named(devices)
		c.logAliases(logger, nil, aliases)
		if c, err = c.expand(devices); err != nil {
			return c, nil, err
		}
	}
	return c, devices, nil
}

// Commit completes a start that has succeeded. Hooks that are pinned on devices which are not in
// the configuration are detached, and their indices and counters go to devices that need them.
// Pinned maps of another layout are replaced. It needs no capability, unless
// [Audit.CommitNeedsPrivilege] says so. A second call does nothing. If the context has ended
// before, Commit changes nothing, and the error wraps that of the context. A context that ends
// later does not stop Commit, because the audits of other devices are displaced by then.
func (a *Audit) Commit(ctx context.Context) error {
	return a.devices.change(func() error {
		if !a.devices.isStarting {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := a.maps.replacePins(a.pins, a.logger); err != nil {
			return err
		}
		a.devices.commit()
		a.before = nil
		return nil
	})
}

// load creates the maps and their readers, or takes over pinned ones, gives the devices that the
// configuration names their indices, and attaches nothing. named has the kernel's names of these
// devices. The keys of the hash of flows are read from keys.
func load(config Config, named []string, keys io.Reader, logger *slog.Logger) (audit *Audit, err error) {
	return loadWith(config, named, keys, logger, openPins, func(k *kernelHooks) hookKernel { return k })
}

// loadWith is load with the functions that open the pins and attach the programs.
func loadWith(config Config, named []string, keys io.Reader, logger *slog.Logger, openPins func(path string) (*pins, error),
	hooks func(*kernelHooks) hookKernel,
) (audit *Audit, err error) {
	if err := checkBPF(); err != nil {
		return nil, err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("raising the limit of locked memory: grant CAP_SYS_RESOURCE, or raise it (ulimit -l): %w", err)
	}
	if err := checkKernel(); err != nil {
		return nil, err
	}
	a := &Audit{config: config, logger: logger, devices: newDeviceSet(config, logger)}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Abandon())
		}
	}()
	if config.PinPath != "" {
		if a.pins, err = openPins(config.PinPath); err != nil {
			return nil, &ConfigError{"PinPath", err}
		}
	}
	if a.maps, err = newAuditMaps(config, keys, a.pins); err != nil {
		return nil, err
	}
	indices := len(a.maps.devices.entries)
	if a.counters, err = mapCounters(a.maps.byName[programMapAuditCounters], a.maps.cpus, indices, config); err != nil {
		return nil, err
	}
	if config.measuresExchanges() {
		if a.exchanges, err = newExchanges(a.maps.exchanges, config); err != nil {
			return nil, err
		}
	}
	a.cuts = newCutReader(a.maps, config)
	a.devices.kernel = hooks(&kernelHooks{a.maps, config, a.pins, a.exchanges})
	a.devices.isReplacingMaps = a.maps.replacing != nil
	a.devices.pool = indexPool{table: a.maps.devices, counters: a.counters, clearCounters: a.maps.clearCounters}
	if a.pins != nil {
		if err := a.takeOver(); err != nil {
			return nil, err
		}
	}
	if a.events, err = newEventReader(a.maps, config, indices); err != nil {
		return nil, err
	}
	a.devices.pool.events = a.events
	if config.Watches > 0 {
		if a.watcher, err = newWatcher(a.maps, config); err != nil {
			return nil, err
		}
	}
	a.devices.named = named
	for _, name := range named {
		if _, err := a.devices.appeared(name); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// CommitNeedsPrivilege reports whether [Audit.Commit] needs the capabilities that [Prepare]
// needs, as it does before Linux 5.19.
func (a *Audit) CommitNeedsPrivilege() bool { return needsPrivilege(kernelRelease()) }

// Follow attaches devices of the configuration when they appear, and detaches from those that
// vanish, until the context ends. Without Config.Follow it only detaches: from devices that
// were renamed, or moved to another network namespace, where the hook would count packets as
// those of the device. It logs what fails, tries again and returns nil.
func (a *Audit) Follow(ctx context.Context) error {
	a.devices.follow(ctx)
	return nil
}

// Close detaches every device, or leaves pinned hooks to the next process, and releases everything
// that the audit holds. A pinned hook is left also if its device was being renamed. Close waits for
// an attempt of [Audit.Follow] to attach a device. Before [Audit.Commit] it is [Audit.Abandon].
func (a *Audit) Close() error {
	return a.devices.change(func() error {
		if a.devices.isStarting {
			return a.abandon()
		}
		return a.release()
	})
}

// Abandon is Close for a start that failed: hooks that were pinned before stay attached, and
// nothing else stays attached or pinned. It needs no capability, but it must be allowed to remove
// files from the pin directory.
func (a *Audit) Abandon() error {
	return a.devices.change(a.abandon)
}

func (a *Audit) abandon() error {
	var err error
	if a.pins != nil {
		err = a.pins.discardNew()
	}
	if a.before != nil {
		a.devices.restoreTable(a.before, a.pins.hasLink)
	}
	return errors.Join(err, a.release())
}

// release releases everything that the audit holds. Pinned hooks stay attached. It runs in a change
// of the devices.
func (a *Audit) release() error {
	var errs []error
	if a.events != nil {
		errs = append(errs, a.events.close()) // before the table that it counts in is unmapped
	}
	if a.watcher != nil {
		errs = append(errs, a.watcher.close())
	}
	if a.cuts != nil {
		a.cuts.close() // before the maps are closed
	}
	if a.exchanges != nil {
		errs = append(errs, a.exchanges.close())
	}
	errs = append(errs, a.devices.close()) // after it, nobody reads counters or the device table
	if a.counters != nil {
		errs = append(errs, a.counters.close())
	}
	if a.maps != nil {
		errs = append(errs, a.maps.close())
	}
	if a.pins != nil {
		errs = append(errs, a.pins.close())
	}
	return errors.Join(errs...)
}

// Slots returns the number of slots of the flow table.
func (a *Audit) Slots() int { return a.config.Slots() }

// Hooks returns the state of every configured device, in the order of the configuration. It
// asks the kernel for each of them: 400 devices take 8 ms of CPU time.
func (a *Audit) Hooks() []Hook { return a.devices.hooks() }

// Ready returns nil if at least one device is audited now. Otherwise the error says why none is.
func (a *Audit) Ready() error { return a.devices.ready() }

// DeviceSlots returns how many devices can be audited at a time, have an index, and have none
// because all are taken. It is zero after [Audit.Close].
func (a *Audit) DeviceSlots() DeviceSlots { return a.devices.slots() }

// Runs returns what the kernel accounts for the program of each device; nil while
// kernel.bpf_stats_enabled is 0, its default.
func (a *Audit) Runs() ([]Runs, error) {
	enabled, err := os.ReadFile("/proc/sys/kernel/bpf_stats_enabled")
	if err != nil || len(enabled) == 0 || enabled[0] != '1' {
		return nil, nil //nolint:nilerr // a kernel without the setting accounts nothing
	}
	return a.devices.runs()
}
