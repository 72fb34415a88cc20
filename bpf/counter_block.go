// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"math/bits"
	"sync/atomic"
	"unsafe"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// The counters of one device on one CPU are a block. On a host with many CPUs all blocks are tens
// of megabytes, so a reading loads no more cache lines than it needs.

// blockState is what is known of a block from earlier readings.
type blockState struct {
	sums  blockSums // at the last reading
	lines lineSet   // lines of the histogram with deltas
}

// blockSums holds the 128-bit sums of one block.
type blockSums struct {
	above, below, squared Uint128
}

// cellSet is a set of cells, by family and protocol. The bits are in the order of the block.
type cellSet uint32

const familyShift = 3 // as in protocol_cell() in layout.h

// next removes a cell from a set that is not empty, and returns it.
func (s *cellSet) next() (Family, Protocol) {
	i := bits.TrailingZeros32(uint32(*s))
	*s &= *s - 1
	return Family(i >> familyShift), Protocol(i & (1<<familyShift - 1))
}

// usedCells returns the cells of a block in which packets are counted. Few cells are used, and a
// CPU that is offline or receives nothing uses none. All other values of a block without used
// cells are 0, and so are the packets of a cell that is not used: the program adds the length of a
// packet, which is never 0, to the bytes of its cell before it counts anything else.
func usedCells(block *programDeviceCounters) (used cellSet) {
	for f := range NumFamilies {
		for p := range NumProtocols {
			if atomic.LoadUint64(&block.Protocols[f][p].Bytes) != 0 {
				used |= 1 << (f<<familyShift | Family(p))
			}
		}
	}
	return used
}

// readDeltas reads the packets of the used cells of a block into *packets, and its sums into *last,
// which has those of the last reading. Both cover the same packets, unless packets arrived during
// each of the attempts to read them; then they differ by the packets that arrived during the last
// attempt.
func readDeltas(block *programDeviceCounters, used cellSet, packets *Packets, last *blockSums) {
	for range 8 {
		before := loadPackets(block, used, packets)
		last.above = loadUint128(&block.Sums.Deviation[0], &last.above)
		last.below = loadUint128(&block.Sums.Deviation[1], &last.below)
		last.squared = loadUint128(&block.Sums.Squared, &last.squared)
		if countPackets(block, used) == before {
			break
		}
	}
}

// loadPackets reads the packets of the used cells of a block and returns their number.
func loadPackets(block *programDeviceCounters, used cellSet, packets *Packets) (sum uint64) {
	for used != 0 {
		f, p := used.next()
		for o := range packets[f][p] {
			n := atomic.LoadUint64(&block.Protocols[f][p].Packets[o])
			packets[f][p][o] = n
			sum += n
		}
	}
	return sum
}

// countPackets returns the number of packets in the used cells of a block.
func countPackets(block *programDeviceCounters, used cellSet) (sum uint64) {
	for used != 0 {
		f, p := used.next()
		for o := range NumOutcomes {
			sum += atomic.LoadUint64(&block.Protocols[f][p].Packets[o])
		}
	}
	return sum
}

// countDeltas returns the number of deltas of a block, see [Packets.Deltas].
func countDeltas(block *programDeviceCounters) (sum uint64) {
	for used := usedCells(block); used != 0; {
		f, p := used.next()
		packets := &block.Protocols[f][p].Packets
		sum += atomic.LoadUint64(&packets[OutcomeJudged]) + atomic.LoadUint64(&packets[OutcomeMinSamples]) +
			atomic.LoadUint64(&packets[OutcomeFlaggedEarly]) + atomic.LoadUint64(&packets[OutcomeFlaggedLate])
	}
	return sum
}

// add adds the packets of the used cells of a block.
func (p *Packets) add(packets *Packets, used cellSet) {
	for used != 0 {
		f, q := used.next()
		for o, n := range packets[f][q] {
			p[f][q][o] += n
		}
	}
}

// loadUint128 reads a sum that grows meanwhile. It tries again if a carry was stored between its
// loads. No CPU carries so often that eight attempts fail. If they do, the sum is the last one.
func loadUint128(words *[2]uint64, last *Uint128) Uint128 {
	for range 8 {
		high, low, again := atomic.LoadUint64(&words[1]), atomic.LoadUint64(&words[0]), atomic.LoadUint64(&words[1])
		if sum, ok := wordsToSum(high, low, again); ok && sum.Cmp(*last) >= 0 {
			return sum
		}
	}
	return *last
}

// sumCarries is SUM_CARRIES of counters.h.
const sumCarries = 1 << 63

// wordsToSum returns the sum of the words that were loaded in this order, the high word twice.
// While the program stores a carry, the high word is that of the sum after it, with sumCarries.
// Then the highest bit of the low word tells whether that is the one before it. The result is not
// ok if the high word has changed.
func wordsToSum(high, low, again uint64) (sum Uint128, ok bool) {
	sum = Uint128{Hi: high &^ sumCarries, Lo: low}
	if high&sumCarries != 0 && low>>63 != 0 {
		sum.Hi--
	}
	return sum, high == again
}

// loadLastFlag reads the last flag of a CPU, which the program may replace meanwhile.
func loadLastFlag(last *programLastFlag, params timing.Params) (flag Flag, ok bool) {
	for {
		sequence := atomic.LoadUint64(&last.Sequence)
		if sequence == 0 {
			return Flag{}, false
		}
		var state programFlagState
		from := (*[flagWords]uint64)(unsafe.Pointer(&last.Events[(sequence+1)&1].Event.Flag))
		to := (*[flagWords]uint64)(unsafe.Pointer(&state))
		for i := range from {
			to[i] = atomic.LoadUint64(&from[i])
		}
		if atomic.LoadUint64(&last.Sequence) == sequence {
			return flagOf(&state, params), true
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

func flagOf(state *programFlagState, params timing.Params) Flag {
	return Flag{
		AuditNs: state.AuditNs, KtimeNs: state.KtimeNs, DeltaNs: state.DeltaNs, Domain: params.Domain, Samples: uint64(state.N),
		MeanQ16: state.MeanQ16, M2: Uint128{Hi: uint64(state.M2High), Lo: state.M2Low}, Clip: params.Clip,
		LenBytes: state.LenBytes, Late: state.IsLate != 0,
	}
}

func (b *programBaseline) state() timing.State {
	return timing.State{N: uint64(b.N), MeanQ16: b.MeanQ16, M2: Uint128{Hi: uint64(b.M2High & m2HighMask), Lo: b.M2Low}}
}

// m2HighMask is M2_HIGH_MASK in xdp/layout.h. The other bits belong to the flow's record.
const m2HighMask = 1<<23 - 1
