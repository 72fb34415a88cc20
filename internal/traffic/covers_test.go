// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package traffic

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// Packets of speech have the period of the codec. The other deltas are silences, without packets
// or with comfort noise, and both kinds of times have the mean that was asked for.
func TestVoIP(t *testing.T) {
	const period, talk, silence, noise = 20e6, 1e9, 5e8, 160e6
	for _, noisePeriod := range []float64{0, noise} {
		talking, silent, spurts, noises := 0.0, 0.0, 0.0, 0.0
		isTalking := false
		for _, delta := range take(VoIP(period, talk, silence, noisePeriod), "speech") {
			switch delta {
			case period:
				if !isTalking {
					spurts++
				}
				talking, isTalking = talking+delta, true
			case noisePeriod:
				silent, isTalking = silent+delta, false
				noises++
			default:
				silent, isTalking = silent+delta-period, false
			}
		}
		if noises > 0 != (noisePeriod > 0) {
			t.Errorf("noise each %v ns: %v packets of noise", noisePeriod, noises)
		}
		// A silence of any length ends one spurt of talk; spurts shorter than a period have no
		// delta of their own.
		if share := talking / (talking + silent); math.Abs(share-talk/(talk+silence)) > 0.02 {
			t.Errorf("noise each %v ns: a share of %.3f of the time is talk, want %.3f", noisePeriod, share, talk/(talk+silence))
		}
		if mean := talking / spurts; math.Abs(mean/talk-1) > 0.05 {
			t.Errorf("noise each %v ns: talk of %.0f ns on average, want %.0f", noisePeriod, mean, talk)
		}
	}
}

// Between two keys there is an acknowledgement, one round trip after the first of them, unless
// the second comes earlier.
func TestSSHKeys(t *testing.T) {
	const median, sigma, roundTrip = 150e6, 0.6, 100e6
	acknowledgements, unacknowledged, between := 0, 0, 0.0
	var keys []float64
	for i, delta := range take(SSHKeys(median, sigma, roundTrip, 0), "keys") {
		switch between += delta; {
		case i == 0: // the first key
			between = 0
		case delta == roundTrip:
			acknowledgements++
		default:
			if between < roundTrip {
				unacknowledged++
			}
			keys = append(keys, between)
			between = 0
		}
	}
	// The last packet may be an acknowledgement.
	if more := acknowledgements + unacknowledged - len(keys); more < 0 || more > 1 {
		t.Errorf("%d acknowledgements and %d keys before the echo, but %d keys", acknowledgements, unacknowledged, len(keys))
	}
	slices.Sort(keys)
	if got := keys[len(keys)/2]; math.Abs(got/median-1) > 0.03 {
		t.Errorf("the median between keys is %.0f, want %.0f", got, median)
	}
	// Of a lognormal distribution.
	want := 0.5 * math.Erfc(math.Log(median/roundTrip)/sigma/math.Sqrt2)
	if got := float64(unacknowledged) / float64(len(keys)); math.Abs(got-want) > 0.01 {
		t.Errorf("a share of %.3f of the keys comes before the echo, want %.3f", got, want)
	}
}

// Messages begin each interval, whatever the number of their packets is, and all numbers are as
// frequent.
func TestFrames(t *testing.T) {
	const interval, spacing = 2e7, 1e4
	now, in, messages := 0.0, 0, 0
	counts := map[int]float64{}
	for i, delta := range take(Frames(interval, 1, 3, spacing), "frames") {
		now += delta
		switch {
		case delta == spacing:
			in++
			continue
		case now != math.Round(now/interval)*interval:
			t.Fatalf("packet %d begins a message at %v", i, now)
		case i > 0:
			counts[in]++
			messages++
		}
		in = 1
	}
	for n, count := range counts {
		if n < 1 || n > 3 || math.Abs(count/float64(messages)-1./3) > 0.02 {
			t.Errorf("a share of %.3f of the messages has %d packets, want a third", count/float64(messages), n)
		}
	}
}

// Timers of 10 ms and 25 ms send seven packets in each 50 ms: five of one and two of the other.
func TestTimers(t *testing.T) {
	deltas := take(Timers(1e7, 2.5e7), "timers")
	for i := range len(deltas) - 7 {
		sum := 0.0
		for _, delta := range deltas[i+1 : i+8] {
			if delta < 0 || delta > 1e7+1 {
				t.Fatalf("packet %d: a delta of %v", i, delta)
			}
			sum += delta
		}
		if math.Abs(sum-5e7) > 10 {
			t.Fatalf("seven packets from %d on take %v ns, want 5e7", i, sum)
		}
	}
}

// sent returns a kind that records when its packets are sent.
func sent(kind Kind, times *[]float64) Kind {
	return func(r *rand.Rand) Source {
		source, now := kind(r), 0.0
		return func() float64 {
			delta := source()
			now += delta
			*times = append(*times, now)
			return delta
		}
	}
}

// Packets arrive in order, after they are sent, and late by the mean if they do not wait for
// each other.
func TestLate(t *testing.T) {
	var times []float64
	now, late := 0.0, 0.0
	for i, delta := range take(Late(sent(Constant(1e8, 0), &times), 1e6), "late") {
		now += delta
		if delta < 0 || now < times[i] {
			t.Fatalf("packet %d arrives at %v, is sent at %v, %v after the packet before it", i, now, times[i], delta)
		}
		late += now - times[i]
	}
	if got := late / packets; math.Abs(got/1e6-1) > 0.02 {
		t.Errorf("late by %.0f on average, want 1e6", got)
	}
}

// A packet that arrives while the host is free is not late. The share of the packets that wait
// is the share of the busy time, and packets that wait together follow each other closely.
func TestBusyHost(t *testing.T) {
	const free, busy, distance = 6e6, 2e6, 3e3
	var times []float64
	now, waiting, following := 0.0, 0.0, 0.0
	for i, delta := range take(BusyHost(sent(Exponential(1e6), &times), free, busy, distance), "busy") {
		now += delta
		switch {
		case now < times[i]-1 || delta < distance-1 && now > times[i]+1:
			t.Fatalf("packet %d of %v is processed at %v, %v after the packet before it", i, times[i], now, delta)
		case now > times[i]+1:
			waiting++
		}
		if math.Abs(delta-distance) < 1 {
			following++
		}
	}
	if got := waiting / packets; math.Abs(got-busy/(free+busy)) > 0.02 {
		t.Errorf("a share of %.3f waits, want %.3f", got, busy/(free+busy))
	}
	if following < packets/20 {
		t.Errorf("only %v packets follow the one before closely", following)
	}
}
