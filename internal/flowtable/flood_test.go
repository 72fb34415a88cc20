// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package flowtable

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"
)

// flood is a set of flows chosen by an attacker who knows the hash function but not its keys.
// word sets the words of flow i.
type flood struct {
	name string
	word func(i uint32, words []uint32)
}

// tcp443 is the flow that the floods vary: ports, protocol, source, destination, and the rest
// of the addresses for IPv6.
func tcp443(words int) []uint32 {
	flow := make([]uint32, words)
	copy(flow, []uint32{443<<16 | 5000, 0x20006, 0x0a000001, 0x0a000002})
	return flow
}

var floods = []flood{
	{"source ports and destination ports in turn", func(i uint32, w []uint32) { w[0] = i }},
	{"source ports, then source addresses", func(i uint32, w []uint32) { w[0] += i << 16; w[2] += i >> 16 }},
	// In network order the last bytes of an address are the highest of its word.
	{"sources of a /16", func(i uint32, w []uint32) { w[2] += i << 16 }},
	{"destinations in steps of 2¹⁷", func(i uint32, w []uint32) { w[3] += i << 17 }},
	{"sources with the bits reversed", func(i uint32, w []uint32) { w[2] = bits.Reverse32(i) }},
	{"sources and destinations that rise together", func(i uint32, w []uint32) { w[2] += i; w[3] += i }},
	{"sources that rise as destinations fall", func(i uint32, w []uint32) { w[2] += i; w[3] -= i }},
	{"a square of sources and destinations", func(i uint32, w []uint32) { w[2] += i & 0xff; w[3] += i >> 8 }},
	{"a square of the highest bytes", func(i uint32, w []uint32) { w[2] += i << 24; w[3] += i >> 8 << 24 }},
	{"ports and sources that exclude each other", func(i uint32, w []uint32) { w[0] ^= i; w[2] ^= i }},
	{"a bit of each of ports, source and destination", func(i uint32, w []uint32) {
		w[0] ^= 1 << (i % 32)
		w[2] ^= 1 << (i / 32 % 32)
		w[3] ^= 1 << (i / 1024 % 32)
	}},
	{"multiples of the constants of the permutation", func(i uint32, w []uint32) { w[2], w[3] = i*0x7f4a7c15, i*0x9e3779b9 }},
	{"VLANs and protocols", func(i uint32, w []uint32) { w[1] = i&0xfff<<16 | 2<<8 | i>>12&0xff; w[2] += i >> 20 }},
}

var floods6 = []flood{
	{"the last words of IPv6 sources", func(i uint32, w []uint32) { w[8] = i }},
	{"the last bytes of IPv6 addresses", func(i uint32, w []uint32) { w[8] = i << 24; w[9] = i >> 8 << 24 }},
	{"words of IPv6 addresses that trade places", func(i uint32, w []uint32) { w[2], w[4], w[6], w[8] = i, ^i, i>>8, ^(i >> 8) }},
}

// whole returns everything that a flow is recognised by.
func (h Hash) whole(sets uint64) [3]uint64 {
	return [3]uint64{h.Set % sets, uint64(h.Mark), uint64(h.Tag)}
}

// An attacker without the keys cannot overfill a set more than random flows do, and cannot find
// two flows that share a slot.
func TestChosenFlowsSpreadLikeRandomOnes(t *testing.T) {
	const sets, flows, tables = 8192, 32_768, 20
	want := fewerThan(Ways, float64(flows)/sets)
	r := rand.New(rand.NewPCG(4, 4))
	fullest := 0
	for range 10 * tables { // as many tables as all floods fill
		var count [sets]int
		for range flows {
			count[r.Uint64N(sets)]++
		}
		for _, n := range count {
			fullest = max(fullest, n)
		}
	}
	check := func(f flood, words int) {
		t.Run(f.name, func(t *testing.T) {
			fit, most := 0, 0
			for range tables {
				keys := randomKeys(r)
				var count [sets]int
				seen := make(map[[3]uint64]bool, flows)
				for i := range uint32(flows) {
					flow := tcp443(words)
					f.word(i, flow)
					h := HashWords(flow, keys)
					if seen[h.whole(sets)] {
						t.Fatalf("flow %d, %x, shares the slot of another under %x", i, flow, *keys)
					}
					seen[h.whole(sets)] = true
					count[h.Set%sets]++
				}
				for _, n := range count {
					if n <= Ways {
						fit += n
					}
					most = max(most, n)
				}
			}
			got := float64(fit) / (flows * tables)
			t.Logf("%.4f are in sets that hold them; the fullest set has %d", got, most)
			if math.Abs(got-want) > 0.005 {
				t.Errorf("%.4f of the flows are in sets that hold them, want %.4f", got, want)
			}
			if most > fullest+2 {
				t.Errorf("a set has %d flows, the fullest of random ones %d", most, fullest)
			}
		})
	}
	for _, f := range floods {
		check(f, 4)
	}
	for _, f := range floods6 {
		check(f, Words)
	}
}
