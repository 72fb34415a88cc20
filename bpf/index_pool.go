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

// indexFor returns the index of a device: the one that it has in the table, else a free one, else
// that of the device that vanished first. It runs in a change of the set.
func (s *deviceSet) indexFor(name string) (int, error) {
	if index := s.pool.table.find(name); index >= 0 {
		return index, nil
	}
	return s.takeIndex(name)
}

func (s *deviceSet) takeIndex(name string) (int, error) {
	table := s.pool.table
	index, err := table.choose()
	if err != nil {
		return 0, fmt.Errorf("device %s: %w: to audit more than %d devices, raise the maximum (--audit.max-devices)",
			name, err, len(table.entries))
	}
	if table.entries[index].generation > 0 {
		if err := s.retire(index); err != nil {
			return 0, err
		}
	}
	s.pool.events.retire(index) // before the count of events starts at zero
	s.write(func() { err = table.take(index, name) })
	return index, err
}

// retire frees an index: it forgets the device that vanished, waits until no program counts in the
// index, and clears the counters.
func (s *deviceSet) retire(index int) error {
	table := s.pool.table
	s.dropUnclaimedOn(int(table.entries[index].ifindex))
	var err error
	s.write(func() {
		table.release(index)
		for _, d := range s.gone {
			if d.index == index {
				err = s.unload(d)
			}
		}
		s.gone = slices.DeleteFunc(s.gone, func(d *device) bool { return d.index == index })
	})
	awaitPrograms()
	s.write(func() {
		table.entries[index].goneFlows += s.pool.counters.netInserts(index)
		err = errors.Join(err, s.pool.clearCounters(index))
		s.pool.counters.reset(index)
	})
	return err
}
