// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"runtime"
	"time"

	"github.com/cilium/ebpf"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// tables are the maps that the programs of all devices share.
type tables struct {
	maps map[string]*ebpf.Map
	keys [][10]uint32 // of the hash of flows, by device
	cpus int          // possible CPUs, and so blocks of counters of a device
}

func newTables(config Config, keys io.Reader) (t *tables, err error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("counting the possible CPUs: %w", err)
	}
	spec, err := loadProgram()
	if err != nil {
		return nil, err
	}
	t = &tables{maps: map[string]*ebpf.Map{}, keys: make([][10]uint32, len(config.Devices)), cpus: cpus}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	if err := binary.Read(keys, binary.NativeEndian, t.keys); err != nil {
		return nil, fmt.Errorf("choosing keys of the flow hash: %w", err)
	}
	entries := map[string]int{
		programMapAuditCounters:   len(config.Devices) * cpus,
		programMapFlowSets:        int(config.sets()),
		programMapFlowKeys:        config.Slots(),
		programMapEventAllowances: cpus,
		programMapAuditEvents:     cpus,
	}
	for name, n := range entries {
		mapSpec := spec.Maps[name]
		mapSpec.MaxEntries = uint32(n)
		if t.maps[name], err = ebpf.NewMap(mapSpec); err != nil {
			return nil, explainMap(name, n, err)
		}
	}
	return t, nil
}

// programSpec returns the program with its constants set for the device with that index.
func (t *tables) programSpec(config Config, index int) (*ebpf.CollectionSpec, error) {
	spec, err := loadProgram()
	if err != nil {
		return nil, err
	}
	return spec, t.configure(spec, config, index)
}

// configure sets the constants of a program for the device with that index, and the sizes of the maps that it shares.
func (t *tables) configure(spec *ebpf.CollectionSpec, config Config, index int) error {
	constants := config.constants()
	constants.Device = uint32(index)
	constants.FirstBlock = uint32(index * t.cpus)
	constants.HashKeys = t.keys[index]
	if err := spec.Variables[programVarConfig].Set(constants); err != nil {
		return fmt.Errorf("configuring the program: %w", err)
	}
	if err := spec.Variables[programVarHistogramCuts].Set(timing.Cuts()); err != nil {
		return fmt.Errorf("configuring the histogram: %w", err)
	}
	if err := spec.Variables[programVarLog2Table].Set(log2Table()); err != nil {
		return fmt.Errorf("configuring the logarithm: %w", err)
	}
	if err := spec.Variables[programVarLog2Fractions].Set(timing.LogTable()); err != nil {
		return fmt.Errorf("configuring the domain log2: %w", err)
	}
	for name, m := range t.maps {
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	return nil
}

// log2Table returns ⌊log2 v⌋ by v, with 0 for 0.
func log2Table() (table [1 << 11]uint8) {
	for v := range table {
		table[v] = uint8(max(bits.Len(uint(v)), 1) - 1)
	}
	return table
}

func (t *tables) close() error {
	var errs []error
	for _, m := range t.maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// constants returns what the program of any device is configured with.
func (c Config) constants() programAuditConfig {
	mantissa, exponent := c.params().ThresholdSquared()
	constants := programAuditConfig{
		IdleTimeoutNs:      uint64(c.IdleTimeout),
		EventIntervalNs:    c.eventInterval(),
		EventBurstNs:       uint64(time.Second),
		SetMask:            c.sets() - 1,
		MinSamples:         c.MinSamples,
		WindowTwice:        2 * c.Window,
		Threshold2Mantissa: mantissa,
		Threshold2Exponent: exponent,
		ShortcutShift:      c.params().ShortcutShift(),
		ShortcutFactor:     c.params().ShortcutFactor(),
	}
	if runtime.GOARCH == "amd64" {
		constants.StoresAreOrdered = 1
	}
	if c.Clock == ClockMetadata {
		constants.ClockSource = clockSourceMetadata
	}
	if c.Domain == DomainLog2 {
		constants.Variants |= variantLog2
	}
	if c.Baseline == BaselineDevice {
		constants.Variants |= variantDevice
	}
	return constants
}

const (
	clockSourceMetadata = 1 // enum clock_source

	// enum variant
	variantLog2   = 1
	variantDevice = 2
)
