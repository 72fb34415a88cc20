// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package connlimit limits the connections of a web server, of all hosts and of each.
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
	// hostShare is the part of all connections that one host may have, so that it takes several to keep others out.
	hostShare = 8

	// refusalInterval is how often it is said that connections are refused.
	refusalInterval = time.Minute
)

// Limit limits the connections of all listeners. When there are too many of one host, or in all, one that waits for a
// request makes room for a new one: the oldest of the host that has most. If all are at work on a request, the new one is
// refused. A request is at work until its handler ends, even if the client has gone.
type Limit struct {
	most   int
	logger *slog.Logger

	mu      sync.Mutex
	hosts   map[netip.Prefix][]*limitedConn // the oldest first
	total   int
	refused int       // not said yet
	said    time.Time // when it was last
}

// limitedConn is a connection with a place among those of its host, until it is closed.
type limitedConn struct {
	net.Conn
	all    *Limit
	host   netip.Prefix
	isBusy bool // a request is at work; guarded by all.mu
	isOut  bool // it has lost its place; guarded by all.mu
}

// New returns nil for a limit of 0, which is none.
func New(most int, logger *slog.Logger) *Limit {
	if most == 0 {
		return nil
	}
	return &Limit{most: most, logger: logger, hosts: map[netip.Prefix][]*limitedConn{}}
}

// Listener returns a listener of connections that count.
func (c *Limit) Listener(l net.Listener) net.Listener {
	if c == nil {
		return l
	}
	return limitedListener{l, c}
}

// Watch lets a server tell which connections are at work.
func (c *Limit) Watch(server *http.Server) {
	if c != nil {
		server.ConnState = c.changed
	}
}

type limitedListener struct {
	net.Listener
	all *Limit
}

// Accept returns the next connection that is not refused.
func (l limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		admitted, outs := l.all.admit(conn)
		for _, out := range outs {
			_ = out.Close()
		}
		if admitted != nil {
			return admitted, nil
		}
	}
}

// admit gives a connection a place, or returns none. What it returns beside is to be closed.
func (c *Limit) admit(conn net.Conn) (admitted *limitedConn, outs []net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	host := hostOf(conn.RemoteAddr())
	for _, of := range []struct {
		isFull bool
		host   func() netip.Prefix
	}{
		{len(c.hosts[host]) >= max(c.most/hostShare, 1), func() netip.Prefix { return host }},
		{c.total >= c.most, c.largest},
	} {
		if !of.isFull || len(outs) > 0 {
			continue
		}
		c.note()
		out := c.oldestIdle(of.host())
		if out == nil {
			return nil, []net.Conn{conn}
		}
		c.remove(out)
		outs = append(outs, out.Conn)
	}
	admitted = &limitedConn{Conn: conn, all: c, host: host}
	c.hosts[host] = append(c.hosts[host], admitted)
	c.total++
	return admitted, outs
}

// note says that there are too many connections, if that was not said lately. c.mu is held.
func (c *Limit) note() {
	c.refused++
	if now := time.Now(); now.Sub(c.said) >= refusalInterval {
		c.logger.Warn("Too many connections: some are refused or cut off", "connections", c.total, "hosts", len(c.hosts), "refused", c.refused)
		c.said, c.refused = now, 0
	}
}

// largest returns the host that has most connections. c.mu is held.
func (c *Limit) largest() (largest netip.Prefix) {
	most := 0
	for host, conns := range c.hosts {
		if len(conns) > most {
			largest, most = host, len(conns)
		}
	}
	return largest
}

// oldestIdle returns the connection of a host that has waited for a request for longest, or nil. c.mu is held.
func (c *Limit) oldestIdle(host netip.Prefix) *limitedConn {
	i := slices.IndexFunc(c.hosts[host], func(conn *limitedConn) bool { return !conn.isBusy })
	if i < 0 {
		return nil
	}
	return c.hosts[host][i]
}

// remove takes a connection's place from it. c.mu is held.
func (c *Limit) remove(conn *limitedConn) {
	if conn.isOut {
		return
	}
	conn.isOut = true
	c.total--
	c.hosts[conn.host] = slices.DeleteFunc(c.hosts[conn.host], func(other *limitedConn) bool { return other == conn })
	if len(c.hosts[conn.host]) == 0 {
		delete(c.hosts, conn.host)
	}
}

// changed is told by the server what becomes of a connection.
func (c *Limit) changed(conn net.Conn, state http.ConnState) {
	if wrapped, ok := conn.(*tls.Conn); ok {
		conn = wrapped.NetConn()
	}
	if limited, ok := conn.(*limitedConn); ok {
		c.mu.Lock()
		defer c.mu.Unlock()
		limited.isBusy = state == http.StateActive
	}
}

// Close is called by the server when nothing is at work on the connection any more.
func (l *limitedConn) Close() error {
	l.all.mu.Lock()
	l.all.remove(l)
	l.all.mu.Unlock()
	return l.Conn.Close()
}

// CloseWrite lets the server end an answer before it ends the connection, so that a client which still sends can read it.
func (l *limitedConn) CloseWrite() error {
	if conn, ok := l.Conn.(interface{ CloseWrite() error }); ok {
		return conn.CloseWrite()
	}
	return nil
}

// hostOf returns who is taken for one host: an address, or a network of IPv6 that is given to one. Whatever else connects,
// such as a virtual machine, is one.
func hostOf(addr net.Addr) netip.Prefix {
	const ipv6Network = 64
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap()
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
