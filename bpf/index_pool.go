// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"slices"
)

// indexPool is everything that goes by the index of a device: the table that says which device has
// which index, the counters, and the owners of events.
type indexPool struct {
	table         *deviceTable
	counters      *counterReader
	events        *eventReader
	clearCounters func(index int) error // makes the counters of an index zero
}

// setOwner directs the events of an index to its device.
func (p *indexPool) setOwner(index int, name string) {
	p.events.setOwner(index, eventOwner{id: p.table.owner(index), name: name, received: &p.table.entries[index].received})
}

// readerGap accounts for the events that were sent and never read, as the process that had the
// rings open has ended. It returns how many these are since the last account.
func (p *indexPool) readerGap() (gap uint64) {
	for i := range p.table.entries {
		e := &p.table.entries[i]
		if !e.isTaken() {
			continue
		}
		var counters Counters
		p.counters.read(i, &counters)
		if sent := counters.Fates[FateSent]; sent > e.received+e.gap {
			gap += sent - e.received - e.gap
			e.gap = sent - e.received
		}
	}
	return gap
}

// identify returns the identity of a device. If the device has no index, it is one with a free
// index, or with the index of the device that vanished first, which isDisplacing reports. That
// index is not taken yet.
func (s *deviceSet) identify(d *device) (id deviceIdentity, isDisplacing bool, err error) {
	table := s.pool.table
	if d.hasIndex() {
		return table.identity(d.index), false, nil
	}
	var planned []int
	kept := 0 // for named devices, as others were listed when there was more room
	for _, other := range s.listed {
		switch {
		case other.prepared != nil && other.prepared.identity != nil:
			planned = append(planned, other.prepared.identity.index)
		case other != d && other.isNamed && !other.hasIndex():
			kept++
		}
	}
	index, err := table.choose(planned...)
	if err != nil || !d.isNamed && table.available() <= len(planned)+kept {
		return id, false, s.noRoom(d.name)
	}
	id, err = table.plan(index, d.name)
	return id, table.entries[index].isTaken(), err
}

func (s *deviceSet) noRoom(name string) error {
	return fmt.Errorf("device %s: %w: to audit more than %d devices, raise the maximum (--audit.max-devices)",
		name, errNoIndex, len(s.pool.table.entries))
}

// hasRoom reports whether there is an index for one more device than those that wait for one. A
// device that is named waits also while it is absent or refused, one that a glob matches does not.
func (s *deviceSet) hasRoom() bool {
	waiting := 0
	for _, d := range s.listed {
		if !d.hasIndex() && (d.isNamed || d.retry.refusal == "") {
			waiting++
		}
	}
	return s.pool.table.available() > waiting
}

// takeIndex gives a device its planned index. It runs in a change of the set.
func (s *deviceSet) takeIndex(d *device, id deviceIdentity) error {
	s.vacate(id.index)
	if s.pool.table.entries[id.index].generation > 0 {
		awaitPrograms()
	}
	return s.assign(d, id)
}

// vacate detaches the hook that counts in the index of a gone device. Its program may run until
// awaitPrograms.
func (s *deviceSet) vacate(index int) {
	if entry := &s.pool.table.entries[index]; entry.isTaken() {
		s.dropUnclaimedOn(int(entry.ifindex))
	}
}

// assign gives a device its planned index, in which no program counts any more.
func (s *deviceSet) assign(d *device, id deviceIdentity) error {
	entry := &s.pool.table.entries[id.index]
	var errs []error
	if entry.isTaken() {
		errs = append(errs, s.retire(id.index))
	}
	if entry.generation > 0 {
		errs = append(errs, s.clearIndex(id.index))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.pool.events.retire(id.index) // before the count of events starts at zero
	s.write(func() {
		s.pool.table.take(id)
		d.index = id.index
	})
	s.pool.setOwner(id.index, d.name)
	return nil
}

// returnIndex frees the index of a device that was refused and did not have the index before.
func (s *deviceSet) returnIndex(d *device) {
	s.write(func() {
		s.pool.table.release(d.index)
		d.index = -1
	})
}

// restoreTable makes the table what it was before a start that has failed: indices that were taken
// are free again, and devices that were gone are gone since then. A device keeps its new index if
// its hook is left: the hook of a network device that was renamed.
func (s *deviceSet) restoreTable(before []deviceEntry, isLeft func(ifindex int) bool) {
	s.write(func() {
		for i := range before {
			counts := func(d *device) bool { return d.index == i && d.link != nil && isLeft(d.ifindex) }
			entry := &s.pool.table.entries[i]
			switch {
			case before[i].isTaken():
				entry.goneNs = before[i].goneNs
			case entry.isTaken() && !slices.ContainsFunc(s.listed, counts):
				s.pool.table.release(i)
			}
		}
	})
}

// retire frees an index: it forgets the device that vanished.
func (s *deviceSet) retire(index int) error {
	var err error
	s.write(func() {
		s.pool.table.release(index)
		for _, d := range s.gone {
			if d.index == index {
				err = s.unload(d)
			}
		}
		s.gone = slices.DeleteFunc(s.gone, func(d *device) bool { return d.index == index })
	})
	return err
}

// clearIndex clears the counters of a free index.
func (s *deviceSet) clearIndex(index int) (err error) {
	s.write(func() {
		s.pool.table.entries[index].goneFlows += s.pool.counters.netInserts(index)
		err = s.pool.clearCounters(index)
		s.pool.counters.reset(index)
	})
	return err
}
