// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

const (
	// cutSets is the number of sets that are mapped at a time. The elements of as many are whole
	// pages in each map, also where a page has 64 KiB.
	cutSets = 1024

	// mostCutSlots is the number of slots that are read. The set of a flow is a random one, so that
	// those of a larger table are a random sample.
	mostCutSlots = 1 << 16
)

// cutReader reads the cuts of flows from the flow table. It maps a part of the table at a time,
// and only while it reads it: what is mapped counts as memory of the process.
type cutReader struct {
	params              timing.Params
	sets, records, keys *ebpf.Map

	mu       sync.Mutex // held while the table is read
	isClosed bool
}

func newCutReader(t *auditMaps, config Config) *cutReader {
	return &cutReader{
		params: config.params(),
		sets:   t.byName[programMapFlowSets], records: t.byName[programMapFlowRecords], keys: t.byName[programMapFlowKeys],
	}
}

// close ends reading, because the maps are about to be closed.
func (r *cutReader) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.isClosed = true
}

// VisitCuts calls visit for each flow of a device that has been flagged and is in the flow table,
// with its cuts: the |t| from which on a flag is rare for the flow, early and late. They are those
// of the time of the flow's last packet, and never below Config.Threshold. Of a table with more
// than 65,536 slots it reads 65,536, which have a random sample of the flows. It visits no flow if
// Config.Calibrate is 0, if the device has no index, and after [Audit.Close].
func (a *Audit) VisitCuts(name string, visit func(early, late float64)) error {
	owner, hasOwner := uint32(0), false
	a.devices.each(func(d *device) {
		if d.name == name && d.hasIndex() {
			owner, hasOwner = a.maps.devices.owner(d.index), true
		}
	})
	if !hasOwner || a.config.Calibrate == 0 {
		return nil
	}
	_, isFrozen := a.config.Frozen[name]
	isAlone := isFrozen || a.config.Baseline == BaselineDevice
	if err := a.cuts.visit(owner, isAlone, visit); err != nil {
		return fmt.Errorf("reading the cuts of %s: %w", name, err)
	}
	return nil
}

// visit visits the flows of an owner. isAlone says that flows have no baseline of their own.
func (r *cutReader) visit(owner uint32, isAlone bool, visit func(early, late float64)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isClosed {
		return nil
	}
	total := min(int(r.sets.MaxEntries()), mostCutSlots/flowWays)
	for first := 0; first < total; first += cutSets {
		if err := r.visitPart(first, min(cutSets, total-first), owner, isAlone, visit); err != nil {
			return err
		}
	}
	return nil
}

func (r *cutReader) visitPart(first, n int, owner uint32, isAlone bool, visit func(early, late float64)) (err error) {
	sets, err := newMapArrayPart[programFlowSet](r.sets, unix.PROT_READ, first, n)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sets.close()) }()
	records, err := newMapArrayPart[programSetRecords](r.records, unix.PROT_READ, first, n)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, records.close()) }()
	keys, err := newMapArrayPart[programFlowKey](r.keys, unix.PROT_READ, first*flowWays, n*flowWays)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, keys.close()) }()
	for i := range n {
		set := sets.at(i)
		for way := range set.Slots {
			tag, record := atomic.LoadUint32(&set.Tags[way]), &records.at(i).Records[way]
			if tag == 0 || atomic.LoadUint32(&record.Tag) != tag || record.Mark != set.Marks[way] {
				continue // a free slot, or the record of an earlier flow
			}
			if atomic.LoadUint32(&keys.at(i*flowWays+way).Owner) == owner {
				slot := &set.Slots[way]
				state := record.cutState(atomic.LoadUint32(&slot.Baseline.M2High))
				visit(r.params.Cuts(&state, atomic.LoadUint32(&slot.Baseline.N), isAlone, atomic.LoadUint64(&slot.LastNs)))
			}
		}
	}
	return nil
}

// The place of what the baseline of a slot has of the flow's record, as in layout.h.
const (
	hasRecordBit  = 1 << 23
	halvingsShift = 24
)

// cutState returns what the cuts depend on. The kernel may be changing it.
func (r *programFlowRecord) cutState(m2High uint32) timing.FlowRecord {
	return timing.FlowRecord{
		N: atomic.LoadUint32(&r.N), Drift: atomic.LoadUint64(&r.DriftQ32),
		Cuts:     [2]uint64{atomic.LoadUint64(&r.CutsQ32[0]), atomic.LoadUint64(&r.CutsQ32[1])},
		Halvings: m2High >> halvingsShift, IsBaseline: m2High&hasRecordBit != 0,
	}
}
