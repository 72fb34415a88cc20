// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package netlab

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// realtimePriority is above every ordinary thread, and the lowest of the real-time ones.
const realtimePriority = 1

// Pace calls send(0), send(1), … on a thread of its own until ctx ends or send fails, each gap(i) after the one before, as
// precisely as the machine allows: the gaps are measured from deadline to deadline, so that the time that send takes does
// not add up. gap(i) is the distance from call i−1 to call i. A call that the machine makes late by more than half of its
// gap moves the calls after it as well, so that they do not come early. It returns the error of send, or nil when ctx ended.
func Pace(ctx context.Context, gap func(i int) time.Duration, send func(i int) error) error {
	result := make(chan error, 1)
	go onOwnThread(func() { result <- pace(ctx, gap, send) })
	return <-result
}

func pace(ctx context.Context, gap func(i int) time.Duration, send func(i int) error) error {
	// Where real-time scheduling is not allowed, sending is only less steady. The thread ends with it.
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: realtimePriority}, 0)
	deadline, err := monotonic()
	if err != nil {
		return err
	}
	for i := 0; ctx.Err() == nil; i++ {
		wait := gap(i)
		deadline += wait
		now, err := sleepUntil(deadline)
		if err != nil {
			return err
		}
		if now-deadline > wait/2 {
			deadline = now
		}
		if err := send(i); err != nil {
			return err
		}
	}
	return nil
}

// sleepUntil sleeps until a time on CLOCK_MONOTONIC, and returns the time at which it woke up.
func sleepUntil(deadline time.Duration) (now time.Duration, err error) {
	until := unix.NsecToTimespec(int64(deadline))
	for {
		err := unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &until, nil)
		if err == nil {
			return monotonic()
		}
		if err != unix.EINTR { //nolint:errorlint // a number of the kernel
			return 0, fmt.Errorf("sleeping: %w", err)
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
