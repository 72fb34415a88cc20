// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// monotonicAnchor relates CLOCK_MONOTONIC, with which the kernel stamps flags, to Go's
// monotonic clock. With it a time is converted without a system call.
type monotonicAnchor struct {
	goTime  time.Time // has a monotonic reading
	ktimeNs int64
}

func newMonotonicAnchor() monotonicAnchor {
	ktimeNs := monotonicNs()
	return monotonicAnchor{goTime: time.Now(), ktimeNs: int64(ktimeNs)}
}

// monotonicNs returns CLOCK_MONOTONIC in nanoseconds as BPF programs read it. It never returns 0.
func monotonicNs() uint64 {
	offset := int64(namespaceOffset())
	var now unix.Timespec
	// The call cannot fail: every kernel has this clock.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return uint64(max(now.Nano()-offset, 1))
}

// namespaceOffset returns the difference between CLOCK_MONOTONIC in this process and in BPF
// programs: the offset of the time namespace of the process, which never changes. The first
// call must be made while the process can still open files in /proc.
var namespaceOffset = sync.OnceValue(func() time.Duration {
	offsets, err := os.ReadFile("/proc/self/timens_offsets")
	if err != nil {
		return 0 // a kernel without time namespaces
	}
	return parseMonotonicOffset(offsets)
})

// parseMonotonicOffset parses /proc/PID/timens_offsets (time_namespaces(7)). Each line has the
// name of a clock, seconds, and nanoseconds.
func parseMonotonicOffset(offsets []byte) time.Duration {
	for line := range bytes.Lines(offsets) {
		var clock string
		var seconds, nanoseconds int64
		if _, err := fmt.Sscan(string(line), &clock, &seconds, &nanoseconds); err == nil && clock == "monotonic" {
			return time.Duration(seconds)*time.Second + time.Duration(nanoseconds)
		}
	}
	return 0
}

// wallTime converts a time of CLOCK_MONOTONIC to wall time, by the current setting of the wall
// clock.
func (a monotonicAnchor) wallTime(ktimeNs uint64) time.Time {
	now := time.Now()
	ktimeNow := a.ktimeNs + int64(now.Sub(a.goTime))
	return now.Add(time.Duration(int64(ktimeNs) - ktimeNow)).Round(0)
}

// WallTime returns the wall time at which the flagged packet was scored.
func (f Flag) WallTime() time.Time { return newMonotonicAnchor().wallTime(f.KtimeNs) }
