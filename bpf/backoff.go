// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// maxPause is the largest number of resyncs from one attempt to attach a device to the next. In an
// attempt the kernel verifies and compiles the whole program.
const maxPause = 30

// backoff says when a device that was not attached is tried again. The zero value is that of a
// device which was not tried.
type backoff struct {
	tried   netdev.Device // the device at the last attempt; zero if it did not exist
	refusal string        // of the last attempt; empty if it succeeded
	pause   int           // resyncs from the last attempt to the next, if that was refused
	waited  int           // of these

	lacksIndex bool // the refusal cost no attempt: the device got no index
}

// isDue reports whether the device is to be tried, and counts the resync. A device is tried at
// once if it was not refused, or only for the lack of an index, or has changed since. Otherwise
// it is tried at resyncs: at each one if it was up once or if its XDP program differs, as it
// does when another's program leaves the device, and else after a pause that each attempt
// doubles. The program alone does not count as a change, because each attempt may change the
// program.
func (b *backoff) isDue(now netdev.Device, isResync, wasUp bool) bool {
	same := now
	same.XDP, same.Program = b.tried.XDP, b.tried.Program
	if b.refusal == "" || b.lacksIndex || same != b.tried {
		return true
	}
	if !isResync {
		return false
	}
	b.waited++
	return wasUp || now != b.tried || b.waited >= b.pause
}

// succeeded notes an attempt that attached the device.
func (b *backoff) succeeded(tried netdev.Device) { *b = backoff{tried: tried, pause: 1} }

// failed notes an attempt that did not, and reports whether its reason is another than that of the
// attempt before.
func (b *backoff) failed(tried netdev.Device, err error) (isNews bool) {
	pause := 1
	if b.tried == tried && b.refusal != "" {
		pause = min(2*b.pause, maxPause)
	}
	isNews = b.refusal != err.Error()
	*b = backoff{tried: tried, refusal: err.Error(), pause: pause, lacksIndex: errors.Is(err, errNoIndex)}
	return isNews
}
