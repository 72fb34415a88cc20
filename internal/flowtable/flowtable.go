// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package flowtable models the flow table of bpf/xdp/flow.h: which slot a flow gets and which
// flow is evicted. For the same hashes and times, model and kernel program choose the same
// slots. The program has [Ways] slots in each set; the model takes any smaller power of two.
package flowtable

// Ways is the number of slots in a set of the program's table.
const Ways = 8

// Words is the number of 32-bit words that are hashed for an IPv6 flow. An IPv4 flow has the
// first 4.
const Words = 10

// Keys are the secret keys of the hash function.
type Keys = [Words]uint32

// Hash is the place of a flow in the table, and the tag and mark by which it is recognised.
type Hash struct {
	Set  uint64 // more bits than a table has sets
	Way  uint32 // preferred way
	Mark uint16
	Tag  uint32 // never 0
}

// HashWords hashes the words of a flow: 4 for IPv4 or 10 for IPv6, in the order of the keys.
// The function is NH (Black et al., UMAC, 1999), a sum of products of pairs, in which each word
// is added to its key modulo 2³². A permutation follows, and the lowest bit of the result is
// set.
func HashWords(words []uint32, keys *Keys) Hash {
	mixed := mix(nh(words, keys))
	return Hash{
		Set:  mixed >> 32,
		Way:  uint32(mixed >> 61),
		Mark: uint16(mixed >> 48),
		Tag:  uint32(mixed),
	}
}

func nh(words []uint32, keys *Keys) (sum uint64) {
	for i := 0; i < len(words); i += 2 {
		sum += uint64(words[i]+keys[i]) * uint64(words[i+1]+keys[i+1])
	}
	return sum
}

func mix(v uint64) uint64 {
	v = (v ^ v>>32) * 0x9e3779b97f4a7c15
	return (v^v>>32)*0xbf58476d1ce4e5b9 | 1
}

// Slot is a slot of the table. A free slot has Tag 0.
type Slot struct {
	Tag    uint32
	Mark   uint16
	LastNs uint64
}

// Table is a set-associative table.
type Table struct {
	ways  int
	slots []Slot
}

// New returns an empty table. sets must be a power of two, ways a power of two up to [Ways].
func New(sets, ways int) *Table {
	return &Table{ways: ways, slots: make([]Slot, sets*ways)}
}

// Set returns the slots of a set.
func (t *Table) Set(set uint64) []Slot {
	first := int(set%uint64(len(t.slots)/t.ways)) * t.ways
	return t.slots[first : first+t.ways]
}

// Find returns the way of a flow in its set, or −1.
func (t *Table) Find(h Hash) int {
	for way, slot := range t.Set(h.Set) {
		if slot.Tag == h.Tag && slot.Mark == h.Mark {
			return way
		}
	}
	return -1
}

// Insert gives a flow the slot whose flow was seen the longest time ago, to within 8 ns, and
// returns the way and the previous content of the slot. Free slots come first. Among equal
// slots, Insert takes the one nearest to the way of the hash by exclusive or.
func (t *Table) Insert(h Hash, nowNs uint64) (way int, before Slot) {
	set := t.Set(h.Set)
	oldest := ^uint64(0)
	preferred := int(h.Way) % t.ways
	for i, slot := range set {
		if rank := slot.LastNs&^(Ways-1) | uint64(i^preferred); rank < oldest {
			way, oldest = i, rank
		}
	}
	before = set[way]
	set[way] = Slot{Tag: h.Tag, Mark: h.Mark, LastNs: nowNs}
	return way, before
}
