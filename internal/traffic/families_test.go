// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package traffic

import (
	"math"
	"math/rand/v2"
	"testing"
)

// Between two packets there are k ticks with the probability of a Poisson number k − 1.
func TestMissedTicks(t *testing.T) {
	const tick, mean = 4e6, 0.02
	counts := map[float64]int{}
	for _, delta := range take(MissedTicks(tick, mean), "missed ticks") {
		counts[delta/tick]++
	}
	for ticks, want := range map[float64]float64{
		1: math.Exp(-mean), 2: mean * math.Exp(-mean), 3: mean * mean / 2 * math.Exp(-mean),
	} {
		got := float64(counts[ticks]) / packets
		if most := 4 * math.Sqrt(want/packets); math.Abs(got-want) > most {
			t.Errorf("a share of %.5f of %v ticks, want %.5f ± %.5f", got, ticks, want, most)
		}
		delete(counts, ticks)
	}
	for ticks := range counts {
		if ticks != math.Round(ticks) || ticks < 1 || ticks > 6 {
			t.Errorf("a delta of %v ticks", ticks)
		}
	}
}

// Packets wait for the next tick, and follow one another within it. None comes before it
// arrived, before its predecessor, or later than necessary.
func TestPolled(t *testing.T) {
	const tick, distance = 5e4, 100
	var arrived, processed float64
	kind := Exponential(1e4) // five packets a tick
	arrivals := func(r *rand.Rand) Source {
		source := kind(r)
		return func() float64 { delta := source(); arrived += delta; return delta }
	}
	source := Polled(arrivals, tick, distance)(Rand(1, "polled"))
	onTick := 0
	for i := range packets {
		delta := source()
		processed += delta
		isOnTick := processed == math.Round(processed/tick)*tick
		switch {
		case processed < arrived:
			t.Fatalf("packet %d was processed %v ns before it arrived", i, arrived-processed)
		case isOnTick:
			onTick++
		case delta != distance:
			t.Fatalf("packet %d: neither on a tick nor at the distance of the packet before it", i)
		}
		if wait := processed - arrived; wait > 2*tick {
			t.Fatalf("packet %d waited %v ns, more than two ticks", i, wait)
		}
	}
	// A tick has packets unless none arrived: with a probability of e⁻⁵.
	if got, want := float64(onTick)/(processed/tick), 1-math.Exp(-5); math.Abs(got-want) > 0.003 {
		t.Errorf("a share of %.4f of the ticks has packets, want %.4f", got, want)
	}
}

func TestEveryNth(t *testing.T) {
	for i, delta := range take(EveryNth(Constant(1e7, 0), 32, 1e8), "every 32nd") {
		want := 1e7
		if i%32 == 31 {
			want = 1.1e8
		}
		if delta != want {
			t.Fatalf("packet %d: delta %v, want %v", i, delta, want)
		}
	}
}

// Delays rise by the same factor with each packet, and stay at the last length.
func TestRising(t *testing.T) {
	const share, from, to, rise = 0.05, 5e3, 5e8, packets / 2
	late := 0
	for i, delta := range take(Rising(Constant(1e6, 0), share, from, to, rise), "rising") {
		delay := delta - 1e6
		if delay == 0 {
			continue
		}
		late++
		want := to
		if i < rise {
			want = from * math.Pow(10, 5*float64(i)/rise)
		}
		if math.Abs(delay/want-1) > 1e-9 {
			t.Fatalf("packet %d is late by %v, want %v", i, delay, want)
		}
	}
	if got := float64(late) / packets; math.Abs(got-share) > 0.002 {
		t.Errorf("a share of %.4f of the packets is late, want %v", got, share)
	}
}

// The deltas of each kind come in their share, and in no order.
func TestMixture(t *testing.T) {
	const share = 0.25
	deltas := take(Mixture(share, Constant(1e6, 0), Constant(3e6, 0)), "mixture")
	first, pairs := 0.0, 0.0
	for i, delta := range deltas {
		if delta != 1e6 && delta != 3e6 {
			t.Fatalf("packet %d: delta %v is of neither kind", i, delta)
		}
		if delta == 1e6 {
			first++
			if i > 0 && deltas[i-1] == 1e6 {
				pairs++
			}
		}
	}
	if math.Abs(first/packets-share) > 0.005 || math.Abs(pairs/packets-share*share) > 0.005 {
		t.Errorf("shares of %.4f and, in pairs, %.4f, want %v and %v", first/packets, pairs/packets, share, share*share)
	}
}
