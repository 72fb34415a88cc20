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
	"github.com/xdp-audit/xdp_audit_exporter/internal/baselinefile"
	"github.com/xdp-audit/xdp_audit_exporter/internal/privilege"
)

// saveInterval is how often the exporter looks whether a device has learnt enough.
const saveInterval = 10 * time.Second

// applyBaselineFile makes the configuration that of the file: against what is in it devices are audited. Without a file there
// has to be a place for one.
func (o *options) applyBaselineFile(config *bpf.Config) error {
	if o.baselineFile == "" {
		return nil
	}
	if o.isBaselineGiven && config.Baseline != bpf.BaselineDevice {
		return fmt.Errorf("--audit.baseline-file: it takes --audit.baseline=device, and that is %s", config.Baseline)
	}
	config.Baseline = bpf.BaselineDevice
	file, err := baselinefile.Read(o.baselineFile, terms(*config))
	if err != nil {
		return fmt.Errorf("--audit.baseline-file: %w", err)
	}
	if file != nil {
		config.Frozen, config.FrozenSince = file.Devices, file.Saved
		if err := config.Validate(); err != nil {
			return fmt.Errorf("--audit.baseline-file: %s: %w", o.baselineFile, err)
		}
		return nil
	}
	if o.baselineFile, err = filepath.Abs(o.baselineFile); err != nil {
		return fmt.Errorf("--audit.baseline-file: %w", err)
	}
	folder := filepath.Dir(o.baselineFile)
	if info, err := os.Stat(folder); err != nil || !info.IsDir() {
		return fmt.Errorf("--audit.baseline-file: %s is no folder: make it", folder)
	}
	if privilege.IsShared(folder) && !o.keepPrivileges {
		return fmt.Errorf("--audit.baseline-file: %s is shared by the whole system, and saving would take access to all of it: name a file in a folder of its own",
			folder)
	}
	return nil
}

// isToSave reports whether what is learnt is to be saved.
func (o *options) isToSave() bool { return o.baselineFile != "" && o.audit.Frozen == nil }

func terms(config bpf.Config) baselinefile.Terms {
	return baselinefile.Terms{
		Domain: config.Domain, Threshold: config.Threshold, Clock: string(config.Clock), IdleTimeout: config.IdleTimeout,
	}
}

// saver writes what devices have learnt into a file.
type saver struct {
	path   string
	terms  baselinefile.Terms
	learnt func() map[string]bpf.Learnt
	logger *slog.Logger

	most     int // devices that are known at a time, if no more are there
	known    map[string]knownDevice
	looks    uint64
	isBehind bool // a device is known that was not when the file was written
}

// knownDevice is a device that has learnt enough. It may be gone.
type knownDevice struct {
	learnt bpf.Learnt
	seen   uint64 // the last look at which it was there
}

// newSaver returns nil if nothing is to be saved.
func (o *options) newSaver(attached audit, logger *slog.Logger) *saver {
	if !o.isToSave() {
		return nil
	}
	return &saver{
		path: o.baselineFile, terms: terms(o.audit), learnt: attached.Learnt, logger: logger,
		most: int(o.audit.MaxDevices), known: map[string]knownDevice{},
	}
}

// look adds what is learnt by now. Of more devices than are to be known, those that are gone longest are forgotten.
func (s *saver) look() {
	s.looks++
	for name, learnt := range s.learnt() {
		if _, isKnown := s.known[name]; !isKnown {
			s.isBehind = true
		}
		s.known[name] = knownDevice{learnt, s.looks}
	}
	for len(s.known) > s.most {
		oldest := slices.MinFunc(slices.Sorted(maps.Keys(s.known)), func(a, b string) int {
			return cmp.Compare(s.known[a].seen, s.known[b].seen)
		})
		if s.known[oldest].seen == s.looks {
			return
		}
		delete(s.known, oldest)
	}
}

// run saves whenever another device has learnt enough.
func (s *saver) run(ctx context.Context) error {
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
		s.look()
		if !s.isBehind {
			continue
		}
		if err := s.save(); err != nil {
			s.logger.Error("Baseline is not saved yet", "err", err)
		}
	}
}

// finish saves once more, what was learnt until now. It must not be called before run has returned.
func (s *saver) finish() error {
	if s == nil {
		return nil
	}
	s.look()
	if len(s.known) == 0 {
		s.logger.Warn("Baseline is not saved: no device has learnt enough", "path", s.path)
		return nil
	}
	return s.save()
}

func (s *saver) save() error {
	file := &baselinefile.File{Terms: s.terms, Saved: time.Now(), Devices: map[string]bpf.Learnt{}}
	for name, device := range s.known {
		file.Devices[name] = device.learnt
	}
	if err := baselinefile.Write(s.path, file); err != nil {
		return fmt.Errorf("--audit.baseline-file: %w", err)
	}
	s.isBehind = false
	s.logger.Info("Baseline saved", "path", s.path, "devices", strings.Join(slices.Sorted(maps.Keys(s.known)), ","))
	return nil
}

// checkSaving returns an error unless the file can be written, with the privileges that there are now.
func (o *options) checkSaving() error {
	if !o.isToSave() {
		return nil
	}
	if err := baselinefile.CheckWritable(o.baselineFile); err != nil {
		return fmt.Errorf("--audit.baseline-file: %s cannot be written: give its folder to user %d: %w",
			o.baselineFile, os.Geteuid(), err)
	}
	return nil
}
