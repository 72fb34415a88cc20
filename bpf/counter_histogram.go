// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"math/bits"
	"sync/atomic"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// Histograms are half of all counters. Most deltas of a CPU are in few cells, so only the cache
// lines that have deltas are read, where that saves most of them. Otherwise the histograms of
// several CPUs are added at once: the processor loads their lines side by side, and stores each sum
// once.

const (
	lineCells      = 8 // cells in a cache line of 64 bytes
	histogramLines = timing.Cells / lineCells
	denseLines     = histogramLines / 2 // lines from which on the histogram of a block is dense
	denseBlocks    = 4                  // dense histograms that are added at once
)

// lineSet is a set of lines of a histogram.
type lineSet [histogramLines / 64]uint64

func (s *lineSet) add(line int) { s[line/64] |= 1 << (line % 64) }

func (s *lineSet) isDense() bool {
	n := 0
	for _, word := range s {
		n += bits.OnesCount64(word)
	}
	return n >= denseLines
}

// histogramReader adds the histograms of the blocks of a device.
type histogramReader struct {
	sum   *Histogram
	dense []*Histogram // not added yet; at most denseBlocks
	lines int          // number of lines that were read
}

// add adds the histogram of a block, at once or later. The lines of *known had deltas at earlier
// readings.
func (r *histogramReader) add(block *programDeviceCounters, known *lineSet) {
	if !known.isDense() {
		r.addSparse(block, known)
		return
	}
	r.dense = append(r.dense, (*Histogram)(&block.Histogram))
	if len(r.dense) == denseBlocks {
		r.addDense([denseBlocks]*Histogram(r.dense))
		r.dense = r.dense[:0]
	}
}

// finish adds what add left for later.
func (r *histogramReader) finish() {
	for _, h := range r.dense {
		for line := range histogramLines {
			r.addLine(h, line)
		}
	}
	r.dense = nil
}

// addSparse adds the lines of *known. If they have all deltas of the block, the other lines are
// empty, and not read. The program counts a delta in the histogram first, so the number of deltas
// is loaded after the lines. It lacks at most the packet that is being counted, in whose place one
// delta in another line may be missed until the next reading.
func (r *histogramReader) addSparse(block *programDeviceCounters, known *lineSet) {
	h := (*Histogram)(&block.Histogram)
	others := lineSet{^uint64(0), ^uint64(0)}
	var deltas uint64
	for i, word := range known {
		others[i] &^= word
		for ; word != 0; word &= word - 1 {
			deltas += r.addLine(h, 64*i+bits.TrailingZeros64(word))
		}
	}
	if deltas >= countDeltas(block) {
		return
	}
	for i, word := range others {
		for ; word != 0; word &= word - 1 {
			line := 64*i + bits.TrailingZeros64(word)
			if r.addLine(h, line) != 0 {
				known.add(line)
			}
		}
	}
}

// addLine adds a line and returns the number of its deltas.
func (r *histogramReader) addLine(h *Histogram, line int) (deltas uint64) {
	from := (*[lineCells]uint64)(h[line*lineCells:])
	to := (*[lineCells]uint64)(r.sum[line*lineCells:])
	for i := range from {
		n := atomic.LoadUint64(&from[i])
		to[i] += n
		deltas += n
	}
	r.lines++
	return deltas
}

// addDense adds all lines of several histograms.
func (r *histogramReader) addDense(h [denseBlocks]*Histogram) {
	for i := range r.sum {
		r.sum[i] += atomic.LoadUint64(&h[0][i]) + atomic.LoadUint64(&h[1][i]) + atomic.LoadUint64(&h[2][i]) + atomic.LoadUint64(&h[3][i])
	}
	r.lines += denseBlocks * histogramLines
}
