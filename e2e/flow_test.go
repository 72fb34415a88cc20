// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// pair is a veth pair from the sender's namespace to the audited one.
//
// A test that compares packets sent with packets counted takes the number sent from the driver,
// never from a UDP server. On a busy machine a frame is lost when the queue of the pair is full,
// and a datagram when the buffer of its socket is full. Neither is a fault of the audit.
type pair struct {
	lab             *lab
	audited, sender netlab.End

	devices *os.File // /proc/net/dev of the sender's namespace
}

// newPair registers a pair for flows to the addresses of its audited end.
func (l *lab) newPair(audited, sender netlab.End) {
	l.t.Helper()
	p := &pair{lab: l, audited: audited, sender: sender}
	err := sender.Namespace.Do(func() (err error) {
		p.devices, err = os.Open("/proc/thread-self/net/dev")
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { p.devices.Close() })
	for _, prefix := range []netip.Prefix{audited.IPv4, audited.IPv6} {
		l.pairs[prefix.Addr()] = p
	}
}

// pair returns the pair of the lab's own audited device.
func (l *lab) pair() *pair { return l.pairs[l.audited.IPv4.Addr()] }

// frames counts the frames that were sent to the audited device.
type frames struct {
	received uint64 // by the audited device, which hands them to XDP
	dropped  uint64 // because the queue of the audited device was full
}

func (f frames) minus(before frames) frames {
	return frames{f.received - before.received, f.dropped - before.dropped}
}

// all returns the number of frames that were received or dropped.
func (f frames) all() uint64 { return f.received + f.dropped }

// frames reads the statistics of the sender's end, whose name does not change: the frames that
// veth has transmitted are those that its peer has received. Reading the file does not need the
// RTNL lock, which an exporter holds for long while it attaches.
func (p *pair) frames() frames {
	p.lab.t.Helper()
	f, err := p.tryFrames()
	if err != nil {
		p.lab.t.Fatal(err)
	}
	return f
}

func (p *pair) tryFrames() (f frames, err error) {
	text := make([]byte, 1<<14)
	n, err := p.devices.ReadAt(text, 0)
	if n == 0 {
		return f, fmt.Errorf("reading the statistics of %s: %w", p.sender.Device, err)
	}
	for line := range bytes.Lines(text[:n]) {
		name, values, _ := bytes.Cut(line, []byte(":"))
		if string(bytes.TrimSpace(name)) != p.sender.Device {
			continue
		}
		// Eight columns for received frames (bytes, packets, errors, dropped, …), then the same
		// for transmitted ones.
		fields := bytes.Fields(values)
		if len(fields) != 16 {
			return f, fmt.Errorf("%d statistics of %s, want 16: %s", len(fields), p.sender.Device, line)
		}
		var err1, err2 error
		f.received, err1 = strconv.ParseUint(string(fields[9]), 10, 64)
		f.dropped, err2 = strconv.ParseUint(string(fields[11]), 10, 64)
		return f, errors.Join(err1, err2)
	}
	return f, fmt.Errorf("no device %s in\n%s", p.sender.Device, text[:n])
}

// settled waits until each of the frames sent since before is received or dropped.
func (p *pair) settled(before frames, sent uint64) (now frames) {
	p.lab.t.Helper()
	p.lab.poll(func() error {
		if now = p.frames().minus(before); now.all() != sent {
			return fmt.Errorf("%s: of %d frames %d were received and %d dropped", p.audited.Device, sent, now.received, now.dropped)
		}
		return nil
	})
	return now
}

// expectCounted expects that every frame was either dropped by the driver or counted.
func (p *pair) expectCounted(s scrape, sent uint64) {
	p.lab.t.Helper()
	p.expectPackets(s, p.settled(frames{}, sent))
}

// expectPackets expects an audit that saw all frames of a pair to have counted those that the
// driver received.
func (p *pair) expectPackets(s scrape, now frames) {
	p.lab.t.Helper()
	if got := s.sum("packets_total", "device="+p.audited.Device); got != float64(now.received) {
		p.lab.t.Errorf("%s: %v packets were counted, want %d: of %d frames %d found the queue full",
			p.audited.Device, got, now.received, now.all(), now.dropped)
	}
}

// flow is a UDP flow from the sender's side of a pair to the audited one, with its receiver.
type flow struct {
	client  net.Conn
	server  *net.UDPConn
	pair    *pair  // nil for a flow within a namespace
	before  frames // of the pair
	payload int    // bytes of each packet

	written atomic.Uint64 // packets
	arrived atomic.Uint64 // packets that the server received
	changed atomic.Uint64 // packets that arrived with another size
}

const payloadBytes = 100

// newFlow opens a flow to an address of the audited namespace.
func (l *lab) newFlow(to netip.Addr) *flow {
	l.t.Helper()
	f := &flow{pair: l.pairs[to], payload: payloadBytes}
	if f.pair == nil {
		l.t.Fatalf("no pair has the address %v", to)
	}
	f.before = f.pair.frames()
	l.listen(f, to)
	var err error
	if f.client, err = l.sender.Namespace.Dial(l.ctx, "udp", f.server.LocalAddr().String()); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { f.client.Close() })
	return f
}

// newLocalFlow opens a flow within the audited namespace, over its loopback device.
func (l *lab) newLocalFlow() *flow {
	l.t.Helper()
	f := &flow{payload: payloadBytes}
	l.listen(f, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	var err error
	if f.client, err = l.audited.Namespace.Dial(l.ctx, "udp", f.server.LocalAddr().String()); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { f.client.Close() })
	return f
}

// listen opens the server of a flow. It receives until the end of the test.
func (l *lab) listen(f *flow, at netip.Addr) {
	l.t.Helper()
	err := l.audited.Namespace.Do(func() (err error) {
		f.server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	var receiving sync.WaitGroup
	receiving.Go(f.receive)
	l.t.Cleanup(func() {
		f.server.Close()
		receiving.Wait()
	})
}

func (f *flow) receive() {
	buffer := make([]byte, 1<<16)
	for {
		n, err := f.server.Read(buffer)
		if err != nil {
			return // it is closed
		}
		if n != f.payload {
			f.changed.Add(1)
		}
		f.arrived.Add(1)
	}
}

// send writes packets. After every few it waits for the driver, so that the queue of the pair
// does not overflow unless other senders fill it.
func (f *flow) send(packets int) error {
	const atATime = 32
	payload := make([]byte, f.payload)
	for sent := 0; sent < packets; sent += atATime {
		n := min(atATime, packets-sent)
		before, err := f.ends()
		if err != nil {
			return err
		}
		for range n {
			if _, err := f.client.Write(payload); err != nil {
				return err
			}
			f.written.Add(1)
		}
		err = await(func() error {
			now, err := f.ends()
			if err == nil && now < before+uint64(n) {
				err = fmt.Errorf("%d packets have no end: %d of %d were neither received nor dropped", n, before+uint64(n)-now, n)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ends returns how many frames of the pair were received or dropped. A flow within a namespace
// has no queue: its packets are received when they are written.
func (f *flow) ends() (uint64, error) {
	if f.pair == nil {
		return f.written.Load(), nil
	}
	now, err := f.pair.tryFrames()
	return now.all(), err
}

// await is netlab.Poll for conditions that take microseconds.
func await(ready func() error) error {
	for begin := time.Now(); ; time.Sleep(20 * time.Microsecond) {
		err := ready()
		if err == nil || time.Since(begin) > patience {
			return err
		}
	}
}

// checkArrival returns an error unless every packet that the driver received reached the server
// unchanged or found the buffer of its socket full. The driver counts dropped frames for the
// whole pair, so a dropped frame may belong to another flow.
func (f *flow) checkArrival() error {
	return await(func() error {
		dropped := uint64(0)
		if f.pair != nil {
			now, err := f.pair.tryFrames()
			if err != nil {
				return err
			}
			dropped = now.minus(f.before).dropped
		}
		overflowed, err := f.overflowed()
		if err != nil {
			return err
		}
		written, arrived, changed := f.written.Load(), f.arrived.Load(), f.changed.Load()
		if ends := arrived + overflowed; changed > 0 || ends > written || ends+dropped < written {
			return fmt.Errorf("of %d packets at most %d were dropped by the driver, %d by the socket; %d arrived, %d of them changed",
				written, dropped, overflowed, arrived, changed)
		}
		return nil
	})
}

// overflowed returns the number of packets that found the buffer of the server full.
func (f *flow) overflowed() (packets uint64, err error) {
	const drops = 8 // SK_MEMINFO_DROPS of linux/sock_diag.h
	var values [drops + 1]uint32
	size := uint32(unsafe.Sizeof(values))
	connection, err := f.server.SyscallConn()
	if err != nil {
		return 0, err
	}
	var errno syscall.Errno
	err = connection.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&values)), uintptr(unsafe.Pointer(&size)), 0)
	})
	if err == nil && errno != 0 {
		err = fmt.Errorf("asking a socket for its drops: %w", errno)
	}
	return uint64(values[drops]), err
}

// send sends packets until the driver has received the given number. The pair must have no other
// traffic meanwhile.
func (l *lab) send(f *flow, packets int) {
	l.t.Helper()
	for packets > 0 {
		var before frames
		if f.pair != nil {
			before = f.pair.frames()
		}
		if err := f.send(packets); err != nil {
			l.t.Fatal(err)
		}
		packets = 0
		if f.pair != nil {
			packets = int(f.pair.frames().minus(before).dropped)
		}
	}
	if err := f.checkArrival(); err != nil {
		l.t.Fatal(err)
	}
}

// stream sends without pause until it is stopped.
type stream struct {
	flow    *flow
	stop    atomic.Bool
	running sync.WaitGroup
	err     error
}

func (l *lab) startStream(f *flow) *stream {
	s := &stream{flow: f}
	s.running.Go(func() {
		const burst = 16
		for !s.stop.Load() && s.err == nil {
			s.err = f.send(burst)
		}
	})
	l.t.Cleanup(s.halt)
	return s
}

func (s *stream) halt() {
	s.stop.Store(true)
	s.running.Wait()
}

// end stops the stream and returns the frames of the pair so far. It returns an error if no
// packet was sent, or if a packet did not reach the server.
func (s *stream) end() (frames, error) {
	s.halt()
	if s.err != nil {
		return frames{}, s.err
	}
	if s.flow.written.Load() == 0 {
		return frames{}, errors.New("nothing was sent")
	}
	now, err := s.flow.pair.tryFrames()
	return now, errors.Join(err, s.flow.checkArrival())
}
