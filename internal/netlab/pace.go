// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package netlab

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// realtimePriority is the lowest real-time priority, which is above every ordinary thread.
const realtimePriority = 1

// Pace calls send(0), send(1), … on a thread of its own until ctx ends or send fails. It
// returns the error of send, or nil when ctx ends. Call i begins gap(i) after the end of the
// previous call, as precisely as the machine allows. When one call is late, all later calls
// move with it, so that no call is early.
func Pace(ctx context.Context, gap func(i int) time.Duration, send func(i int) error) error {
	result := make(chan error, 1)
	go onOwnThread(func() { result <- pace(ctx, gap, send) })
	return <-result
}

func pace(ctx context.Context, gap func(i int) time.Duration, send func(i int) error) error {
	// Without permission for real-time scheduling, the pace is only less steady. The policy ends
	// with the thread.
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: realtimePriority}, 0)
	for i := 0; ctx.Err() == nil; i++ {
		if err := sleep(gap(i)); err != nil {
			return err
		}
		if err := send(i); err != nil {
			return err
		}
	}
	return nil
}

// sleep sleeps in the kernel, whose timers are finer than those of Go. Signals do not move the
// deadline.
func sleep(d time.Duration) error {
	now, err := monotonic()
	if err != nil {
		return err
	}
	deadline := unix.NsecToTimespec(int64(now + d))
	for {
		err := unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &deadline, nil)
		if err == nil {
			return nil
		}
		if err != unix.EINTR { //nolint:errorlint // a plain errno
			return fmt.Errorf("sleeping: %w", err)
		}
	}
}

func monotonic() (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, fmt.Errorf("reading CLOCK_MONOTONIC: %w", err)
	}
	return time.Duration(now.Nano()), nil
}
