// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package netlab creates small networks for tests: network namespaces joined by veth pairs.
//
// A namespace has no name under /run/netns. A thread of this process holds it, and the commands
// in it are killed when the thread ends. No part of a network outlives the process, however the
// process ends.
package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace and the thread that holds it.
type Namespace struct {
	handle netns.NsHandle
	calls  chan func()
	quit   chan struct{} // closed by Close
	close  func()
	ended  chan struct{} // closed when the thread has left
}

// NewNamespace creates a namespace. Its only device is the loopback device, which is up.
func NewNamespace() (*Namespace, error) {
	n := &Namespace{calls: make(chan func()), quit: make(chan struct{}), ended: make(chan struct{})}
	n.close = sync.OnceFunc(func() { close(n.quit) })
	entered := make(chan error)
	go onOwnThread(func() {
		defer close(n.ended)
		err := n.enter()
		entered <- err
		if err == nil {
			n.serve()
		}
	})
	if err := <-entered; err != nil {
		return nil, fmt.Errorf("creating a network namespace: %w", err)
	}
	return n, nil
}

// onOwnThread runs f on a thread that ends when f returns. Go cannot end the main thread: if
// the goroutine runs on the main thread, onOwnThread occupies it until f has another thread.
func onOwnThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	done, locked := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		close(locked)
		f()
	}()
	<-locked
	runtime.UnlockOSThread()
	<-done
}

// enter moves the calling thread to a new namespace.
func (n *Namespace) enter() (err error) {
	if n.handle, err = netns.New(); err != nil {
		return err
	}
	return setUp("lo")
}

// serve runs calls on the thread of the namespace until Close is called.
func (n *Namespace) serve() {
	defer n.handle.Close()
	for {
		select {
		case call := <-n.calls:
			call()
		case <-n.quit:
			return
		}
	}
}

// Do calls f on the thread of the namespace, one call at a time. Sockets that f opens stay in
// the namespace; goroutines that f starts run outside. Do returns the error of f, or an error
// after Close.
func (n *Namespace) Do(f func() error) error {
	result := make(chan error, 1)
	select {
	case n.calls <- func() { result <- f() }:
		return <-result
	case <-n.ended:
		return errors.New("the network namespace is closed")
	}
}

// Dial connects from the namespace to a numeric address.
func (n *Namespace) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = n.Do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens in the namespace at a numeric address of TCP.
func (n *Namespace) Listen(address string) (listener net.Listener, err error) {
	err = n.Do(func() error {
		listener, err = net.Listen("tcp", address)
		return err
	})
	return listener, err
}

// ListenPacket opens a socket in the namespace at a numeric address of UDP.
func (n *Namespace) ListenPacket(address string) (socket net.PacketConn, err error) {
	err = n.Do(func() error {
		socket, err = net.ListenPacket("udp", address)
		return err
	})
	return socket, err
}

// Start starts a command in the namespace. The command is killed when the namespace is closed
// or this process ends.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	// The kernel sends this signal when the forking thread ends: the thread of the namespace.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	return n.Do(cmd.Start)
}

// Close ends the thread of the namespace, and with it the commands and devices in the
// namespace. Open sockets keep the namespace until they are closed.
func (n *Namespace) Close() {
	n.close()
	<-n.ended
}

// pollInterval is the time between two calls of Poll.
const pollInterval = 10 * time.Millisecond

// Poll calls ready until it returns nil, the first time at once. When ctx ends first, Poll
// returns the last error of ready joined with the cause of ctx.
func Poll(ctx context.Context, ready func() error) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		case <-ticker.C:
		}
	}
}
