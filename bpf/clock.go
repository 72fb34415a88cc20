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

// monotonicAnchor ties CLOCK_MONOTONIC, which the kernel stamps flags with, to Go's clock, so that times are converted without
// a system call.
type monotonicAnchor struct {
	goTime  time.Time // with a monotonic reading
	ktimeNs int64
}

func newMonotonicAnchor() monotonicAnchor {
	ktimeNs := monotonicNs()
	return monotonicAnchor{goTime: time.Now(), ktimeNs: int64(ktimeNs)}
}

// monotonicNs returns the time as programs in the kernel read it, never 0.
func monotonicNs() uint64 {
	offset := int64(namespaceOffset())
	var now unix.Timespec
	// It cannot fail: every kernel has this clock.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return uint64(max(now.Nano()-offset, 1))
}

// namespaceOffset returns what this process reads on CLOCK_MONOTONIC beyond what programs in the kernel do: the offset of
// its time namespace, which never changes. It is first asked for while the files of proc can still be opened.
var namespaceOffset = sync.OnceValue(func() time.Duration {
	offsets, err := os.ReadFile("/proc/self/timens_offsets")
	if err != nil {
		return 0 // a kernel without time namespaces
	}
	return parseMonotonicOffset(offsets)
})

// parseMonotonicOffset reads what is in /proc/PID/timens_offsets (time_namespaces(7)): lines of a clock, seconds, and
// nanoseconds.
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

// wallTime converts a time of CLOCK_MONOTONIC to wall time as the wall clock is set now.
func (a monotonicAnchor) wallTime(ktimeNs uint64) time.Time {
	now := time.Now()
	ktimeNow := a.ktimeNs + int64(now.Sub(a.goTime))
	return now.Add(time.Duration(int64(ktimeNs) - ktimeNow)).Round(0)
}

// WallTime returns the wall time at which a flagged packet was judged.
func (f Flag) WallTime() time.Time { return newMonotonicAnchor().wallTime(f.KtimeNs) }
