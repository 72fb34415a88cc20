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
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/perf"
	"golang.org/x/sys/unix"
)

// Each CPU that is online at the start has a ring. A CPU that comes online later has none, and
// a CPU that goes offline loses its ring for good. If events find no ring, all rings are
// reopened, which takes the same privileges as the start.
//
// Which CPUs are online is learned by opening a perf event on each. A container may see a false
// list of CPUs in /sys, as lxcfs makes it.

const (
	// ringInterval is the interval at which lost rings are looked for.
	ringInterval = time.Second
	// ringPause is the interval after rings were reopened: if new rings do not help, they must
	// not be reopened all the time.
	ringPause = 10 * time.Second
	// ringAttempts is the number of attempts to open the rings while CPUs go online or offline.
	ringAttempts = 10
)

// openRings opens a ring for each online CPU, and writes the number of each CPU's ring into the
// map of allowances: rings are numbered without gaps, CPUs are not. On an error, rings that
// were open before are unchanged.
func openRings(events, allowances *ebpf.Map, cpus int) (*perf.Reader, error) {
	reader, online, err := openOnlineRings(events, cpus)
	if err != nil {
		return nil, err
	}
	for cpu := range cpus {
		ring := slices.Index(online, cpu)
		if ring < 0 {
			ring = len(online) // a ring that does not exist
		}
		if err := allowances.Put(uint32(cpu), &programEventAllowance{Ring: uint32(ring)}); err != nil {
			return nil, errors.Join(fmt.Errorf("assigning the ring of CPU %d: %w", cpu, err), reader.Close())
		}
	}
	for ring := uint32(len(online)); ring < events.MaxEntries(); ring++ {
		_ = events.Delete(ring) // the ring of a CPU that is no longer online
	}
	return reader, nil
}

// openOnlineRings opens a ring for each online CPU, and returns these CPUs in the order of their
// rings. A reader does not tell which CPUs have its rings: they are those that were online before
// and after it was opened.
func openOnlineRings(events *ebpf.Map, cpus int) (*perf.Reader, []int, error) {
	for range ringAttempts {
		online, err := onlineCPUs(cpus)
		if err != nil {
			return nil, nil, err
		}
		reader, err := perf.NewReaderWithOptions(events, ringBytes, perf.ReaderOptions{Watermark: ringWatermark})
		if err != nil {
			return nil, nil, explainRings(err)
		}
		after, err := onlineCPUs(cpus)
		if err == nil && slices.Equal(online, after) {
			return reader, online, nil
		}
		if err := errors.Join(err, reader.Close()); err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, fmt.Errorf("opening the rings of %s: CPUs went online or offline during each of %d attempts", programMapAuditEvents, ringAttempts)
}

// onlineCPUs returns the online CPUs of the possible ones, in ascending order. It returns an error
// if the kernel has more possible CPUs, or refuses perf events.
func onlineCPUs(possible int) (online []int, err error) {
	for cpu := range possible {
		err := openPerfEvent(cpu)
		if err == nil {
			online = append(online, cpu)
		} else if !errors.Is(err, unix.ENODEV) {
			return nil, explainRings(fmt.Errorf("CPU %d: %w", cpu, err))
		}
	}
	if err := openPerfEvent(possible); err == nil || errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("the kernel has more CPUs than the %d of /sys/devices/system/cpu/possible, and their packets would be missing: remove what is mounted over that file", possible)
	}
	return online, nil
}

// openPerfEvent opens a perf event like that of a ring, and closes it. The error is ENODEV for a
// CPU that is offline.
func openPerfEvent(cpu int) error {
	event := unix.PerfEventAttr{
		Type: unix.PERF_TYPE_SOFTWARE, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{})),
		Config: unix.PERF_COUNT_SW_BPF_OUTPUT, Sample_type: unix.PERF_SAMPLE_RAW,
	}
	fd, err := unix.PerfEventOpen(&event, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("perf_event_open: %w", err)
	}
	return unix.Close(fd)
}

// reopen opens new rings and returns the old ones. The caller reads the events that are left in
// the old rings, and closes them.
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
	awaitPrograms() // until no program writes to the old rings
	return old, nil
}

// ringCheck finds CPUs whose events find no ring.
type ringCheck struct {
	next     time.Time              // time of the next check
	counts   map[deviceOnCPU]uint64 // events without a ring, at the last check
	reported map[int]bool           // CPUs whose loss was logged
}

type deviceOnCPU struct{ index, cpu int }

// reopenLostRings reopens the rings if events of a CPU found no ring since the last check, and
// then returns the old rings. It logs an error that prevents this once for each CPU.
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
			a.logger.Error("Events of a CPU that was offline are lost until a restart: its ring cannot be reopened", "cpu", cpu, "err", err)
		}
		return nil, nil
	}
	c.next = time.Now().Add(ringPause)
	c.newlyRingless(a.ringlessEvents())
	clear(c.reported)
	a.logger.Info("Reopened the event rings for CPUs that were offline", "cpus", fmt.Sprint(cpus))
	return old, nil
}

// newlyRingless returns the CPUs whose events found no ring since the last check, in ascending
// order.
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

// ringlessEvents returns the number of events that found no ring: their CPU never had one, or
// the kernel took it away.
func (a *Audit) ringlessEvents() map[deviceOnCPU]uint64 {
	counts := map[deviceOnCPU]uint64{}
	a.devices.each(func(d *device) {
		if !d.hasIndex() {
			return
		}
		for cpu := range a.counters.blocks[d.index] {
			fates := &a.counters.blocks[d.index][cpu].Fates
			counts[deviceOnCPU{d.index, cpu}] = atomic.LoadUint64(&fates[FateNoReader]) + atomic.LoadUint64(&fates[FateOther])
		}
	})
	return counts
}
