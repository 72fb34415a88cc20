// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exchange

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Sequence numbers of the client and of the server before their first bytes.
const c0, s0 = 1000, 5000

// script is a sequence of segments, one each microsecond.
type script []Segment

func syn() Segment    { return Segment{Flags: SYN, Seq: c0 - 1} }
func synAck() Segment { return Segment{FromServer: true, Flags: SYN | ACK, Seq: s0 - 1, Ack: c0} }

// ask is a segment of the client: n bytes from the number seq on, counted from its first byte, with
// all up to the number ack of the server acknowledged.
func ask(seq, n, ack uint32, class Class) Segment {
	return Segment{Flags: ACK, Seq: c0 + seq, Len: n, Ack: s0 + ack, Class: class}
}

// reply is a segment of the server.
func reply(seq, n, ack uint32) Segment {
	return Segment{FromServer: true, Flags: ACK, Seq: s0 + seq, Len: n, Ack: c0 + ack}
}

func with(s Segment, flags uint8) Segment {
	s.Flags |= flags
	return s
}

func after(s Segment, ns uint64) Segment {
	s.NowNs = ns
	return s
}

// datagram is a segment of UDP.
func datagram(fromServer bool, class Class) Segment {
	return Segment{IsUDP: true, FromServer: fromServer, Len: 10, Class: class}
}

// run returns what becomes of the requests, in order: their position, and their elapsed time in
// microseconds and class, or the reason of their exclusion.
func (s script) run(table *Table) string {
	now := uint64(1e15)
	for i := range s {
		now += 1000 + s[i].NowNs
		segment := s[i]
		segment.NowNs, segment.Hash = now, max(segment.Hash, 1)
		table.Observe(segment)
	}
	var ended []string
	for _, r := range table.Records {
		what := fmt.Sprintf("%d of %c", r.ElapsedNs/1000, "-XY"[r.Class+1])
		if r.Reason != Measured {
			what = []string{"", "pipelined", "retransmitted", "unclassified", "mixed", "unanswered", "evicted"}[r.Reason]
		}
		ended = append(ended, fmt.Sprintf("%d: %s", r.Position, what))
	}
	if n := table.Outstanding(); n > 0 {
		ended = append(ended, fmt.Sprintf("%d outstanding", n))
	}
	return strings.Join(ended, ", ")
}

func TestRequestsAndResponses(t *testing.T) {
	for _, test := range []struct {
		about  string
		script script
		want   string
	}{
		{"a request and its response", script{syn(), synAck(), ask(0, 100, 0, ClassX), reply(0, 50, 100)}, "0: 1 of X"},
		{"keep-alive: the next request acknowledges the response", script{
			syn(), synAck(), ask(0, 100, 0, ClassX), reply(0, 50, 100), ask(100, 100, 50, ClassY), reply(50, 50, 200),
		}, "0: 1 of X, 1: 1 of Y"},
		{"acknowledgements without data, also delayed ones, between requests and responses", script{
			syn(), synAck(), ask(0, 0, 0, ClassX), ask(0, 100, 0, ClassX), reply(0, 0, 100), reply(0, 50, 100), ask(100, 0, 50, ClassY),
			ask(100, 100, 50, ClassX), reply(50, 50, 200),
		}, "0: 2 of X, 1: 1 of X"},
		{"the time of a request is that of its last segment", script{
			syn(), synAck(), ask(0, 1000, 0, ClassX), ask(1000, 1000, 0, ClassX), ask(2000, 10, 0, ClassX), reply(0, 0, 1000), reply(0, 50, 2010),
		}, "0: 2 of X"},
		{"the time of a response is that of its first segment", script{
			syn(), synAck(), ask(0, 10, 0, ClassX), reply(0, 60_000, 10), ask(10, 0, 30_000, ClassX), reply(60_000, 1000, 10), ask(10, 10, 61_000, ClassX),
			reply(61_000, 10, 20),
		}, "0: 1 of X, 1: 1 of X"},
		{"a request during a response", script{
			syn(), synAck(), ask(0, 10, 0, ClassX), reply(0, 1000, 10), ask(10, 10, 0, ClassX), reply(1000, 1000, 20), ask(20, 10, 2000, ClassX),
			reply(2000, 10, 30),
		}, "0: 1 of X, 1: pipelined, 2: 1 of X"},
		{"a response before the end of the request", script{
			syn(), synAck(), ask(0, 1000, 0, ClassX), ask(1000, 1000, 0, ClassX), reply(0, 10, 1000), reply(10, 10, 2000), ask(2000, 10, 20, ClassX),
			reply(20, 10, 2010),
		}, "0: pipelined, 1: 1 of X"},
		{"a segment of the request comes again", script{
			syn(), synAck(), ask(0, 100, 0, ClassX), ask(0, 100, 0, ClassX), reply(0, 50, 100),
		}, "0: retransmitted"},
		{"a segment of an answered request comes again", script{
			syn(), synAck(), ask(0, 100, 0, ClassX), reply(0, 50, 100), ask(0, 100, 0, ClassX), ask(100, 10, 50, ClassX), reply(50, 50, 110),
		}, "0: 1 of X, 1: 1 of X"},
		{"a segment is lost and comes after the next", script{
			syn(), synAck(), ask(100, 100, 0, ClassX), ask(0, 100, 0, ClassX), reply(0, 50, 200), ask(200, 10, 50, ClassX), reply(50, 50, 210),
		}, "0: retransmitted, 1: 1 of X"},
		{"a segment that comes again with more data", script{
			syn(), synAck(), ask(0, 100, 0, ClassX), reply(0, 50, 100), ask(0, 200, 0, ClassX), reply(50, 50, 200),
		}, "0: 1 of X, 1: retransmitted"},
		{"the response is sent again", script{
			syn(), synAck(), ask(0, 100, 0, ClassX), reply(0, 50, 100), reply(0, 50, 100), ask(100, 10, 50, ClassX), reply(0, 50, 100), reply(50, 10, 110),
		}, "0: 1 of X, 1: 2 of X"},
		{"keep-alive probes with and without a byte, and window updates", script{
			syn(), synAck(), ask(0, 100, 0, ClassX), ask(99, 1, 0, ClassX), ask(99, 0, 0, ClassX), ask(100, 0, 0, ClassX), reply(0, 50, 100),
			ask(99, 1, 50, ClassY), reply(50, 0, 100), reply(49, 1, 100), ask(100, 10, 50, ClassX), reply(50, 10, 110),
		}, "0: 4 of X, 1: 1 of X"},
		{"a request of both classes", script{
			syn(), synAck(), ask(0, 100, 0, ClassX), ask(100, 100, 0, ClassY), reply(0, 50, 200),
		}, "0: mixed"},
		{"a request of neither class, and a second reason", script{
			syn(), synAck(), ask(0, 100, 0, ClassNone), ask(0, 100, 0, ClassX), ask(100, 100, 0, ClassX), reply(0, 50, 200),
		}, "0: unclassified"},
		{"a request with a part of neither class", script{
			syn(), synAck(), ask(0, 100, 0, ClassY), ask(100, 100, 0, ClassNone), reply(0, 50, 200),
		}, "0: mixed"},
		{"the client resets", script{
			syn(), synAck(), ask(0, 100, 0, ClassX), with(ask(100, 0, 0, ClassX), RST), reply(0, 50, 100),
		}, "0: unanswered"},
		{"the server resets", script{syn(), synAck(), ask(0, 100, 0, ClassX), with(reply(0, 0, 100), RST)}, "0: unanswered"},
		{"the server ends without a response", script{syn(), synAck(), ask(0, 100, 0, ClassX), with(reply(0, 0, 100), FIN)}, "0: unanswered"},
		{"the server ends with the response", script{syn(), synAck(), ask(0, 100, 0, ClassX), with(reply(0, 9, 100), FIN)}, "0: 1 of X"},
		{"the client sends no more and waits", script{
			syn(), synAck(), with(ask(0, 100, 0, ClassX), FIN), reply(0, 0, 101), reply(0, 9, 101),
		}, "0: 2 of X"},
		{"a port is used again", script{
			syn(), synAck(), ask(0, 100, 0, ClassX), {Flags: SYN, Seq: 77}, {FromServer: true, Flags: SYN | ACK, Seq: 99, Ack: 78},
			{Flags: ACK, Seq: 78, Ack: 100, Len: 5, Class: ClassY}, {FromServer: true, Flags: ACK, Seq: 100, Ack: 83, Len: 5},
		}, "0: unanswered, 0: 1 of Y"},
		{"the SYN comes again", script{syn(), syn(), synAck(), synAck(), ask(0, 100, 0, ClassX), reply(0, 50, 100)}, "0: 1 of X"},
		{"data in the SYN", script{
			{Flags: SYN, Seq: c0 - 1, Len: 20, Class: ClassX}, {FromServer: true, Flags: SYN | ACK, Seq: s0 - 1, Ack: c0 + 20}, reply(0, 50, 20),
		}, "0: 2 of X"},
		{"the numbers pass zero", script{
			{Flags: SYN, Seq: 1<<32 - 50}, {FromServer: true, Flags: SYN | ACK, Seq: 1<<32 - 10, Ack: 1<<32 - 49},
			{Flags: ACK, Seq: 1<<32 - 49, Ack: 1<<32 - 9, Len: 100}, {FromServer: true, Flags: ACK, Seq: 1<<32 - 9, Ack: 51, Len: 30},
			{Flags: ACK, Seq: 51, Ack: 21, Len: 1}, {FromServer: true, Flags: ACK, Seq: 21, Ack: 52, Len: 1},
		}, "0: 1 of X, 1: 1 of X"},
		{"a connection that is older than the measurement", script{ask(700, 10, 300, ClassX), reply(300, 10, 710), ask(710, 10, 310, ClassY)},
			"0: 1 of X, 1 outstanding"},
		{"a server that speaks first", script{syn(), synAck(), reply(0, 10, 0), ask(0, 100, 10, ClassX), reply(10, 50, 100)}, "0: 1 of X"},
		{"datagrams", script{datagram(false, ClassX), datagram(true, 0), datagram(true, 0), datagram(false, ClassY), datagram(true, 0)},
			"0: 1 of X, 1: 1 of Y"},
		{"a datagram before the response to another, and all until each is answered", script{
			datagram(false, ClassX), datagram(false, ClassX), datagram(true, 0), datagram(false, ClassX), datagram(true, 0), datagram(true, 0),
			datagram(false, ClassX), datagram(true, 0),
		}, "0: pipelined, 1: pipelined, 2: pipelined, 3: 1 of X"},
		{"a datagram that is never answered", script{
			datagram(false, ClassX), after(datagram(false, ClassY), UDPTimeoutNs), datagram(true, 0),
		}, "0: unanswered, 1: 1 of Y"},
	} {
		t.Run(test.about, func(t *testing.T) {
			if got := test.script.run(NewTable(1)); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// A connection that is seen from its start says so.
func TestStart(t *testing.T) {
	table := NewTable(1)
	script{syn(), synAck(), ask(0, 1, 0, ClassX), reply(0, 1, 1)}.run(table)
	other := script{ask(0, 1, 0, ClassX), reply(0, 1, 1)}
	for i := range other {
		other[i].Hash = 2
	}
	other.run(table)
	if r := table.Records; len(r) != 2 || !r[0].HasStart || r[1].HasStart || r[0].Connection == r[1].Connection {
		t.Errorf("got %+v", r)
	}
}

// A full set evicts the connection with the oldest request, and a flood of connections without
// requests its own.
func TestEviction(t *testing.T) {
	of := func(hash uint64, s Segment) Segment {
		s.Hash = hash
		return s
	}
	table := NewTable(1)
	var fill script
	for hash := range uint64(Ways) {
		fill = append(fill, of(hash+1, syn()), of(hash+1, ask(0, 1, 0, ClassX)))
	}
	fill = append(fill, of(100, syn()), of(101, syn()), of(102, syn()), of(103, syn()), of(103, ask(0, 1, 0, ClassX)), of(200, ask(0, 1, 0, ClassX)))
	fill.run(table)
	places := []uint64{}
	for _, r := range table.Records {
		places = append(places, r.Connection%Ways)
	}
	// The first one for all of the flood, and the second one for the last request.
	if table.Excluded[Evicted] != 2 || !slices.Equal(places, []uint64{0, 1}) || table.Outstanding() != Ways {
		t.Errorf("the connections %v were evicted, and %d requests are outstanding", places, table.Outstanding())
	}
}

// Whatever is sent, each request ends once or is outstanding.
func FuzzIdentity(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 0x10, 0x81, 0x42, 0x23})
	f.Fuzz(func(t *testing.T, data []byte) {
		table := NewTable(2)
		now := uint64(1e15)
		for chunk := range slices.Chunk(data, 4) {
			if len(chunk) < 4 {
				break
			}
			now += uint64(chunk[0]) << (chunk[1] >> 2 & 31)
			table.Observe(Segment{
				NowNs: now, Hash: uint64(chunk[0]%32) + 1 | uint64(chunk[0]%2)<<32, IsUDP: chunk[0]&4 != 0, FromServer: chunk[1]&2 != 0, Flags: chunk[2],
				Seq: uint32(chunk[3] >> 4), Ack: uint32(chunk[3] & 15), Len: uint32(chunk[1] >> 6), Class: Class(chunk[1]>>4%3) - 1,
			})
		}
		ended := table.Responses[0] + table.Responses[1] + table.Outstanding()
		for _, n := range table.Excluded {
			ended += n
		}
		if ended != table.Requests || uint64(len(table.Records)) != ended-table.Outstanding() {
			t.Errorf("%d requests, of which %d ended or are outstanding", table.Requests, ended)
		}
	})
}
