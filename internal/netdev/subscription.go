// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package netdev

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// Subscription reports that devices were added, removed, renamed or changed otherwise. The kernel
// does not report that a program was detached by force, nor that another process's program left a
// device.
type Subscription struct {
	changes chan struct{}
	quit    chan struct{}
}

// Subscribe starts to report changes. [Subscription.Close] ends that.
func Subscribe() (*Subscription, error) {
	s := &Subscription{changes: make(chan struct{}, 1), quit: make(chan struct{})}
	updates := make(chan netlink.LinkUpdate, 64)
	if err := netlink.LinkSubscribe(updates, s.quit); err != nil {
		close(s.quit)
		return nil, fmt.Errorf("subscribing to changes of devices: %w", err)
	}
	go s.merge(updates)
	return s, nil
}

// merge makes one report of the updates that arrive before the last report was received: one
// listing answers all of them.
func (s *Subscription) merge(updates <-chan netlink.LinkUpdate) {
	defer close(s.changes)
	for range updates {
		select {
		case s.changes <- struct{}{}:
		default:
		}
	}
}

// Changes returns a channel with one value for all the changes since the value before. It is closed
// when the kernel had more to report than the socket holds: changes were lost, and a new
// subscription is needed. Without a subscription (nil), the channel is nil and never ready.
func (s *Subscription) Changes() <-chan struct{} {
	if s == nil {
		return nil
	}
	return s.changes
}

// Close ends the subscription and waits for its goroutines. Closing a nil subscription does
// nothing.
func (s *Subscription) Close() {
	if s == nil {
		return
	}
	close(s.quit)
	for range s.changes { //nolint:revive // until merge has ended
	}
}
