// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/perf"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

const (
	// ringBytes is the size of the ring of one CPU. The reader is woken when a quarter of it is
	// full: a wake-up for each event would take microseconds of each flagged packet.
	ringBytes     = 256 << 10
	ringWatermark = ringBytes / 4

	// flushInterval is the longest time that an event waits in a ring that does not fill.
	flushInterval = 100 * time.Millisecond

	eventBytes = int(unsafe.Sizeof(programAuditEvent{}))
)

// eventReader reads the perf events of all devices.
type eventReader struct {
	params    timing.Params
	clock     monotonicAnchor
	owners    atomic.Pointer[owners]
	lost      atomic.Uint64
	malformed atomic.Uint64

	rings, allowances *ebpf.Map
	cpus              int

	// counting is held while an event is counted in the device table, and while the rings are
	// reopened.
	counting sync.Mutex
	reader   *perf.Reader  // nil without rings; replaced by ReadEvents only, which holds counting
	isClosed bool          // the device table may be unmapped and the maps closed
	closed   chan struct{} // closed with isClosed
}

// newEventReader opens the rings. If no event is ever sent, it opens none, so that the kernel need
// not permit any.
func newEventReader(t *auditMaps, config Config, devices int) (*eventReader, error) {
	r := &eventReader{
		params: config.params(), clock: newMonotonicAnchor(),
		rings: t.byName[programMapAuditEvents], allowances: t.byName[programMapEventAllowances], cpus: t.cpus,
		closed: make(chan struct{}),
	}
	if config.EventRate > 0 {
		var err error
		if r.reader, err = openRings(r.rings, r.allowances, r.cpus); err != nil {
			return nil, err
		}
	}
	none := make(owners, devices)
	r.owners.Store(&none)
	return r, nil
}

// setOwner sets the device that events of an index belong to from now on.
func (r *eventReader) setOwner(index int, owner eventOwner) {
	changed := r.owners.Load().with(index, owner)
	r.owners.Store(&changed)
}

// retire ends the event count of the device that has an index. Events of the device that are
// still in a ring keep its name, and are not counted.
func (r *eventReader) retire(index int) {
	r.counting.Lock()
	defer r.counting.Unlock()
	changed := slices.Clone(*r.owners.Load())
	changed[index].current.received = nil
	r.owners.Store(&changed)
}

// close removes the rings from the map first, so that events of packets in flight have the fate
// no_reader and not ring_full. Before Linux 5.19 that takes privilege; without it, the kernel
// removes the rings when the map is closed. It does not wait for the handler of an event, which
// may hang.
func (r *eventReader) close() error {
	r.counting.Lock()
	if !r.isClosed {
		r.isClosed = true
		close(r.closed)
	}
	r.counting.Unlock()
	if r.reader == nil {
		return nil
	}
	paused := r.reader.Pause()
	if errors.Is(paused, unix.EPERM) {
		paused = nil
	}
	if err := errors.Join(paused, r.reader.Close()); err != nil {
		return fmt.Errorf("closing the rings of %s: %w", programMapAuditEvents, err)
	}
	return nil
}

// ReadEvents calls handle for each perf event until the context ends, and then for the events
// that are still in the rings. The event is valid only during the call. [Audit.Close] does not
// wait for a call of handle. Only one ReadEvents may run at a time. If Config.EventRate is 0, there
// are neither rings nor events.
func (a *Audit) ReadEvents(ctx context.Context, handle func(*Event)) error {
	if a.events.reader == nil {
		select {
		case <-ctx.Done():
		case <-a.events.closed:
		}
		return nil
	}
	var record perf.Record
	var event Event
	read := func(reader *perf.Reader, until time.Time) error {
		reader.SetDeadline(until)
		return a.events.drain(reader, &record, &event, handle)
	}
	rings := ringCheck{reported: map[int]bool{}}
	for {
		// Check before draining, so that events sent before the end are read.
		ended := ctx.Err() != nil
		until := time.Now()
		if !ended {
			until = until.Add(flushInterval)
		}
		err := read(a.events.reader, until)
		if err == nil && !ended {
			var old *perf.Reader
			if old, err = a.reopenLostRings(&rings); old != nil {
				err = errors.Join(read(old, time.Now()), old.Close())
			}
		}
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", programMapAuditEvents, err)
		}
		if ended {
			return nil
		}
	}
}

// drain handles events until the deadline of the reader has passed and the rings are empty.
func (r *eventReader) drain(reader *perf.Reader, record *perf.Record, event *Event, handle func(*Event)) error {
	for {
		err := reader.ReadInto(record)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
		r.lost.Add(record.LostSamples)
		if record.LostSamples > 0 {
			continue
		}
		id, ok := decodeEvent(record.RawSample, event, r.params)
		owner, err := r.count(id, ok)
		if err != nil {
			return err
		}
		if owner == nil {
			continue
		}
		event.Device = owner.name
		event.Time = r.clock.wallTime(event.KtimeNs)
		handle(event)
	}
}

// count counts an event and returns its owner, nil if the event is malformed. It returns
// os.ErrClosed after close.
func (r *eventReader) count(id uint32, ok bool) (*eventOwner, error) {
	r.counting.Lock()
	defer r.counting.Unlock()
	if r.isClosed {
		return nil, os.ErrClosed
	}
	owner := r.owners.Load().find(id)
	if !ok || owner == nil {
		r.malformed.Add(1)
		return nil, nil
	}
	if owner.received != nil {
		atomic.AddUint64(owner.received, 1)
	}
	return owner, nil
}

// decodeEvent decodes one record into *event, and returns the owner id of the event's device.
// The record may end with a few bytes of garbage. The caller sets the device's name and the
// wall time.
func decodeEvent(record []byte, event *Event, params timing.Params) (owner uint32, ok bool) {
	if len(record) < eventBytes {
		return 0, false
	}
	var raw programAuditEvent
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&raw)), eventBytes), record)
	key := &raw.Key
	// No delta is longer than the longest idle timeout. With fewer than two samples there is no
	// variance.
	if key.Family >= uint8(NumFamilies) || raw.Flag.N < 2 || raw.Flag.DeltaNs > timing.MaxDelta {
		return 0, false
	}
	*event = Event{
		Flag:           flagOf(&raw.Flag, params),
		Source:         addrPort(Family(key.Family), &key.Source, key.SourcePort),
		Destination:    addrPort(Family(key.Family), &key.Destination, key.DestinationPort),
		Protocol:       protocolOf(Family(key.Family), key.IpProtocol),
		ProtocolNumber: key.IpProtocol,
		VLAN:           key.VlanId,
	}
	return key.Owner, true
}

// addrPort converts an address and a port in network byte order.
func addrPort(family Family, address *[4]uint32, port uint16) netip.AddrPort {
	bytes := *(*[16]byte)(unsafe.Pointer(address))
	addr := netip.AddrFrom16(bytes)
	if family == FamilyIPv4 {
		addr = netip.AddrFrom4([4]byte(bytes[:4]))
	}
	var network [2]byte
	binary.NativeEndian.PutUint16(network[:], port)
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(network[:]))
}

// protocolOf is the Go counterpart of protocol_of() in parse.h.
func protocolOf(family Family, number uint8) Protocol {
	switch {
	case number == unix.IPPROTO_TCP:
		return ProtocolTCP
	case number == unix.IPPROTO_UDP:
		return ProtocolUDP
	case number == unix.IPPROTO_SCTP:
		return ProtocolSCTP
	case number == unix.IPPROTO_ICMP && family == FamilyIPv4, number == unix.IPPROTO_ICMPV6 && family == FamilyIPv6:
		return ProtocolICMP
	}
	return ProtocolOther
}

// EventCounts returns the number of events read from the rings so far. Received is empty after
// [Audit.Close].
func (a *Audit) EventCounts() EventCounts {
	counts := EventCounts{Received: map[string]uint64{}, Lost: a.events.lost.Load(), Malformed: a.events.malformed.Load()}
	a.devices.each(func(d *device) {
		if counts.Received[d.name] = 0; !d.hasIndex() {
			return
		}
		counts.Received[d.name] = atomic.LoadUint64(&a.maps.devices.entries[d.index].received)
	})
	return counts
}
