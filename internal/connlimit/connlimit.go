// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package connlimit limits the number of connections of a web server, in total and per client
// host.
package connlimit

import (
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// hostShare limits one host to 1/hostShare of all connections, so that no single host can
	// block the others.
	hostShare = 8

	// logInterval is the minimum time between two log messages about closed connections.
	logInterval = time.Minute
)

// Limit limits the connections of all listeners. A new connection above a limit replaces the
// oldest idle connection: that of its own host, or above the total limit that of the host with
// most connections. If no such connection is idle, the new one is closed. A connection is idle
// while it waits for a request. It is busy until the handler of a request returns, even if the
// client has closed the connection. A replaced connection begins no further request.
//
// All of this holds for servers of HTTP/1 only. In HTTP/2 a handler may outlive its connection.
type Limit struct {
	max    int
	logger *slog.Logger

	mu     sync.Mutex
	hosts  map[netip.Prefix][]*limitedConn // in the order of their start
	total  int
	closed int       // connections closed because of a limit since the last log message
	logged time.Time // time of the last log message
}

// limitedConn is a connection that counts until it is closed or replaced.
type limitedConn struct {
	net.Conn
	limit     *Limit
	host      netip.Prefix
	isBusy    bool // a request is in progress; guarded by limit.mu
	isRemoved bool // no longer counts; guarded by limit.mu
}

// New returns a limit of the maximum number of connections. It returns nil, which limits
// nothing, for 0.
func New(maximum int, logger *slog.Logger) *Limit {
	if maximum == 0 {
		return nil
	}
	return &Limit{max: maximum, logger: logger, hosts: map[netip.Prefix][]*limitedConn{}}
}

// Listener returns a listener whose connections count.
func (c *Limit) Listener(l net.Listener) net.Listener {
	if c == nil {
		return l
	}
	return limitedListener{l, c}
}

// Watch makes a server report which connections are busy. It sets the ConnState of the server.
func (c *Limit) Watch(server *http.Server) {
	if c != nil {
		server.ConnState = c.setState
	}
}

type limitedListener struct {
	net.Listener
	limit *Limit
}

// Accept returns the next connection within the limits.
func (l limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		admitted, excess := l.limit.admit(conn)
		if len(excess) > 0 {
			l.limit.logClosing()
		}
		for _, conn := range excess {
			_ = conn.Close()
		}
		if admitted != nil {
			return admitted, nil
		}
	}
}

// admit counts a connection, or returns nil for one above a limit. The caller must close the
// excess connections.
func (c *Limit) admit(conn net.Conn) (admitted *limitedConn, excess []net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	host := HostOf(conn.RemoteAddr().String())
	for _, limit := range []struct {
		isReached bool
		host      func() netip.Prefix // of the connection to replace
	}{
		{len(c.hosts[host]) >= max(c.max/hostShare, 1), func() netip.Prefix { return host }},
		{c.total >= c.max, c.largest},
	} {
		if !limit.isReached || len(excess) > 0 {
			continue
		}
		c.closed++
		idle := c.oldestIdle(limit.host())
		if idle == nil {
			return nil, []net.Conn{conn}
		}
		c.remove(idle)
		excess = append(excess, idle.Conn)
	}
	admitted = &limitedConn{Conn: conn, limit: c, host: host}
	c.hosts[host] = append(c.hosts[host], admitted)
	c.total++
	return admitted, excess
}

// logClosing logs the closed connections, at most once in logInterval. It does so without the lock,
// which every new connection needs.
func (c *Limit) logClosing() {
	c.mu.Lock()
	now := time.Now()
	isDue := now.Sub(c.logged) >= logInterval
	connections, hosts, closed := c.total, len(c.hosts), c.closed
	if isDue {
		c.logged, c.closed = now, 0
	}
	c.mu.Unlock()
	if isDue {
		c.logger.Warn("Too many connections: closing new or idle ones", "connections", connections, "hosts", hosts, "refused", closed)
	}
}

// largest returns the host with most connections. c.mu is held.
func (c *Limit) largest() (largest netip.Prefix) {
	count := 0
	for host, conns := range c.hosts {
		if len(conns) > count {
			largest, count = host, len(conns)
		}
	}
	return largest
}

// oldestIdle returns the oldest connection of a host that waits for a request, or nil. c.mu is
// held.
func (c *Limit) oldestIdle(host netip.Prefix) *limitedConn {
	i := slices.IndexFunc(c.hosts[host], func(conn *limitedConn) bool { return !conn.isBusy })
	if i < 0 {
		return nil
	}
	return c.hosts[host][i]
}

// remove stops counting a connection. c.mu is held.
func (c *Limit) remove(conn *limitedConn) {
	if conn.isRemoved {
		return
	}
	conn.isRemoved = true
	c.total--
	c.hosts[conn.host] = slices.DeleteFunc(c.hosts[conn.host], func(other *limitedConn) bool { return other == conn })
	if len(c.hosts[conn.host]) == 0 {
		delete(c.hosts, conn.host)
	}
}

// setState is the ConnState of a server.
func (c *Limit) setState(conn net.Conn, state http.ConnState) {
	if wrapped, ok := conn.(*tls.Conn); ok {
		conn = wrapped.NetConn()
	}
	if limited, ok := conn.(*limitedConn); ok {
		c.mu.Lock()
		defer c.mu.Unlock()
		limited.isBusy = state == http.StateActive
		if limited.isBusy && limited.isRemoved {
			// The request was read before the connection was closed. The server recovers from
			// this panic, closes the connection, and does not call the handler.
			panic(http.ErrAbortHandler)
		}
	}
}

// Close stops counting the connection. The server calls it after the last handler has returned.
func (l *limitedConn) Close() error {
	l.limit.mu.Lock()
	l.limit.remove(l)
	l.limit.mu.Unlock()
	return l.Conn.Close()
}

// CloseWrite lets the server end an answer before it closes the connection. A client that is
// still sending can then read the answer.
func (l *limitedConn) CloseWrite() error {
	if conn, ok := l.Conn.(interface{ CloseWrite() error }); ok {
		return conn.CloseWrite()
	}
	return nil
}

// HostOf returns the host of a remote address: the IPv4 address, or the /64 network of IPv6, which
// is what a single host is usually given. All clients without an IP address, such as virtual
// machines and those of a Unix socket, count as one host.
func HostOf(remote string) netip.Prefix {
	const ipv6Network = 64
	address, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	ip := address.Addr().Unmap()
	bits := ip.BitLen()
	if ip.Is6() {
		bits = ipv6Network
	}
	prefix, err := ip.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return prefix
}
