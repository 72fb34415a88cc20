// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"net"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

const (
	// maxPause is the largest number of resyncs from one attempt to attach a device to the next. In
	// an attempt the kernel verifies and compiles the whole program.
	maxPause = 30

	// maxAtOnce is the number of attempts at once because a device has appeared or changed. One
	// more is allowed after regainInterval resyncs. A device that comes and goes all the time
	// would keep the exporter busy. To attach a device again that was up counts as one of
	// reattachments attempts: unless its program is bound to a network device, the program is
	// still loaded, so that this takes much less time.
	maxAtOnce      = 5
	regainInterval = 6
	reattachments  = 20
)

// backoff says when a device that was not attached is tried again. The zero value is that of a
// device which was not tried.
type backoff struct {
	tried   netdev.Device // the device at the last attempt, not running; zero if it did not exist
	refusal string        // of the last attempt; empty if it succeeded
	pause   int           // resyncs from the last attempt to the next, if that was refused
	waited  int           // of these

	lacksIndex bool // the refusal cost no attempt: the device got no index

	atOnce     int  // attempts at once that were not regained, in units of 1/reattachments
	cost       int  // of the attempt that is due, if it is at once
	isHeldBack bool // it would be at once, but there were too many
}

// isDue reports whether the device is to be tried, and counts the resync. A device is tried at
// once if it was not refused, or only for the lack of an index, or has changed since, unless that
// happens too often. Otherwise it is tried at resyncs: at each one if it was up once or if its XDP
// program differs, as it does when another's program leaves the device, and else after a pause
// that each attempt doubles. The program alone does not count as a change, because each attempt
// may change the program. That it runs does not either: the peer of a veth device decides that.
func (b *backoff) isDue(now netdev.Device, isResync, wasUp bool) bool {
	now.Flags &^= net.FlagRunning
	same := now
	same.XDP, same.Program = b.tried.XDP, b.tried.Program
	isChanged := b.refusal == "" || b.lacksIndex || same != b.tried
	b.cost, b.isHeldBack = 0, false
	if isChanged {
		cost := reattachments
		if b.refusal == "" && wasUp {
			cost = 1
		}
		if b.atOnce+cost <= maxAtOnce*reattachments {
			b.cost = cost
			return true
		}
		b.isHeldBack = true
	}
	if !isResync {
		return false
	}
	b.waited++
	hasOtherProgram := now.XDP != b.tried.XDP || now.Program != b.tried.Program
	return wasUp || hasOtherProgram && !b.isHeldBack || b.waited >= b.pause
}

// succeeded notes an attempt that attached the device.
func (b *backoff) succeeded(tried netdev.Device) {
	tried.Flags &^= net.FlagRunning
	*b = backoff{tried: tried, pause: 1, atOnce: b.atOnce + b.cost}
}

// failed notes an attempt that did not, and reports whether its reason is another than that of the
// attempt before.
func (b *backoff) failed(tried netdev.Device, err error) (isNews bool) {
	tried.Flags &^= net.FlagRunning
	pause := 1
	switch {
	case b.tried == tried && b.refusal != "" || b.isHeldBack:
		pause = min(2*max(b.pause, 1), maxPause)
	case b.atOnce+b.cost+reattachments > maxAtOnce*reattachments:
		pause = max(b.pause, 1) // it goes on changing
	}
	isNews = b.refusal != err.Error()
	lacksIndex := errors.Is(err, errNoIndex)
	if lacksIndex {
		b.cost = 0
	}
	*b = backoff{tried: tried, refusal: err.Error(), pause: pause, lacksIndex: lacksIndex, atOnce: b.atOnce + b.cost}
	return isNews
}

// vanished notes that the device is gone. One that comes back has appeared.
func (b *backoff) vanished() {
	*b = backoff{pause: b.pause, waited: b.waited, atOnce: b.atOnce}
}

// regain allows one more attempt at once. It reports whether all are allowed.
func (b *backoff) regain() bool {
	b.atOnce = max(b.atOnce-reattachments, 0)
	return b.atOnce == 0
}
