// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// The counters in the maps and the exported values have the same shape.
var (
	_ = programDeviceCounters{}.Protocols[NumFamilies-1][NumProtocols-1]
	_ = [1]struct{}{}[len(programDeviceCounters{}.FlowEvictions)-int(NumEvictions)]
	_ = [1]struct{}{}[len(programDeviceCounters{}.Histogram)-timing.Cells]
)

// counterReader reads audit_counters from mapped memory, without a system call.
type counterReader struct {
	array     *mapArray[programDeviceCounters]
	config    Config
	params    timing.Params
	blocks    [][]programDeviceCounters // by device and CPU
	sums      [][]blockSums             // at the last reading
	totals    []Uint128                 // Σ delta by device, at the last reading
	baselines [][]timing.State          // like sums; nil if flows have own baselines
}

// blockSums holds the 128-bit sums of one block.
type blockSums struct {
	above, below, squared Uint128
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
		r.sums = append(r.sums, make([]blockSums, cpus))
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
	clear(r.sums[device])
}

// read adds the blocks of one device to c.
func (r *counterReader) read(device int, c *Counters) {
	if r.params.Calibrate != 0 {
		c.Calibration = &Calibration{EventScores: [2]float64{r.params.Threshold, r.params.Threshold}}
	}
	for cpu := range r.blocks[device] {
		block := &r.blocks[device][cpu]
		used := usedCells(block)
		if used == 0 {
			r.skip(device, cpu)
			continue
		}
		packets, sums := readDeltas(block, used, &r.sums[device][cpu])
		c.Packets.add(&packets, used)
		c.Sums.AboveNs = c.Sums.AboveNs.Add(sums.above)
		c.Sums.BelowNs = c.Sums.BelowNs.Add(sums.below)
		c.Sums.SquaredNs2 = c.Sums.SquaredNs2.Add(sums.squared)
		for f := range c.Bytes {
			for p := range c.Bytes[f] {
				c.Bytes[f][p] += atomic.LoadUint64(&block.Protocols[f][p].Bytes)
			}
		}
		for f := range c.Fates {
			c.Fates[f] += atomic.LoadUint64(&block.Fates[f])
		}
		c.Inserts += atomic.LoadUint64(&block.FlowInserts)
		for e := range c.Evictions {
			c.Evictions[e] += atomic.LoadUint64(&block.FlowEvictions[e])
		}
		for i := range c.Histogram {
			c.Histogram[i] += atomic.LoadUint64(&block.Histogram[i])
		}
		if flag := loadLastFlag(&block.LastFlag, r.params.Domain); flag != nil && (c.LastFlag == nil || flag.KtimeNs > c.LastFlag.KtimeNs) {
			c.LastFlag = flag
		}
		if c.Calibration != nil {
			c.Calibration.add(r.params, &block.Calibration, packets.Judged())
		}
		if r.baselines != nil {
			loadBaseline(&block.Device, &r.baselines[device][cpu])
		}
	}
	if r.baselines != nil {
		merged := timing.Merge(r.baselines[device])
		c.Baseline = &Baseline{Domain: r.params.Domain, Samples: merged.N, MeanQ16: merged.MeanQ16, M2: merged.M2}
	}
	if learnt, isFrozen := r.config.Frozen[c.Device]; isFrozen {
		r.freeze(c, &learnt)
	}
	c.Sums.ReferenceNs = atomic.LoadUint64(&r.blocks[device][0].Sums.ReferenceNs)
	c.Sums.TotalNs = r.total(device, c)
}

// cellSet is a set of cells, by family and protocol.
type cellSet uint32

func cellBit(f Family, p Protocol) cellSet { return 1 << (int(f)*int(NumProtocols) + int(p)) }

func (s cellSet) has(f Family, p Protocol) bool { return s&cellBit(f, p) != 0 }

// usedCells returns the cells of a block in which packets are counted. Few cells are used, and a
// CPU that is offline or receives nothing uses none. All other values of a block without used
// cells are 0, and so are the packets of a cell that is not used: the program adds the length of a
// packet, which is never 0, to the bytes of its cell before it counts anything else.
func usedCells(block *programDeviceCounters) (used cellSet) {
	for f := range NumFamilies {
		for p := range NumProtocols {
			if atomic.LoadUint64(&block.Protocols[f][p].Bytes) != 0 {
				used |= cellBit(f, p)
			}
		}
	}
	return used
}

// skip takes over the zeros of an unused block.
func (r *counterReader) skip(device, cpu int) {
	if r.baselines != nil {
		r.baselines[device][cpu] = timing.State{}
	}
}

// freeze replaces the baseline and the calibration in c by the saved ones that the device is
// scored against.
func (r *counterReader) freeze(c *Counters, learnt *Learnt) {
	c.Baseline = &Baseline{
		Domain: r.params.Domain, Samples: learnt.N, MeanQ16: learnt.MeanQ16, M2: learnt.M2, FrozenSince: r.config.FrozenSince,
	}
	if c.Calibration != nil {
		allowed, cuts := r.params.Cuts(learnt)
		c.Calibration = &Calibration{Judged: learnt.Judged}
		for side := range cuts {
			c.Calibration.EventScores[side] = r.params.EventScore(allowed, cuts[side])
		}
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
		if learnt := a.counters.learnt(d.index); a.counters.params.IsEnough(&learnt) {
			all[d.name] = learnt
		}
	})
	return all
}

// learnt merges the learned state of all CPUs for one device.
func (r *counterReader) learnt(device int) Learnt {
	var judged uint64
	var scores [2][timing.ScoreBins]uint64
	for cpu := range r.blocks[device] {
		block := &r.blocks[device][cpu]
		if usedCells(block) == 0 {
			r.skip(device, cpu)
			continue
		}
		loadBaseline(&block.Device, &r.baselines[device][cpu])
		if r.params.Calibrate == 0 {
			continue
		}
		for side := range scores {
			for bin := range scores[side] {
				scores[side][bin] += uint64(atomic.LoadUint32(&block.Calibration.Scores[side][bin]))
			}
		}
		// After the scores, so that no score lacks its packet.
		packets := loadPackets(block, usedCells(block))
		judged += packets.Judged() - min(packets.Judged(), atomic.LoadUint64(&block.Calibration.Forgotten))
	}
	return timing.Learn(r.baselines[device], judged, &scores)
}

// readDeltas returns the packets and the sums of a block. Both cover the same packets, unless
// packets arrived during each of the attempts to read them; then they differ by the packets that
// arrived during the last attempt. The sums are stored in *last, which has those of the last
// reading.
func readDeltas(block *programDeviceCounters, used cellSet, last *blockSums) (Packets, blockSums) {
	var before Packets
	for range 8 {
		before = loadPackets(block, used)
		last.above = loadUint128(&block.Sums.Deviation[0], &last.above)
		last.below = loadUint128(&block.Sums.Deviation[1], &last.below)
		last.squared = loadUint128(&block.Sums.Squared, &last.squared)
		if loadPackets(block, used) == before {
			break
		}
	}
	return before, *last
}

// loadPackets reads the packets of the used cells of a block.
func loadPackets(block *programDeviceCounters, used cellSet) (packets Packets) {
	for f := range NumFamilies {
		for p := range NumProtocols {
			if !used.has(f, p) {
				continue
			}
			for o := range packets[f][p] {
				packets[f][p][o] = atomic.LoadUint64(&block.Protocols[f][p].Packets[o])
			}
		}
	}
	return packets
}

// add adds the packets of the used cells of a block.
func (p *Packets) add(packets *Packets, used cellSet) {
	for f := range NumFamilies {
		for q := range NumProtocols {
			if !used.has(f, q) {
				continue
			}
			for o, n := range packets[f][q] {
				p[f][q][o] += n
			}
		}
	}
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

// loadUint128 reads a sum that grows meanwhile. The program stores the low word first and then
// the carry, so that a sum read between the two stores is 2⁶⁴ too small. Such a sum is below
// the last one, and is read again.
func loadUint128(words *[2]uint64, last *Uint128) Uint128 {
	for range 1 << 20 {
		high := atomic.LoadUint64(&words[1])
		sum := Uint128{Hi: high, Lo: atomic.LoadUint64(&words[0])}
		if atomic.LoadUint64(&words[1]) == high && sum.Cmp(*last) >= 0 {
			return sum
		}
	}
	return *last
}

// loadLastFlag reads the last flag of a CPU, which the program may replace meanwhile. It
// returns nil if there is none.
func loadLastFlag(last *programLastFlag, domain Domain) *Flag {
	for {
		sequence := atomic.LoadUint64(&last.Sequence)
		if sequence == 0 {
			return nil
		}
		var state programFlagState
		from := (*[flagWords]uint64)(unsafe.Pointer(&last.States[sequence&1]))
		to := (*[flagWords]uint64)(unsafe.Pointer(&state))
		for i := range from {
			to[i] = atomic.LoadUint64(&from[i])
		}
		if atomic.LoadUint64(&last.Sequence) == sequence {
			flag := flagOf(&state, domain)
			return &flag
		}
	}
}

// loadBaseline reads the baseline of a CPU into *last. The CPU takes about ten nanoseconds per
// packet to write it, unless it is interrupted. If a write lasts longer than a thousand
// attempts to read, *last is unchanged.
func loadBaseline(device *programDeviceBaseline, last *timing.State) {
	for range 1000 {
		sequence := atomic.LoadUint64(&device.Sequence)
		b := programBaseline{
			MeanQ16: atomic.LoadUint64(&device.Baseline.MeanQ16),
			M2Low:   atomic.LoadUint64(&device.Baseline.M2Low),
			M2High:  atomic.LoadUint32(&device.Baseline.M2High),
			N:       atomic.LoadUint32(&device.Baseline.N),
		}
		if sequence&1 == 0 && atomic.LoadUint64(&device.Sequence) == sequence {
			*last = b.state()
			return
		}
	}
}

const flagWords = unsafe.Sizeof(programFlagState{}) / 8

func flagOf(state *programFlagState, domain Domain) Flag {
	return Flag{
		AuditNs: state.AuditNs, KtimeNs: state.KtimeNs, DeltaNs: state.DeltaNs, Domain: domain, Samples: uint64(state.N),
		MeanQ16: state.MeanQ16, M2: Uint128{Hi: uint64(state.M2High), Lo: state.M2Low},
		LenBytes: state.LenBytes, Late: state.IsLate != 0,
	}
}

func (b *programBaseline) state() timing.State {
	return timing.State{N: uint64(b.N), MeanQ16: b.MeanQ16, M2: Uint128{Hi: uint64(b.M2High), Lo: b.M2Low}}
}
