// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

const (
	// baseMemory is the soft memory limit of the Go runtime for few devices. It is several times
	// the memory in use, and keeps parallel scrapes from growing the heap.
	baseMemory = 20 << 20

	// memoryPerByte is the memory that it takes to make an answer, in bytes for each byte of the
	// answer before its compression. A limit below it would make the collector of garbage run
	// without pause while the metrics of many devices are gathered.
	memoryPerByte = 16
)

// memoryLimiter adapts the soft memory limit to the largest answer.
type memoryLimiter struct {
	set     func(bytes int64) // nil leaves the limit as it is
	largest int               // bytes of the largest answer so far
}

func newMemoryLimiter(set func(bytes int64)) *memoryLimiter {
	if set != nil {
		set(baseMemory)
	}
	return &memoryLimiter{set: set}
}

// grow adapts the limit to the bytes of an answer.
func (m *memoryLimiter) grow(answer int) {
	if m.set != nil && answer > m.largest {
		m.largest = answer
		m.set(baseMemory + memoryPerByte*int64(answer))
	}
}
