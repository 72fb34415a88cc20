// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"math"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

// The worst block may begin at any packet. A bucket allows 8 events in it, and 8 an hour.
func TestWorstBlock(t *testing.T) {
	at := func(hour float64) uint64 { return uint64(hour * float64(time.Hour)) }
	for _, test := range []struct {
		name   string
		events []packet
		want   float64
	}{
		{"no events", nil, 0},
		{"as many as the bucket has", repeated(8, 1, 0), 0},
		{"two more", repeated(10, 1, 0), 2},
		{"in two blocks", append(repeated(9, 1, 0), repeated(9, 1+blockLength, 0)...), 1},
		{"in one block, at any place", append(repeated(9, 1000, 0), repeated(9, 999+blockLength, 0)...), 10},
		{"in one block of half an hour", append(repeated(9, 1, 0), repeated(9, 2, at(0.5))...), 6},
	} {
		var b eventBlocks
		for i := range test.events {
			b.add(&test.events[i])
			b.add(&packet{number: test.events[i].number})
		}
		if b.worst != test.want {
			t.Errorf("%s: got %v, want %v", test.name, b.worst, test.want)
		}
	}
}

// repeated returns that many events with the same number and time.
func repeated(n, number int, atNs uint64) (events []packet) {
	for range n {
		events = append(events, packet{number: number, atNs: atNs, isEvent: true})
	}
	return events
}

// The attacker has its share of the packets of a device with one victim. After it has taught its
// baseline, every 32nd packet is late.
func TestTrainer(t *testing.T) {
	const packets, share = 100_000, 2e-3
	source := trainer(share)(traffic.Rand(1, "trainer"))
	late, sumNs := 0, 0.0
	for i := range packets {
		delta := source()
		sumNs += delta
		if delta > 5e7 && delta < 5e8 {
			if late++; i < 200 {
				t.Fatalf("packet %d is late", i)
			}
		}
	}
	if got := packets / (packets + sumNs/victimNs); math.Abs(got/share-1) > 0.01 {
		t.Errorf("a share of %.5f of the packets, want %v", got, share)
	}
	// One late packet in 33 comes after a pause, and is not late.
	if want := float64(packets) / 33; math.Abs(float64(late)/want-1) > 0.01 {
		t.Errorf("%d of %d packets are late, want %.0f", late, packets, want)
	}
}

func TestSpoiler(t *testing.T) {
	source := spoiler(178)(traffic.Rand(1, "spoiler"))
	for i := range 178 {
		want := 1e7
		switch {
		case i == 177:
			want = never
		case i >= 100:
			want = 1.1e8
		}
		if delta := source(); math.Abs(delta/want-1) > 0.01 {
			t.Fatalf("packet %d: delta %v, want about %v", i+1, delta, want)
		}
	}
}

// The leaks come in their share, and the sizes equally often.
func TestLeaking(t *testing.T) {
	const packets = 8_000_000
	var v leaking
	next := v.plant(traffic.Constant(victimNs, 0), traffic.Rand(1, "leaks"))
	counts := make([]int, len(leakSizes))
	leaks := 0
	for i := range packets {
		delta, isLeak := next()
		if !isLeak {
			continue
		}
		size := v.sizes[leaks]
		leaks++
		counts[size]++
		if want := victimNs + leakSizes[size]*victimSigmaNs; delta != want {
			t.Fatalf("packet %d: a leak of %vσ has the delta %v, want %v", i, leakSizes[size], delta, want)
		}
	}
	if got := float64(leaks) / packets; math.Abs(got/leakShare-1) > 0.2 || len(v.sizes) != leaks {
		t.Errorf("a share of %v leaks, want %v", got, leakShare)
	}
	for i, n := range counts {
		if math.Abs(float64(n*len(counts))/float64(leaks)-1) > 0.7 {
			t.Errorf("%d of %d leaks are of %vσ", n, leaks, leakSizes[i])
		}
	}
}
