// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// auditMaps are the maps that the programs of all devices share, and which device is which in them.
type auditMaps struct {
	byName      map[string]*ebpf.Map
	devices     *deviceTable
	cpus        int  // possible CPUs, and so blocks of counters of a device
	hasFrags    bool // the kernel hands frames in several buffers to XDP
	isTakenOver bool // the maps are those of a process before

	replacing *replacement // nil unless the maps are to be pinned in the place of others
}

// replacement is what replacePins is to pin.
type replacement struct {
	maps    map[string]*ebpf.Map
	layout  string
	differs string // from what is pinned
}

// newAuditMaps makes the maps, or opens those that are pinned where p is not nil and they fit. Those that do not fit are left as
// they are, for replacePins.
func newAuditMaps(config Config, keys io.Reader, p *pins) (t *auditMaps, err error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("counting the possible CPUs: %w", err)
	}
	spec, err := loadProgram()
	if err != nil {
		return nil, err
	}
	t = &auditMaps{cpus: cpus, hasFrags: features.HaveProgramHelper(ebpf.XDP, asm.FnXdpGetBuffLen) == nil}
	devices := config.deviceCapacity()
	specs := map[string]*ebpf.MapSpec{deviceMapName: deviceMapSpec(devices)}
	for name, n := range map[string]int{
		programMapAuditCounters:   devices * cpus,
		programMapFlowSets:        int(config.sets()),
		programMapFlowKeys:        config.Slots(),
		programMapEventAllowances: cpus,
		programMapAuditEvents:     cpus,
	} {
		specs[name] = spec.Maps[name]
		specs[name].MaxEntries = uint32(n)
	}
	if err := t.openMaps(specs, p, layoutOf(config, specs, cpus, devices)); err != nil {
		return nil, errors.Join(err, t.close())
	}
	// Recording begins anew with each process: what it would take over is a window at most.
	for name, n := range map[string]int{
		programMapFlowWatches:  int(max(config.Watches, 1)),
		programMapSampledFlows: cpus,
	} {
		if t.byName[name], err = newMap(name, spec.Maps[name], n); err != nil {
			delete(t.byName, name)
			return nil, errors.Join(err, t.close())
		}
	}
	m := t.byName[deviceMapName]
	delete(t.byName, deviceMapName) // no program has it
	if t.devices, err = newDeviceTable(m, keys); err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

// openMaps fills t.byName.
func (t *auditMaps) openMaps(specs map[string]*ebpf.MapSpec, p *pins, layout string) (err error) {
	differs := ""
	if p != nil {
		t.byName, differs, err = p.loadMaps(slices.Collect(maps.Keys(specs)), layout)
		if err != nil {
			return err
		}
		if t.byName != nil {
			t.isTakenOver = true
			return p.writeLayout(layout)
		}
	}
	t.byName = map[string]*ebpf.Map{}
	for name, mapSpec := range specs {
		m, err := newMap(name, mapSpec, int(mapSpec.MaxEntries))
		if err != nil {
			return err
		}
		t.byName[name] = m
	}
	switch {
	case p == nil:
		return nil
	case differs == "":
		return p.pinMaps(t.byName, layout)
	}
	t.replacing = &replacement{maps.Clone(t.byName), layout, differs}
	return nil
}

// replacePins pins the maps in the place of those that do not fit. Until then a process that ends leaves these as they were.
func (t *auditMaps) replacePins(p *pins, logger *slog.Logger) error {
	if t.replacing == nil {
		return nil
	}
	logger.Warn("Pinned maps do not fit and are replaced: all counters and baselines begin anew", "path", p.path, "differs", t.replacing.differs)
	if err := p.removeMaps(); err != nil {
		return err
	}
	return p.pinMaps(t.replacing.maps, t.replacing.layout)
}

func newMap(name string, spec *ebpf.MapSpec, entries int) (*ebpf.Map, error) {
	spec.MaxEntries = uint32(entries)
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, explainMap(name, entries, err)
	}
	return m, nil
}

func (t *auditMaps) close() error {
	err := closeMaps(t.byName)
	if t.devices != nil {
		err = errors.Join(err, t.devices.close())
	}
	return err
}

// clearCounters makes the counters of an index zero. No program may be counting in them.
func (t *auditMaps) clearCounters(index int) error {
	for cpu := range t.cpus {
		if err := t.byName[programMapAuditCounters].Put(uint32(index*t.cpus+cpu), &programDeviceCounters{}); err != nil {
			return fmt.Errorf("clearing the counters of index %d: %w", index, err)
		}
	}
	return nil
}
