// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leak

const (
	slotBits = 12
	// fibonacci spreads numbers over slots (Knuth, The Art of Computer Programming, 6.4).
	fibonacci = 0x9e3779b97f4a7c15
	// maxProbes is the number of slots that a connection may be in.
	maxProbes = 8
)

// connections find the blocks of two of each connection. A new connection takes a free slot, or
// that of a connection that was not used for the longest time, of which an open block is lost.
type connections struct {
	slots [1 << slotBits]slot
	used  uint64 // requests so far
}

// slot is the state of one connection.
type slot struct {
	connection uint64
	lastUse    uint64 // 0 for a free slot
	next       uint32 // number of the next request
	last       Class  // of the last request

	isAligned bool   // it is known where blocks begin
	isOdd     bool   // they begin at odd numbers
	from      uint32 // the first block that counts

	hasFirst, isExcluded bool // of the open block
	first                response
}

func newConnections() *connections { return &connections{} }

// find returns the slot of a connection.
func (c *connections) find(r Request) *slot {
	c.used++
	home := int(r.Connection * fibonacci >> (64 - slotBits))
	oldest := &c.slots[home]
	for i := range maxProbes {
		s := &c.slots[(home+i)%len(c.slots)]
		if s.lastUse > 0 && s.connection == r.Connection {
			// A smaller number is that of a new connection.
			if r.Number >= s.next {
				s.lastUse = c.used
				return s
			}
			oldest = s
			break
		}
		if s.lastUse < oldest.lastUse {
			oldest = s
		}
	}
	*oldest = slot{connection: r.Connection, lastUse: c.used, last: Unknown, isAligned: !r.IsMiddle}
	return oldest
}

// add takes the next request of a connection, and gives complete blocks to the judge.
func (c *connections) add(j *Judge, r Request, now response, isExcluded bool) {
	s := c.find(r)
	isNext := r.Number == s.next && s.last != Unknown && r.Class != Unknown
	isFirst := s.isAligned && r.Number >= s.from && (r.Number%2 == 1) == s.isOdd
	switch {
	case isFirst && s.hasFirst:
		j.dropped++ // the second of the open block is missing
	case !isFirst && s.isAligned && r.Number > s.from:
		if s.hasFirst && r.Number != s.next {
			j.dropped++ // the second of the open block is missing, and the first of this one
		}
		s.complete(j, now, isNext && s.hasFirst, isExcluded)
	case !s.isAligned && isNext && r.Class == s.last:
		s.align(r.Number)
	}
	s.hasFirst = isFirst
	if isFirst {
		s.first, s.isExcluded = now, isExcluded
	}
	s.next, s.last = r.Number+1, r.Class
}

// complete ends the open block. A block whose labels are equal is not one: blocks begin elsewhere.
func (s *slot) complete(j *Judge, now response, isComplete, isExcluded bool) {
	if !isComplete {
		j.dropped++
		return
	}
	isBlock := s.first.class != now.class
	j.labels.blocks.add(!isBlock)
	if !isBlock {
		s.align(s.next)
		return
	}
	j.labels.all.add(s.first.class)
	if isExcluded || s.isExcluded {
		j.dropped++
		return
	}
	j.labels.included.add(s.first.class)
	j.block(s.first, now)
}

// align takes the number of a request that has the class of the one before it. So it begins a
// block. The block has no part in any test, because its order is known.
func (s *slot) align(number uint32) {
	s.isAligned, s.isOdd, s.from = true, number%2 == 1, number+2
}
