// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package exchange is the model of how the kernel measures response times: a state machine for each
// connection, which pairs the last byte of a request with the first byte of its response. The
// programs in bpf/xdp do the same, and a differential test compares both.
//
// A request is all data that the client of a connection sends between two responses. Its time is
// that of the last segment. A request is excluded from the measurement if its time or its class may
// be wrong. An excluded request ends as any other does, and is counted by the first reason.
package exchange

// The flags of a TCP segment that matter.
const (
	FIN = 1 << 0
	SYN = 1 << 1
	RST = 1 << 2
	ACK = 1 << 4
)

// UDPTimeoutNs is the time after which a datagram is not expected to be answered any more.
const UDPTimeoutNs = 5e9

// EmbryonicNs is the time by which a connection without a request looks older than it is, so that
// a flood of connections evicts connections of its own.
const EmbryonicNs = 1 << 40

// Ways is the number of connections in a set of the table.
const Ways = 8

// Class is the class of a packet or of a request.
type Class int8

// The classes.
const (
	ClassNone Class = iota - 1 // neither class matches, or the request has packets of several
	ClassX                     // the first class of an assessment
	ClassY                     // the second one
)

// Reason says why a request is excluded.
type Reason uint8

// The reasons, in the order of the counters in the maps. Measured is none: the request has a
// response time.
const (
	Measured      Reason = iota
	Pipelined            // sent before the end of a response, or answered before its own end
	Retransmitted        // a segment came again, or after a later one
	Unclassified         // of neither class
	Mixed                // packets of several classes
	Unanswered           // the connection ended
	Evicted              // another connection took the place of this one in the table
	RingFull             // the response was measured, and there was no space to record it
	NumReasons
)

// Segment is a TCP segment or a UDP datagram.
type Segment struct {
	NowNs      uint64
	Hash       uint64 // of the connection
	IsUDP      bool
	FromServer bool
	Flags      uint8
	Seq, Ack   uint32
	Len        uint32 // of the payload
	Class      Class  // of a packet of the client
}

// Record is a request that has ended.
type Record struct {
	TimeNs     uint64 // time of the end
	ElapsedNs  uint64 // since the last byte of the request
	Connection uint64 // number of the connection
	Position   uint32 // number of the request in its connection, from 0
	HasStart   bool   // the connection was seen from its start, so that Position is right
	Class      Class
	Reason     Reason
}

// Connection is the state of a connection.
type Connection struct {
	tag        uint32
	lastNs     uint64
	clientNext uint32 // sequence number after the last byte of the client
	serverNext uint32 // after the last byte of the server; UDP: number of unanswered datagrams
	isKnown    bool   // serverNext is known
	hasStart   bool
	position   uint32 // number of requests so far
	generation uint32 // number of connections that had the place

	isOutstanding bool
	requestNs     uint64
	class         Class
	reason        Reason
}

// Table is the model of the table of connections, and of the counters of one assessment.
type Table struct {
	sets      [][Ways]Connection
	Requests  uint64
	Responses [2]uint64 // by class
	Excluded  [NumReasons]uint64
	Records   []Record
}

// NewTable returns a table. The number of sets is a power of two.
func NewTable(sets int) *Table { return &Table{sets: make([][Ways]Connection, sets)} }

// Outstanding returns the number of requests that have not ended.
func (t *Table) Outstanding() (n uint64) {
	for s := range t.sets {
		for w := range t.sets[s] {
			if t.sets[s][w].isOutstanding {
				n++
			}
		}
	}
	return n
}

// Observe handles a segment.
func (t *Table) Observe(s Segment) {
	switch {
	case s.FromServer && s.IsUDP:
		t.answer(s)
	case s.FromServer:
		t.send(s)
	case s.IsUDP:
		t.ask(s)
	default:
		t.receive(s)
	}
}

func (t *Table) setOf(hash uint64) (set int) { return int(hash >> 32 & uint64(len(t.sets)-1)) }

// find returns the place of a connection in its set; −1 if it has none.
func (t *Table) find(hash uint64) (set, way int) {
	set = t.setOf(hash)
	for way := range Ways {
		if t.sets[set][way].tag == uint32(hash) {
			return set, way
		}
	}
	return set, -1
}

func (t *Table) lookUp(hash uint64) (c *Connection, id uint64) {
	set, way := t.find(hash)
	if way < 0 {
		return nil, 0
	}
	c = &t.sets[set][way]
	return c, t.number(set, way)
}

func (t *Table) number(set, way int) uint64 {
	return uint64(t.sets[set][way].generation)<<32 | uint64(set*Ways+way)
}

// insert gives a connection a free place, or that of the connection with the oldest request.
func (t *Table) insert(s Segment) (c *Connection, id uint64) {
	set, victim := t.setOf(s.Hash), 0
	ways := &t.sets[set]
	for way := range ways {
		if ways[way].age() < ways[victim].age() {
			victim = way
		}
	}
	c = &ways[victim]
	t.end(c, t.number(set, victim), s.NowNs, Evicted)
	*c = Connection{tag: uint32(s.Hash), generation: c.generation + 1}
	return c, t.number(set, victim)
}

// age orders the connections of a set by the time at which they may be evicted. Free places are
// first.
func (c *Connection) age() uint64 {
	if c.tag == 0 {
		return 0
	}
	return c.lastNs
}

// end takes the outstanding request of a connection out, if there is one, and counts it.
func (t *Table) end(c *Connection, id, nowNs uint64, reason Reason) {
	if !c.isOutstanding {
		return
	}
	c.isOutstanding = false
	if c.reason != Measured {
		reason = c.reason
	}
	r := Record{
		TimeNs: nowNs, ElapsedNs: nowNs - c.requestNs, Connection: id, Position: c.position - 1, HasStart: c.hasStart, Class: c.class, Reason: reason,
	}
	if reason == Mixed || reason == Unclassified {
		r.Class = ClassNone
	}
	if reason == Measured {
		t.Responses[c.class]++
	} else {
		t.Excluded[reason]++
	}
	t.Records = append(t.Records, r)
}

// spoil excludes the outstanding request, unless it is excluded already.
func (c *Connection) spoil(reason Reason) {
	if c.isOutstanding && c.reason == Measured {
		c.reason = reason
	}
}

// begin makes a request outstanding.
func (t *Table) begin(c *Connection, s Segment, reason Reason) {
	if s.Class == ClassNone {
		reason = Unclassified
	}
	c.isOutstanding, c.requestNs, c.class, c.reason = true, s.NowNs, s.Class, reason
	c.position++
	t.Requests++
}

// isBefore compares sequence numbers.
func isBefore(a, b uint32) bool { return int32(a-b) < 0 }

// receive handles a segment of the client.
func (t *Table) receive(s Segment) {
	if s.Len == 0 && s.Flags&(SYN|RST) == 0 {
		return
	}
	c, id := t.lookUp(s.Hash)
	if s.Flags&RST != 0 {
		if c != nil {
			t.end(c, id, s.NowNs, Unanswered)
			c.lastNs = 0
		}
		return
	}
	if s.Flags&SYN != 0 {
		s.Seq++
		if c != nil && c.hasStart && c.position == 0 && c.clientNext == s.Seq {
			return // it came again
		}
		if c == nil {
			c, _ = t.insert(s)
		} else {
			t.end(c, id, s.NowNs, Unanswered)
			*c = Connection{tag: c.tag, generation: c.generation + 1}
		}
		c.clientNext, c.hasStart, c.lastNs = s.Seq, true, s.NowNs-min(s.NowNs, EmbryonicNs)
		if s.Len == 0 {
			return
		}
	}
	if c == nil {
		c, _ = t.insert(s)
		c.clientNext = s.Seq
	}
	end := s.Seq + s.Len
	if !isBefore(c.clientNext, end) {
		if s.Len != 1 || end != c.clientNext { // not a probe, which repeats the last byte
			c.spoil(Retransmitted)
		}
		return
	}
	if !c.isKnown && s.Flags&ACK != 0 {
		c.serverNext, c.isKnown = s.Ack, true
	}
	reason := Measured
	switch {
	case s.Seq != c.clientNext:
		reason = Retransmitted
	case s.Flags&ACK != 0 && isBefore(s.Ack, c.serverNext):
		reason = Pipelined
	}
	c.clientNext, c.lastNs = end, s.NowNs
	if !c.isOutstanding {
		t.begin(c, s, reason)
		return
	}
	c.requestNs = s.NowNs
	if s.Class != c.class {
		c.spoil(Mixed)
	}
	if reason != Measured {
		c.spoil(reason)
	}
}

// send handles a segment of the server.
func (t *Table) send(s Segment) {
	if s.Len == 0 && s.Flags&(SYN|RST|FIN) == 0 {
		return
	}
	c, id := t.lookUp(s.Hash)
	if c == nil {
		return
	}
	switch {
	case s.Flags&RST != 0:
		t.end(c, id, s.NowNs, Unanswered)
		c.lastNs = 0
		return
	case s.Flags&SYN != 0:
		c.serverNext, c.isKnown = s.Seq+1, true
		return
	case s.Len == 0:
		t.end(c, id, s.NowNs, Unanswered)
		return
	}
	end := s.Seq + s.Len
	if c.isKnown && !isBefore(c.serverNext, end) {
		return
	}
	c.serverNext, c.isKnown = end, true
	if isBefore(s.Ack, c.clientNext) {
		c.spoil(Pipelined)
		return
	}
	t.end(c, id, s.NowNs, Measured)
}

// ask handles a datagram of the client.
func (t *Table) ask(s Segment) {
	c, id := t.lookUp(s.Hash)
	if c == nil {
		c, id = t.insert(s)
	}
	reason := Measured
	if s.NowNs-c.lastNs > UDPTimeoutNs {
		t.end(c, id, s.NowNs, Unanswered)
		c.serverNext = 0
	}
	if int32(c.serverNext) > 0 {
		t.end(c, id, s.NowNs, Pipelined)
		reason = Pipelined
	}
	c.serverNext++
	c.lastNs = s.NowNs
	t.begin(c, s, reason)
}

// answer handles a datagram of the server.
func (t *Table) answer(s Segment) {
	c, id := t.lookUp(s.Hash)
	if c == nil {
		return
	}
	if int32(c.serverNext) > 0 {
		c.serverNext--
	}
	t.end(c, id, s.NowNs, Measured)
}
