// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package probe

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

// connection is a connection to the service that carries one request at a time.
type connection struct {
	net.Conn // TCP or TLS
	tcp      *countedConn
	reader   *bufio.Reader
	received counter // of the answers, without TLS
	timeout  time.Duration
	last     leak.Class // of the last request with a mark
}

// counter counts the bytes that pass, up to a limit.
type counter struct {
	io.Reader
	bytes, limit uint64
}

func (c *counter) Read(p []byte) (n int, err error) {
	if c.bytes > c.limit {
		return 0, errLong
	}
	n, err = c.Reader.Read(p)
	c.bytes += uint64(n)
	return n, err
}

// countedConn is a TCP connection that counts exchanges as the kernel of the service does: a
// request is all that is sent between two answers, so a TLS handshake has requests, too.
type countedConn struct {
	*net.TCPConn
	raw       syscall.RawConn
	isIPv6    bool
	dscp      int
	exchanges uint64
	received  uint64 // bytes at the time of the last request
}

func (c *countedConn) Write(p []byte) (int, error) {
	info, err := c.info()
	if err != nil {
		return 0, err
	}
	if c.exchanges == 0 || info.Bytes_received != c.received {
		c.exchanges++
		c.received = info.Bytes_received
	}
	return c.TCPConn.Write(p)
}

func (c *countedConn) info() (info *unix.TCPInfo, err error) {
	controlErr := c.raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	return info, errors.Join(controlErr, err)
}

// mark sets the DSCP of what is sent from now on.
func (c *countedConn) mark(dscp int) (err error) {
	if dscp == c.dscp {
		return nil
	}
	level, option := unix.IPPROTO_IP, unix.IP_TOS
	if c.isIPv6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	controlErr := c.raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), level, option, dscp<<2)
	})
	if err = errors.Join(controlErr, err); err != nil {
		return fmt.Errorf("marking packets with DSCP %d: %w", dscp, err)
	}
	c.dscp = dscp
	return nil
}

// check returns an error if the service has closed the connection, or has sent anything after its
// last answer. With TLS it may have sent a message of TLS.
func (c *connection) check() error {
	if c.reader.Buffered() > 0 {
		return errUnasked
	}
	if c.Conn != net.Conn(c.tcp) {
		return nil
	}
	var n int
	var err error
	var one [1]byte
	controlErr := c.tcp.raw.Control(func(fd uintptr) {
		n, _, err = unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	})
	switch {
	case controlErr != nil:
		return controlErr
	case errors.Is(err, unix.EAGAIN):
		return nil
	case err == nil && n > 0:
		return errUnasked
	}
	return errClosed
}

const (
	// settleTime is the longest time to wait for the acknowledgement of a handshake. It is longer
	// than a delayed acknowledgement.
	settleTime  = 300 * time.Millisecond
	settlePause = time.Millisecond
)

// settle waits until the service has all that was sent. So the last message of a handshake, and
// what the service answers to it, precede the first request.
func (c *countedConn) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	for {
		info, err := c.info()
		if err != nil || info.Unacked == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settlePause):
		}
	}
}

// dialer opens connections to one address.
type dialer struct {
	address string // IP address and port; empty before the first connection
	tls     *tls.Config
	timeout time.Duration
}

// first opens the first connection, to the first of several addresses that accepts it. All later
// ones go to the same address.
func (d *dialer) first(ctx context.Context, host, port string) (*connection, error) {
	lookup, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupNetIP(lookup, "ip", host)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, address := range addresses {
		d.address = net.JoinHostPort(address.Unmap().String(), port)
		c, err := d.open(ctx, 0)
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// open connects from a port, or from any if it is 0. Nothing has a mark yet.
func (d *dialer) open(ctx context.Context, port uint16) (_ *connection, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	local := &net.TCPAddr{Port: int(port)}
	dial := net.Dialer{KeepAlive: -1} // probes would be more packets
	if port != 0 {
		dial.LocalAddr = local
		dial.Control = func(_, _ string, raw syscall.RawConn) (err error) {
			controlErr := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			})
			return errors.Join(controlErr, err)
		}
	}
	conn, err := dial.DialContext(ctx, "tcp", d.address)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, fmt.Errorf("%s is not reached by TCP", d.address)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	remote, ok := tcp.RemoteAddr().(*net.TCPAddr)
	counted := &countedConn{TCPConn: tcp, raw: raw, isIPv6: ok && remote.IP.To4() == nil}
	c := &connection{Conn: counted, tcp: counted, timeout: d.timeout, last: leak.Unknown}
	if d.tls != nil {
		secure := tls.Client(counted, d.tls)
		if err = secure.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("TLS with %s: %w", d.address, err)
		}
		if err = counted.settle(ctx); err != nil {
			return nil, err
		}
		c.Conn = secure
	}
	c.received.Reader = c.Conn
	c.reader = bufio.NewReader(&c.received)
	return c, nil
}

// close closes the connection. What TLS sends for it has no mark.
func (c *connection) close() {
	_ = c.tcp.mark(0)
	_ = c.SetDeadline(time.Now().Add(c.timeout))
	_ = c.Close()
}

// ask sends a request, and returns the time until the first byte of the answer. The connection can
// be used again unless isLast.
func (c *connection) ask(request []byte, read func(*bufio.Reader) (status int, isLast bool, err error)) (a answer, err error) {
	if err = c.SetDeadline(time.Now().Add(c.timeout)); err != nil {
		return a, err
	}
	before := c.received.bytes - uint64(c.reader.Buffered())
	c.received.limit = before + mostAnswer
	defer func() {
		if err != nil && c.received.bytes > c.received.limit { // the parser may have its own words
			err = errLong
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("the service closes the connection before the end of its answer: %w", err)
		}
	}()
	sent := time.Now()
	if _, err = c.Write(request); err != nil {
		return a, err
	}
	if _, err = c.reader.Peek(1); err != nil {
		return a, err
	}
	a.took = time.Since(sent)
	a.status, a.isLast, err = read(c.reader)
	a.bytes = c.received.bytes - uint64(c.reader.Buffered()) - before
	return a, err
}

// answer describes the answer to one request.
type answer struct {
	took   time.Duration
	status int // of HTTP; otherwise 0
	bytes  uint64
	isLast bool // of the connection
}
