// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

const (
	// baseMemory is the soft memory limit of the Go runtime for few devices. It is several times
	// the memory in use, and keeps parallel scrapes from growing the heap.
	baseMemory = 20 << 20

	// leakMemory is added for leak assessments: 10 MB for requests that wait for others, and the
	// judges of as many assessments as there may be.
	leakMemory = 48 << 20

	// memoryPerByte is the memory that it takes to make an answer, in bytes for each byte of the
	// answer before its compression. A limit below it would make the collector of garbage run
	// without pause while the metrics of many devices are gathered.
	memoryPerByte = 16
)

// memoryLimiter adapts the soft memory limit to the largest answer.
type memoryLimiter struct {
	set     func(bytes int64) // nil leaves the limit as it is
	base    int64             // limit without answers
	largest int               // bytes of the largest answer so far
}

func newMemoryLimiter(set func(bytes int64), hasLeak bool) *memoryLimiter {
	base := int64(baseMemory)
	if hasLeak {
		base += leakMemory
	}
	if set != nil {
		set(base)
	}
	return &memoryLimiter{set: set, base: base}
}

// grow adapts the limit to the bytes of an answer.
func (m *memoryLimiter) grow(answer int) {
	if m.set != nil && answer > m.largest {
		m.largest = answer
		m.set(m.base + memoryPerByte*int64(answer))
	}
}
