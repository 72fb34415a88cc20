// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// The counters in the maps and the exported values have the same shape.
var (
	_ = programDeviceCounters{}.Protocols[NumFamilies-1][NumProtocols-1]
	_ = [1]struct{}{}[len(programDeviceCounters{}.FlowEvictions)-int(NumEvictions)]
	_ = [1]struct{}{}[len(programDeviceCounters{}.Fates)-1-int(fateNoToken)]
	_ = [1]struct{}{}[len(programDeviceCounters{}.Histogram)-timing.Cells]
)

// counterReader reads audit_counters from mapped memory, without a system call.
type counterReader struct {
	array     *mapArray[programDeviceCounters]
	config    Config
	params    timing.Params
	blocks    [][]programDeviceCounters // by device and CPU
	states    [][]blockState            // like blocks
	totals    []Uint128                 // Σ delta by device, at the last reading
	baselines [][]timing.State          // like blocks; nil if flows have own baselines
}

func mapCounters(m *ebpf.Map, cpus, devices int, config Config) (*counterReader, error) {
	array, err := newMapArray[programDeviceCounters](m, unix.PROT_READ)
	if err != nil {
		return nil, fmt.Errorf("mapping the counters: %w", err)
	}
	if array.len() != cpus*devices {
		err := fmt.Errorf("mapping the counters: got %d blocks, want %d for %d devices on %d CPUs", array.len(), cpus*devices, devices, cpus)
		return nil, errors.Join(err, array.close())
	}
	r := newCounterReader(array.slice(), cpus, devices, config)
	r.array = array
	return r, nil
}

// newCounterReader returns a reader of blocks. There is one block for each CPU of each device.
func newCounterReader(blocks []programDeviceCounters, cpus, devices int, config Config) *counterReader {
	r := &counterReader{config: config, params: config.params(), totals: make([]Uint128, devices)}
	for i := range devices {
		r.blocks = append(r.blocks, blocks[i*cpus:(i+1)*cpus])
		r.states = append(r.states, make([]blockState, cpus))
		if config.Baseline == BaselineDevice {
			r.baselines = append(r.baselines, make([]timing.State, cpus))
		}
	}
	return r
}

func (r *counterReader) close() error {
	r.blocks = nil
	if err := r.array.close(); err != nil {
		return fmt.Errorf("unmapping the counters: %w", err)
	}
	return nil
}

// Counters returns one reading of the counters of each present device that was attached at
// least once, in the order of [Audit.Hooks]. It is empty after [Audit.Close]. No counter is
// lower than in an earlier reading.
func (a *Audit) Counters() []Counters {
	var all []Counters
	a.devices.each(func(d *device) {
		if !d.isCounted() {
			return
		}
		if all == nil {
			// Counters are large: a slice that grows would be copied again and again.
			all = make([]Counters, 0, len(a.devices.listed))
		}
		all = append(all, Counters{Device: d.name})
		c := &all[len(all)-1]
		a.counters.read(d.index, c)
		if a.pins != nil {
			a.maps.devices.entries[d.index].settleFates(&c.Fates)
		}
	})
	return all
}

// settleFates splits the sent events into those that were read and those that were lost in the
// rings of a process that ended. An event that is still in a ring is in neither count yet,
// because it may still become either and no count may decrease.
func (e *deviceEntry) settleFates(fates *[NumFates]uint64) {
	fates[FateReaderGap] = e.gap
	fates[FateSent] = min(atomic.LoadUint64(&e.received), fates[FateSent]-min(e.gap, fates[FateSent]))
}

// netInserts returns the number of flows that a device inserted into the flow table, less the
// number of flows that it evicted, of whatever device. The sum over all devices is the number
// of used slots.
func (r *counterReader) netInserts(device int) int64 {
	var n int64
	for cpu := range r.blocks[device] {
		block := &r.blocks[device][cpu]
		if usedCells(block) == 0 {
			continue
		}
		n += int64(atomic.LoadUint64(&block.FlowInserts))
		for e := range block.FlowEvictions {
			n -= int64(atomic.LoadUint64(&block.FlowEvictions[e]))
		}
	}
	return n
}

// reset makes the next reading of an index independent of the last one.
func (r *counterReader) reset(device int) {
	r.totals[device] = Uint128{}
	clear(r.states[device])
}

// read adds the blocks of one device to c.
func (r *counterReader) read(device int, c *Counters) {
	var packets Packets // of one block; only its used cells are valid
	histograms := histogramReader{sum: &c.Histogram, dense: make([]*Histogram, 0, denseBlocks)}
	for cpu := range r.blocks[device] {
		block, state := &r.blocks[device][cpu], &r.states[device][cpu]
		used := usedCells(block)
		if used == 0 {
			r.skip(device, cpu)
			continue
		}
		readDeltas(block, used, &packets, &state.sums)
		c.Packets.add(&packets, used)
		c.Sums.AboveNs = c.Sums.AboveNs.Add(state.sums.above)
		c.Sums.BelowNs = c.Sums.BelowNs.Add(state.sums.below)
		c.Sums.SquaredNs2 = c.Sums.SquaredNs2.Add(state.sums.squared)
		for cells := used; cells != 0; {
			f, p := cells.next()
			c.Bytes[f][p] += atomic.LoadUint64(&block.Protocols[f][p].Bytes)
		}
		for f := range c.Fates {
			c.Fates[f] += atomic.LoadUint64(&block.Fates[f])
		}
		common, noToken := atomic.LoadUint64(&block.Fates[FateSuppressed]), atomic.LoadUint64(&block.Fates[fateNoToken])
		c.Fates[FateSuppressed] += noToken
		c.Decisions[DecisionEarned] += atomic.LoadUint64(&block.EarnedEvents)
		c.Decisions[DecisionUnearned] += atomic.LoadUint64(&block.UnearnedEvents)
		c.Decisions[DecisionCommon] += common
		c.Decisions[DecisionNoToken] += noToken
		c.Inserts += atomic.LoadUint64(&block.FlowInserts)
		c.Restarts += atomic.LoadUint64(&block.BaselineRestarts)
		for e := range c.Evictions {
			c.Evictions[e] += atomic.LoadUint64(&block.FlowEvictions[e])
		}
		histograms.add(block, &state.lines)
		if flag, ok := loadLastFlag(&block.LastFlag, r.params); ok && (c.LastFlag == nil || flag.KtimeNs > c.LastFlag.KtimeNs) {
			c.setLastFlag(flag)
		}
		if r.baselines != nil {
			loadBaseline(&block.Device, &r.baselines[device][cpu])
		}
	}
	histograms.finish()
	if r.baselines != nil {
		merged := timing.Merge(r.corrected(device))
		c.Baseline = &Baseline{Domain: r.params.Domain, Samples: merged.N, MeanQ16: merged.MeanQ16, M2: merged.M2}
	}
	if learnt, isFrozen := r.config.Frozen[c.Device]; isFrozen {
		r.freeze(c, &learnt)
	}
	c.Sums.ReferenceNs = atomic.LoadUint64(&r.blocks[device][0].Sums.ReferenceNs)
	c.Sums.TotalNs = r.total(device, c)
}

// setLastFlag copies a flag into memory that is allocated once for all CPUs of a device.
func (c *Counters) setLastFlag(flag Flag) {
	if c.LastFlag == nil {
		c.LastFlag = new(Flag)
	}
	*c.LastFlag = flag
}

// skip takes over the zeros of an unused block.
func (r *counterReader) skip(device, cpu int) {
	if r.baselines != nil {
		r.baselines[device][cpu] = timing.State{}
	}
}

// freeze replaces the baseline in c by the saved one that the device is scored against.
func (r *counterReader) freeze(c *Counters, learnt *Learnt) {
	c.Baseline = &Baseline{
		Domain: r.params.Domain, Samples: learnt.N, MeanQ16: learnt.MeanQ16, M2: learnt.M2, FrozenSince: r.config.FrozenSince,
	}
}

// Learnt returns the learned state, by device name, of the present devices that still learn and
// have enough samples for [Config.Frozen]. It is empty unless the baseline scope is
// [BaselineDevice].
func (a *Audit) Learnt() map[string]Learnt {
	all := map[string]Learnt{}
	if a.config.Baseline != BaselineDevice {
		return all
	}
	a.devices.each(func(d *device) {
		if _, isFrozen := a.config.Frozen[d.name]; isFrozen || !d.isCounted() {
			return
		}
		if learnt := a.counters.learnt(d.index); learnt.N >= uint64(a.config.Window) {
			all[d.name] = learnt
		}
	})
	return all
}

// learnt merges the learned state of all CPUs for one device.
func (r *counterReader) learnt(device int) Learnt {
	for cpu := range r.blocks[device] {
		block := &r.blocks[device][cpu]
		if usedCells(block) == 0 {
			r.skip(device, cpu)
			continue
		}
		loadBaseline(&block.Device, &r.baselines[device][cpu])
	}
	return timing.Learn(r.corrected(device))
}

// corrected returns the baselines of all CPUs of a device, corrected for the clip.
func (r *counterReader) corrected(device int) []timing.State {
	states := make([]timing.State, len(r.baselines[device]))
	for cpu, s := range r.baselines[device] {
		states[cpu] = r.params.Corrected(s)
	}
	return states
}

// total returns the sum of the deltas, n · reference + above − below. It is off by one
// reference while the deviation of a packet is counted and its cell is not. It never decreases.
func (r *counterReader) total(device int, c *Counters) Uint128 {
	last := &r.totals[device]
	with := Uint128{Lo: c.Packets.Deltas()}.Mul64(c.Sums.ReferenceNs).Add(c.Sums.AboveNs)
	if with.Cmp(c.Sums.BelowNs) >= 0 {
		if total := with.Sub(c.Sums.BelowNs); total.Cmp(*last) > 0 {
			*last = total
		}
	}
	return *last
}
