// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// sender sends the packets of the clients of a host.
type sender struct {
	isLate atomic.Bool // some packets are late

	receiver net.PacketConn
	conns    []net.Conn
	due      []time.Time // next packet of each client
	random   *rand.Rand
	cancel   context.CancelFunc
	sent     chan error
}

// startSender begins to send. The receiver does not read: when its socket is full, the kernel drops
// the packets.
func startSender(s *stage, seed uint64) (*sender, error) {
	ctx, cancel := context.WithCancel(context.Background())
	c := &sender{random: rand.New(rand.NewPCG(seed, 1)), cancel: cancel, sent: make(chan error, 1)} //nolint:gosec // nothing secret
	var err error
	c.receiver, err = s.audited.Namespace.ListenPacket(netip.AddrPortFrom(s.audited.IPv4.Addr(), 0).String())
	now := time.Now()
	for i := 0; err == nil && i < clients; i++ {
		var conn net.Conn
		if conn, err = s.sender.Namespace.Dial(ctx, "udp", c.receiver.LocalAddr().String()); err == nil {
			c.conns, c.due = append(c.conns, conn), append(c.due, now.Add(time.Duration(c.random.Int64N(int64(clientInterval)))))
		}
	}
	if err != nil {
		cancel()
		c.closeSockets()
		return nil, fmt.Errorf("opening a socket: %w", err)
	}
	go func() {
		next := 0
		c.sent <- netlab.Pace(ctx, func(int) time.Duration {
			for i, due := range c.due {
				if due.Before(c.due[next]) {
					next = i
				}
			}
			return max(0, time.Until(c.due[next]))
		}, func(int) error {
			_, err := c.conns[next].Write([]byte("steady as she goes"))
			c.due[next] = time.Now().Add(c.interval())
			return err
		})
	}()
	return c, nil
}

// interval returns the time to the next packet of a client.
func (c *sender) interval() time.Duration {
	wait := clientInterval + time.Duration(c.random.NormFloat64()*float64(clientSpread))
	if c.random.IntN(plantPeriod) == 0 && c.isLate.Load() {
		wait += plantLateness
	}
	return wait
}

func (c *sender) close() error {
	c.cancel()
	defer c.closeSockets()
	return <-c.sent
}

func (c *sender) closeSockets() {
	for _, conn := range c.conns {
		_ = conn.Close()
	}
	if c.receiver != nil {
		_ = c.receiver.Close()
	}
}
