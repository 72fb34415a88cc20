// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package netdev

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Subscription reports that devices were added, removed, renamed or changed otherwise, and that
// routes were added or removed. The kernel does not report that a program was detached by force,
// nor that another process's program left a device.
//
// A report stands for any number of messages, and messages are not read before the report about
// those before was received. So the receiver decides what the messages cost, also if a device
// changes its state thousands of times in a second, as the peer of a veth device in another network
// namespace can make it do.
type Subscription struct {
	socket  *os.File
	changes chan struct{}
	quit    chan struct{}
}

// Subscribe starts to report changes, those of routes only if withRoutes. [Subscription.Close] ends
// that.
func Subscribe(withRoutes bool) (*Subscription, error) {
	groups := uint32(unix.RTMGRP_LINK)
	if withRoutes {
		groups |= unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE
	}
	socket, err := subscribe(groups)
	if err != nil {
		return nil, fmt.Errorf("subscribing to changes of devices: %w", err)
	}
	s := &Subscription{socket: socket, changes: make(chan struct{}), quit: make(chan struct{})}
	go s.report()
	return s, nil
}

// subscribe opens a socket that receives the kernel's messages of these groups. Nobody else can
// send to it.
func subscribe(groups uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "rtnetlink"), nil
}

func (s *Subscription) report() {
	defer close(s.changes)
	for s.discard() == nil {
		select {
		case s.changes <- struct{}{}:
		case <-s.quit:
			return
		}
	}
}

// discard waits for messages and discards those that are there. What they say is not used: a
// listing answers all of them. ENOBUFS means that there were more than the socket holds.
func (s *Subscription) discard() error {
	const most = 1000 // at a time
	connection, err := s.socket.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	err = connection.Read(func(fd uintptr) (isDone bool) {
		var discarded [1]byte
		for n := range most {
			_, _, err := unix.Recvfrom(int(fd), discarded[:], unix.MSG_DONTWAIT)
			switch {
			case err == nil, errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EINTR):
			case errors.Is(err, unix.EAGAIN):
				return n > 0
			default:
				failure = err
				return true
			}
		}
		return true
	})
	return errors.Join(err, failure)
}

// Changes returns a channel with one value for all the changes since the value before. It is closed
// if the socket fails: then a new subscription is needed. Without a subscription (nil), the channel
// is nil and never ready.
func (s *Subscription) Changes() <-chan struct{} {
	if s == nil {
		return nil
	}
	return s.changes
}

// Close ends the subscription and waits for its goroutine. Closing a nil subscription does nothing.
func (s *Subscription) Close() {
	if s == nil {
		return
	}
	close(s.quit)
	_ = s.socket.Close()  // nothing is written to it
	for range s.changes { //nolint:revive // until report has ended
	}
}
