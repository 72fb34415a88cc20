// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
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
	var now unix.Timespec
	// It cannot fail: every kernel has this clock.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return monotonicAnchor{goTime: time.Now(), ktimeNs: now.Nano()}
}

// wallTime converts a time of CLOCK_MONOTONIC to wall time as the wall clock is set now.
func (a monotonicAnchor) wallTime(ktimeNs uint64) time.Time {
	now := time.Now()
	ktimeNow := a.ktimeNs + int64(now.Sub(a.goTime))
	return now.Add(time.Duration(int64(ktimeNs) - ktimeNow)).Round(0)
}

// WallTime returns the wall time at which a flagged packet was judged.
func (f Flag) WallTime() time.Time { return newMonotonicAnchor().wallTime(f.KtimeNs) }
