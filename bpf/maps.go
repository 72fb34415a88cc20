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

// auditMaps holds the maps that the programs of all devices share, and the index of each device
// in them.
type auditMaps struct {
	byName      map[string]*ebpf.Map
	exchanges   map[string]*ebpf.Map // of response times, by name; empty unless these are measured
	devices     *deviceTable
	cpus        int  // number of possible CPUs, which is the number of counter blocks of a device
	hasFrags    bool // the kernel passes frames in several buffers to XDP programs
	isTakenOver bool // the maps were pinned by an earlier process
	isBorrowed  bool // they stay as they are, apart from copies of what a start writes

	replacing *replacement // nil unless replacePins has to replace pinned maps
}

// replacement holds what replacePins pins.
type replacement struct {
	maps    map[string]*ebpf.Map
	layout  *ebpf.Map
	differs string // how the layout differs from the pinned one
}

// newAuditMaps creates the maps. If p is not nil and the pinned maps have the same layout, it
// opens these instead. It leaves pinned maps of another layout as they are, for replacePins.
func newAuditMaps(config Config, keys io.Reader, p *pins) (t *auditMaps, err error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, explainCPUs(err)
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
		programMapFlowRecords:     int(config.sets()),
		programMapEventAllowances: cpus,
		programMapAuditEvents:     cpus,
	} {
		specs[name] = spec.Maps[name]
		specs[name].MaxEntries = uint32(n)
	}
	if err := t.openMaps(specs, p, layoutOf(config, specs, cpus, devices)); err != nil {
		return nil, errors.Join(err, t.close())
	}
	// Recorded deltas are not taken over from an earlier process: at most one window of each
	// flow is lost.
	for name, n := range map[string]int{
		programMapFlowWatches:  int(max(config.Watches, 1)),
		programMapSampledFlows: cpus,
	} {
		if t.byName[name], err = newMap(name, spec.Maps[name], n); err != nil {
			delete(t.byName, name)
			return nil, errors.Join(err, t.close())
		}
	}
	if config.measuresExchanges() {
		if t.exchanges, err = newExchangeMaps(config, cpus, devices); err != nil {
			return nil, errors.Join(err, t.close())
		}
	}
	m := t.byName[deviceMapName]
	delete(t.byName, deviceMapName) // no program uses this map
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
			if p.isLookOnly {
				return t.copyWritten(specs)
			}
			return p.rewriteLayout(layout)
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
	if p == nil || p.isLookOnly {
		return nil
	}
	layoutMap, err := newLayoutMap(layout)
	if err != nil {
		return err
	}
	if differs == "" {
		return errors.Join(p.pinMaps(t.byName, layoutMap), layoutMap.Close())
	}
	// Commit pins the maps, when this process may no longer create any.
	t.replacing = &replacement{maps.Clone(t.byName), layoutMap, differs}
	return nil
}

// replacePins replaces pinned maps of another layout by the maps of this process. A process
// that ends before this call leaves the pinned maps unchanged.
func (t *auditMaps) replacePins(p *pins, logger *slog.Logger) error {
	if t.replacing == nil {
		return nil
	}
	replacing := t.replacing
	t.replacing = nil
	logger.Warn("Pinned maps do not fit and are replaced: all counters and baselines start from zero", "path", p.path, "differs", replacing.differs)
	return errors.Join(p.replaceMaps(replacing.maps, replacing.layout), replacing.layout.Close())
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
	err := errors.Join(closeMaps(t.byName), closeMaps(t.exchanges))
	if t.replacing != nil {
		err = errors.Join(err, t.replacing.layout.Close())
	}
	if t.devices != nil {
		err = errors.Join(err, t.devices.close())
	}
	return err
}

// clearCounters sets the counters of an index to zero. No program may be running with that index.
func (t *auditMaps) clearCounters(index int) error {
	if t.isBorrowed {
		return nil
	}
	for cpu := range t.cpus {
		if err := t.byName[programMapAuditCounters].Put(uint32(index*t.cpus+cpu), &programDeviceCounters{}); err != nil {
			return fmt.Errorf("clearing the counters of index %d: %w", index, err)
		}
	}
	return nil
}
