// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"math"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"testing"
)

// The exporter runs on a device in native mode, and every frame carries its time, so that the
// network and the scheduler cannot disturb the figures. On steady traffic, delays of eight
// standard deviations are found, and hardly anything else.
func TestPlantedDelaysAreFlaggedOnInjectedTime(t *testing.T) {
	const (
		packets   = 200_000
		deviation = 20e3 // ns
		delay     = 8 * deviation
	)
	isPlanted := func(i int) bool { return i > 1000 && i%100 == 0 }
	random := rand.New(rand.NewPCG(1, 2))
	times, deltas := make([]uint64, packets), make([]uint64, packets)
	for i := range times {
		delta := 1e6 + deviation*random.NormFloat64()
		if isPlanted(i) {
			delta += delay // of all packets that follow, too
		}
		deltas[i] = uint64(math.Round(delta))
		times[i] = 1e12
		if i > 0 {
			times[i] = times[i-1] + deltas[i]
		}
	}

	l := newLab(t)
	path := filepath.Join(t.TempDir(), "trail")
	e := l.startExporter("--audit.device="+device, "--audit.clock=metadata", "--audit.event-rate=1000000", "--audit.calibrate=0", "--trail.file="+path)
	if err := newGenerator(t, l.sender, generatorOptions{times: times}).send(generatedFrame(), packets); err != nil {
		t.Fatal(err)
	}

	s := e.atRest()
	if got := s.sum("packets_total", "family=ipv4", "protocol=udp"); got != packets {
		t.Fatalf("%v packets were counted, want %d", got, packets)
	}
	if got := s.sum("outcomes_total", "outcome=new_flow"); got != 1 {
		t.Fatalf("%v flows, want 1: frames lost or mixed up", got)
	}
	if flags, events := s.sum("leak_flags_total"), s.sum("events_total"); flags != events {
		t.Fatalf("%v packets flagged, but %v events", flags, events)
	}
	planted, found, others := 0, 0, 0
	for i := range packets {
		if isPlanted(i) {
			planted++
		}
	}
	// A record has the delta of its packet, and records are in the order of the packets.
	next := 1
	for _, r := range readTrail(t, path) {
		for next < packets && strconv.FormatUint(deltas[next], 10) != r["delta_ns"] {
			next++
		}
		if next == packets {
			t.Fatalf("no packet has the delta of the record %v", r)
		}
		if isPlanted(next) {
			found++
		} else {
			others++
		}
		next++
	}
	detected, falseRate := float64(found)/float64(planted), float64(others)/float64(packets-planted)
	t.Logf("%d of %d planted delays flagged (%.4f), %d false flags (%.2g of the rest)", found, planted, detected, others, falseRate)
	if detected < 0.99 {
		t.Errorf("%.4f of the planted delays were flagged, want at least 0.99", detected)
	}
	if falseRate > 2e-4 {
		t.Errorf("%.2g of the other packets were flagged, want at most 2e-4", falseRate)
	}
	e.expectStopped()
}
