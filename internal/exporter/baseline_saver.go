// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/collector"
	"github.com/xdp-audit/xdp_audit_exporter/internal/baselinefile"
	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
	"github.com/xdp-audit/xdp_audit_exporter/internal/privilege"
)

// saveInterval is the interval at which the exporter looks for devices with new baselines.
const saveInterval = 10 * time.Second

// applyBaselineFile adds the saved baselines of the file to the configuration. Without a file
// it checks that the exporter can create one.
func (o *options) applyBaselineFile(config *bpf.Config) error {
	const flag = "audit.baseline-file"
	if o.baselineFile == "" {
		return nil
	}
	if o.isBaselineGiven && config.Baseline != bpf.BaselineDevice {
		return o.flagError(flag, fmt.Errorf("requires --audit.baseline=device, not --audit.baseline=%s", config.Baseline))
	}
	config.Baseline = bpf.BaselineDevice
	// The leftover of a process that was killed does no harm if it cannot be removed.
	if !o.check {
		_ = baselinefile.RemoveTemporary(o.baselineFile)
	}
	file, err := baselinefile.Read(o.baselineFile, terms(*config))
	if err != nil {
		return o.flagError(flag, err)
	}
	if file != nil {
		config.Frozen, config.FrozenSince = file.Devices, file.Saved
		o.savedPasts = file.Pasts
		if err := config.Validate(); err != nil {
			return o.flagError(flag, fmt.Errorf("%s: %w", o.baselineFile, err))
		}
		return nil
	}
	if o.baselineFile, err = filepath.Abs(o.baselineFile); err != nil {
		return o.flagError(flag, err)
	}
	directory := filepath.Dir(o.baselineFile)
	if info, err := os.Stat(directory); err != nil || !info.IsDir() {
		return o.flagError(flag, fmt.Errorf("%s is not a directory; create it first", directory))
	}
	if privilege.IsShared(directory) && !o.keepPrivileges {
		return o.flagError(flag, fmt.Errorf(
			"%s is shared by the whole system, and the exporter would keep write access to all of it; "+
				"choose a file in a directory of its own", directory))
	}
	return nil
}

// savesBaseline reports whether the exporter saves what it learns.
func (o *options) savesBaseline() bool { return o.baselineFile != "" && o.audit.Frozen == nil }

// checkSaving returns an error unless the file can be written with the current privileges.
func (o *options) checkSaving() error {
	if !o.savesBaseline() {
		return nil
	}
	checkWritable := baselinefile.CheckWritable
	if o.check {
		checkWritable = baselinefile.CheckAccess
	}
	if err := checkWritable(o.baselineFile); err != nil {
		return o.flagError("audit.baseline-file", fmt.Errorf("cannot write %s: let user %d write to its directory: %w",
			o.baselineFile, os.Geteuid(), err))
	}
	return nil
}

func terms(config bpf.Config) baselinefile.Terms {
	return baselinefile.Terms{
		Domain: config.Domain, Threshold: config.Threshold, Clock: string(config.Clock), IdleTimeout: config.IdleTimeout,
	}
}

// baselineSaver writes the learned baselines of devices, and the past of their flags, to a file.
type baselineSaver struct {
	path   string
	terms  baselinefile.Terms
	learnt func() map[string]bpf.Learnt
	pasts  func() map[string]collector.FlagsPast
	logger *slog.Logger

	maxDevices int                   // gone devices are dropped above it
	devices    map[string]*saveState // devices with enough samples
	updates    uint64
	isUnsaved  bool // the file lacks a device
}

// saveState is a device with enough samples. The device may be gone.
type saveState struct {
	learnt     bpf.Learnt
	past       collector.FlagsPast
	lastUpdate uint64 // last update in which the device was present
}

// newBaselineSaver returns nil if nothing is saved.
func (o *options) newBaselineSaver(attached audit, excess *collector.Excess, logger *slog.Logger) *baselineSaver {
	if !o.savesBaseline() {
		return nil
	}
	return &baselineSaver{
		path: o.baselineFile, terms: terms(o.audit), learnt: attached.Learnt, pasts: excess.Pasts, logger: logger,
		maxDevices: int(o.audit.MaxDevices), devices: map[string]*saveState{},
	}
}

// update takes over the current baselines. If there are too many devices, it drops those that
// have been gone the longest time.
func (s *baselineSaver) update() {
	s.updates++
	pasts := s.pasts()
	for name, learnt := range s.learnt() {
		if s.devices[name] == nil {
			s.isUnsaved = true
		}
		s.devices[name] = &saveState{learnt, pasts[name], s.updates}
	}
	for len(s.devices) > s.maxDevices {
		oldest := slices.MinFunc(slices.Sorted(maps.Keys(s.devices)), func(a, b string) int {
			return cmp.Compare(s.devices[a].lastUpdate, s.devices[b].lastUpdate)
		})
		if s.devices[oldest].lastUpdate == s.updates {
			return
		}
		delete(s.devices, oldest)
	}
}

// run saves whenever another device has enough samples.
func (s *baselineSaver) run(ctx context.Context) error {
	if s == nil {
		return nil
	}
	tick := time.NewTicker(saveInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		s.update()
		if !s.isUnsaved {
			continue
		}
		if err := s.save(); err != nil {
			s.logger.Error("Cannot save the baseline, trying again later", "err", err)
		}
	}
}

// finish saves the final baselines. It must not be called before run has returned.
func (s *baselineSaver) finish() error {
	if s == nil {
		return nil
	}
	s.update()
	if len(s.devices) == 0 {
		s.logger.Warn("Baseline is not saved: no device has enough samples", "path", s.path)
		return nil
	}
	return s.save()
}

func (s *baselineSaver) save() error {
	file := &baselinefile.File{Terms: s.terms, Saved: time.Now(), Devices: map[string]bpf.Learnt{}, Pasts: map[string]collector.FlagsPast{}}
	for name, device := range s.devices {
		file.Devices[name] = device.learnt
		if device.past.Minutes > 0 {
			file.Pasts[name] = device.past
		}
	}
	if err := baselinefile.Write(s.path, file); err != nil {
		return flagError("audit.baseline-file", err)
	}
	s.isUnsaved = false
	s.logger.Info("Baseline saved", "path", s.path, "devices", s.names())
	return nil
}

// names returns the names of the devices, separated by commas.
func (s *baselineSaver) names() string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(s.devices)) {
		names = append(names, printable.FlagValue(name))
	}
	return strings.Join(names, ",")
}
