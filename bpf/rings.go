// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/perf"
)

// Each CPU has a ring. One that comes online later has none, and the kernel takes the ring from one that goes offline and does
// not give it back. Then all rings are opened anew, which takes the privileges of the start.

const (
	// ringInterval is how often it is looked whether events find no ring, and ringPause how long it is not after rings were
	// opened: an error that new rings do not cure must not open them all the time.
	ringInterval = time.Second
	ringPause    = 10 * time.Second
)

// openRings opens a ring for each CPU that is online, and tells the program which ring is whose: the rings are numbered
// without a gap. On an error the rings that were open before are as they were.
func openRings(events, allowances *ebpf.Map, cpus int) (*perf.Reader, error) {
	online, err := onlineCPUs()
	if err != nil {
		return nil, err
	}
	reader, err := perf.NewReaderWithOptions(events, ringBytes, perf.ReaderOptions{Watermark: ringWatermark})
	if err != nil {
		return nil, explainRings(err)
	}
	for cpu := range cpus {
		ring := slices.Index(online, cpu)
		if ring < 0 {
			ring = len(online) // no such ring
		}
		if err := allowances.Put(uint32(cpu), &programEventAllowance{Ring: uint32(ring)}); err != nil {
			return nil, errors.Join(fmt.Errorf("assigning the ring of CPU %d: %w", cpu, err), reader.Close())
		}
	}
	for ring := uint32(len(online)); ring < events.MaxEntries(); ring++ {
		_ = events.Delete(ring) // of a CPU that is not online any more
	}
	return reader, nil
}

// renew opens the rings anew. What is in the old ones is still to be read, by whoever then closes them.
func (r *eventReader) reopen() (old *perf.Reader, err error) {
	r.counting.Lock()
	defer r.counting.Unlock()
	if r.isClosed {
		return nil, os.ErrClosed
	}
	reader, err := openRings(r.rings, r.allowances, r.cpus)
	if err != nil {
		return nil, err
	}
	old, r.reader = r.reader, reader
	awaitPrograms() // until nothing is written to the old ones
	return old, nil
}

// ringCheck notices that events of a CPU find no ring.
type ringCheck struct {
	next     time.Time              // of the next look
	counts   map[deviceOnCPU]uint64 // events that found none, as last read
	reported map[int]bool           // CPUs that the log says are lost
}

type deviceOnCPU struct{ index, cpu int }

// reopenLostRings opens the rings anew if events of a CPU found none since the last look. It returns the old ones if it did. What is
// in its way is logged once for each CPU.
func (a *Audit) reopenLostRings(c *ringCheck) (old *perf.Reader, err error) {
	if time.Now().Before(c.next) {
		return nil, nil
	}
	c.next = time.Now().Add(ringInterval)
	cpus := c.newlyRingless(a.ringlessEvents())
	if len(cpus) == 0 {
		return nil, nil
	}
	old, err = a.events.reopen()
	if errors.Is(err, os.ErrClosed) {
		return nil, err
	}
	if err != nil {
		cpus = slices.DeleteFunc(cpus, func(cpu int) bool { return c.reported[cpu] })
		for _, cpu := range cpus {
			c.reported[cpu] = true
			a.logger.Error("Events of a CPU that was offline are lost until a restart, as it gets no new ring", "cpu", cpu, "err", err)
		}
		return nil, nil
	}
	c.next = time.Now().Add(ringPause)
	c.newlyRingless(a.ringlessEvents())
	clear(c.reported)
	a.logger.Info("Rings opened anew, for CPUs that were offline", "cpus", fmt.Sprint(cpus))
	return old, nil
}

// look returns the CPUs of which events found no ring since the last look, in rising order.
func (c *ringCheck) newlyRingless(now map[deviceOnCPU]uint64) (cpus []int) {
	for k, count := range now {
		if before, isKnown := c.counts[k]; isKnown && count > before && !slices.Contains(cpus, k.cpu) {
			cpus = append(cpus, k.cpu)
		}
	}
	slices.Sort(cpus)
	c.counts = now
	return cpus
}

// ringless returns how many events found no ring: none at all, or one that the kernel has taken from its CPU.
func (a *Audit) ringlessEvents() map[deviceOnCPU]uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	counts := map[deviceOnCPU]uint64{}
	if a.counters == nil {
		return counts
	}
	for _, d := range a.devices {
		for cpu := range a.counters.blocks[d.index] {
			fates := &a.counters.blocks[d.index][cpu].Fates
			counts[deviceOnCPU{d.index, cpu}] = atomic.LoadUint64(&fates[FateNoReader]) + atomic.LoadUint64(&fates[FateOther])
		}
	}
	return counts
}
