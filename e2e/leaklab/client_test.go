// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leaklab

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// The marks of the classes.
var dscp = [2]int{8, 16}

// connection is a connection of the client. Its calls block a thread, as those of a tool in C do,
// so that no scheduler of Go adds to the times of the client.
type connection struct {
	fd     int
	port   uint16
	buffer []byte
}

func connect(from netlab.End, to netip.AddrPort) (*connection, error) {
	var conn *net.TCPConn
	err := from.Namespace.Do(func() (err error) {
		conn, err = net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
		return err
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	local, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		return nil, err
	}
	c := &connection{buffer: make([]byte, 4096), port: local.Port()}
	file, err := conn.File()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if c.fd, err = unix.Dup(int(file.Fd())); err != nil {
		return nil, err
	}
	return c, errors.Join(unix.SetNonblock(c.fd, false),
		unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}))
}

func (c *connection) close() { _ = unix.Close(c.fd) }

// ask sends a request of a class after a delay, and returns the time until the first byte of the
// response. The delay is a part of it.
func (c *connection) ask(class leak.Class, wait, delay time.Duration) (time.Duration, error) {
	if err := unix.SetsockoptInt(c.fd, unix.IPPROTO_IP, unix.IP_TOS, dscp[class]<<2); err != nil {
		return 0, err
	}
	request := fmt.Appendf(c.buffer[:0], "GET /%07d HTTP/1.1\r\nHost: test\r\n\r\n", wait.Nanoseconds())
	begin := time.Now()
	wasted(delay)
	if _, err := ignoringSignals(unix.Write, c.fd, request); err != nil {
		return 0, err
	}
	n, err := ignoringSignals(unix.Read, c.fd, c.buffer)
	elapsed := time.Since(begin)
	for err == nil && n > 0 && !isWhole(c.buffer[:n]) {
		more := 0
		if more, err = ignoringSignals(unix.Read, c.fd, c.buffer[n:]); more == 0 {
			break
		}
		n += more
	}
	if err != nil {
		return 0, fmt.Errorf("reading the response: %w", err)
	}
	if !bytes.HasPrefix(c.buffer[:n], []byte("HTTP/1.1 200 ")) || !isWhole(c.buffer[:n]) {
		return 0, fmt.Errorf("the response is %q", c.buffer[:n])
	}
	return elapsed, nil
}

// ignoringSignals repeats a call that a signal has ended. The runtime of Go sends signals.
func ignoringSignals(call func(int, []byte) (int, error), fd int, buffer []byte) (n int, err error) {
	for {
		if n, err = call(fd, buffer); err != unix.EINTR { //nolint:errorlint // a plain errno
			return n, err
		}
	}
}

// isWhole reports whether a response of the application has come to its end.
func isWhole(response []byte) bool { return bytes.HasSuffix(response, []byte("\r\n\r\n"+answer)) }

// classes returns the classes of the requests of that many pairs.
func classes(r *rand.Rand, order leak.Order, pairs int) (all []leak.Class) {
	for pairs > 0 {
		first, second := leak.Class(r.IntN(2)), leak.Class(r.IntN(2))
		if order == leak.Blocks {
			second = 1 - first
		}
		all = append(all, first, second)
		if first != second {
			pairs--
		}
	}
	return all
}

// work is how long the application waits in any case. What net/http itself needs for a response is
// a little longer after a handler that takes some time than after one that returns at once, and the
// clock of the handler does not see that.
const work = 100 * time.Microsecond

// pause is the time between a response and the next request. A server needs some of it to finish
// with a request after its response has left; the next one would wait for that.
const pause = 50 * time.Microsecond

// send sends requests of these classes, one after the other. Those of class Y make the application
// wait longer. Each request is delayed on its way by an exponential time of a mean of jitter. It
// returns the times of the client.
func (c *connection) send(r *rand.Rand, all []leak.Class, planted, jitter time.Duration) ([]uint64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	times := make([]uint64, len(all))
	for i, class := range all {
		wait := work
		if class == leak.Y {
			wait += planted
		}
		wasted(pause)
		delay := time.Duration(r.ExpFloat64() * float64(jitter))
		elapsed, err := c.ask(class, wait, delay)
		if err != nil {
			return nil, fmt.Errorf("request %d of %d: %w", i, len(all), err)
		}
		times[i] = uint64(elapsed)
	}
	return times, nil
}
