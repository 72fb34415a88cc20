// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import (
	"math"
	"math/bits"
)

const (
	log2Shift   = 20 // fraction bits of a logarithm
	intervalLog = 7  // log2 of LogEntries

	// LogEntries is the number of entries of [LogTable]: intervals of an octave.
	LogEntries = 1 << intervalLog

	// nanosecondSquared is (2²⁰/ln 2)²: the square of a nanosecond at 1 ns, in units.
	nanosecondSquared = 2_288_489_396_308
	// roundingSquared accounts for rounding a logarithm to whole units. At this value, a
	// nanosecond that rounding turns into one more unit is not flagged at a threshold of 4.
	roundingSquared = 3
)

var logTable = newLogTable()

func newLogTable() (table [LogEntries]uint32) {
	for i := range table {
		table[i] = uint32(math.Round(math.Ldexp(math.Log2(1+float64(i)/LogEntries), 32)))
	}
	return table
}

// LogTable returns the table for the interpolation of logarithms: entry i is log2(1 + i/128) in
// 2⁻³² octaves.
func LogTable() [LogEntries]uint32 { return logTable }

// logarithm returns log2 of a delta of at most 2³¹ ns in 2⁻²⁰ octaves. The error is at most
// 1.2e-5 octaves. A delta of 0 ns gives the same result as 1 ns.
func logarithm(deltaNs uint64) uint64 {
	const restBits = 31 - intervalLog
	deltaNs = max(deltaNs, 1)
	octave := bits.Len64(deltaNs) - 1
	fraction := deltaNs << (31 - octave) // at least 2³¹
	index, rest := fraction>>restBits%LogEntries, fraction%(1<<restBits)
	// The last step wraps around to the full octave, 2³².
	step := logTable[(index+1)%LogEntries] - logTable[index]
	q32 := uint64(logTable[index]) + uint64(step)*rest>>restBits
	return uint64(octave)<<log2Shift + (q32+1<<(31-log2Shift))>>(32-log2Shift)
}

// leastSquaredLog2 returns twelve times the smallest variance in units²: u² + 3, where u is a
// nanosecond at the mean, 1/(mean·ln 2) octaves, in units. u² is computed at the half octave
// below the mean, which makes it up to twice as large.
func leastSquaredLog2(meanQ16 uint64) uint64 {
	halfOctaves := meanQ16 >> (meanShift + log2Shift - 1)
	return nanosecondSquared>>halfOctaves + roundingSquared
}
