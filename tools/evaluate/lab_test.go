// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"io"
	"math"
	"os"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

// newTestLab skips the test without permission to load programs. REQUIRE_BPF=1 turns the skip
// into a failure.
func newTestLab(t *testing.T) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_BPF") == "1" {
			t.Fatal("REQUIRE_BPF=1, but the tests do not run as root")
		}
		t.Skip("loading BPF programs and making network namespaces takes root")
	}
	l, err := newLab()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// A small run of all experiments with other random numbers agrees with the documents: shares
// differ by chance only, and all other figures meet their bounds.
func TestSmallRunAgreesWithTheDocuments(t *testing.T) {
	const part, seed = 0.05, 4
	l := newTestLab(t)
	got, err := l.runAll(io.Discard, seed, part, func(question) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	documents := committed(t)
	for i, e := range experiments() {
		small := got[i]
		want := documents.find(e.table, e.row, e.column)
		if want == nil {
			t.Errorf("%v: missing from the documents", e.question())
			continue
		}
		if difference := small.differsFrom(want.figure); difference != "" {
			t.Errorf("%v: got %v, the documents say %v: %s", e.question(), small.figure, want.figure, difference)
		}
		if small.Share == nil && !small.IsMet {
			t.Errorf("%v: got %v, want %s", e.question(), small.figure, small.Bound)
		}
	}
}

// differsFrom explains why a figure of a small run contradicts that of the full run; empty if
// it does not.
func (f figure) differsFrom(full figure) string {
	const chance = 1e-6 // upper bound of the probability that equal shares seem to differ
	switch {
	case (f.Share == nil) != (full.Share == nil) || f.Unit != full.Unit:
		return "it is another kind of figure"
	case f.Share != nil:
		// A small run has too few hits to show clusters.
		small := *f.Share
		small.Clustering = max(small.Clustering, full.Share.Clustering)
		low, high := small.interval(1 - chance)
		from, to := full.Share.interval(confidence)
		if high < from || low > to {
			return "the intervals are apart"
		}
	case f.Unit == "":
		const most = 0.1 // counts after a shift vary by a few percent
		if math.Abs(f.Value/full.Value-1) > most {
			return "the counts are apart"
		}
	}
	return ""
}

func TestFiguresThatDiffer(t *testing.T) {
	full := shareFigure(share{252, 4_000_000, 1})
	for _, test := range []struct {
		name        string
		small, full figure
		want        string
	}{
		{"the same share", shareFigure(share{13, 200_000, 1}), full, ""},
		{"three times the share", shareFigure(share{39, 200_000, 1}), full, "the intervals are apart"},
		{"three times the share, where hits come in clusters", shareFigure(share{39, 200_000, 10}), full, ""},
		{"three times the share, where hits of the full run come in clusters", shareFigure(share{39, 200_000, 1}),
			shareFigure(share{252, 4_000_000, 10}), ""},
		{"nothing of what is always found", shareFigure(share{0, 500, 1}), shareFigure(share{10_000, 10_000, 1}), "the intervals are apart"},
		{"a count that is a little higher", figure{Value: 5500}, figure{Value: 5400}, ""},
		{"a count that is twice as high", figure{Value: 10_800}, figure{Value: 5400}, "the counts are apart"},
		{"a share and a count", figure{Value: 5400}, full, "it is another kind of figure"},
	} {
		if got := test.small.differsFrom(test.full); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

// Every packet reaches the program with its own delta: the recorded states and the decisions
// equal those of the model. Batches, pauses and packets at the same time make no difference.
func TestReplayedPacketsAreAudited(t *testing.T) {
	const packets = batchPackets + 10_000
	l := newTestLab(t)
	for _, config := range []bpf.Config{bpf.DefaultConfig(), log2Config()} {
		t.Run(string(config.Domain), func(t *testing.T) {
			a, err := l.audit(config)
			if err != nil {
				t.Fatal(err)
			}
			params := a.params()
			r := traffic.Rand(1, "replay")
			i := -1
			next := func() (float64, bool) {
				switch i++; {
				case i%1000 == 999:
					return 0, true
				case i%5000 == 4998:
					return 2e9, false
				}
				return 1e6 * math.Exp(0.1*r.NormFloat64()), false
			}
			var state timing.State
			number := 0
			err = a.flow(packets, next, func(p *packet) {
				number++
				if p.number != number || p.isPlanted != (number%1000 == 0) || (p.deltaNs == 0) != p.isPlanted {
					t.Fatalf("packet %d: got %+v", number, *p)
				}
				if p.before != state {
					t.Fatalf("packet %d: got %+v, want %+v", number, p.before, state)
				}
				decision := timing.TooFewSamples
				if p.deltaNs <= uint64(config.IdleTimeout) {
					decision = params.Observe(&state, p.deltaNs)
				}
				if p.isJudged != (decision != timing.TooFewSamples) || p.isFlagged != (decision == timing.Early || decision == timing.Late) {
					t.Fatalf("packet %d: got %+v, want the decision %d", number, *p, decision)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if number != packets {
				t.Errorf("%d packets were observed, want %d", number, packets)
			}
			if last := a.replayer.last(0); last != state {
				t.Errorf("baseline at the end: got %+v, want %+v", last, state)
			}
		})
	}
}

// Packets of flows that are sent together arrive in the order of their times, and each is judged
// against the baseline of its own flow.
func TestFlowsTogether(t *testing.T) {
	const packets = batchPackets // of the first flow: the others need a second batch
	l := newTestLab(t)
	config := bpf.DefaultConfig()
	a, err := l.audit(config)
	if err != nil {
		t.Fatal(err)
	}
	params := a.params()
	var next []traffic.Planted
	for i, kind := range []traffic.Kind{traffic.Constant(1e6, 2e4), traffic.MissedTicks(4e6, 0.02), traffic.Pareto(1e7, 1.1)} {
		next = append(next, traffic.Delay{Share: 0.01, Ns: 1e6 * float64(i)}.Plant(kind, traffic.Rand(1, "together")))
	}
	states, numbers, times := make([]timing.State, len(next)), make([]int, len(next)), make([]uint64, len(next))
	lastNs, flagged, fates := uint64(0), 0, map[bpf.Fate]int{}
	err = a.flows(packets, next, func(p *packet) {
		numbers[p.flow]++
		times[p.flow] += p.deltaNs
		// The first packet of flow i is at i ns.
		if p.number != numbers[p.flow] || p.atNs < lastNs || p.atNs != times[p.flow]+uint64(p.flow) {
			t.Fatalf("packet %d of flow %d: got %+v after %d ns", numbers[p.flow], p.flow, *p, lastNs)
		}
		lastNs = p.atNs
		state := &states[p.flow]
		if p.before != *state {
			t.Fatalf("packet %d of flow %d: got %+v, want %+v", p.number, p.flow, p.before, *state)
		}
		decision := timing.TooFewSamples
		if p.deltaNs <= uint64(config.IdleTimeout) {
			decision = params.Observe(state, p.deltaNs)
		}
		isFlagged := decision == timing.Early || decision == timing.Late
		if p.isJudged != (decision != timing.TooFewSamples) || p.isFlagged != isFlagged {
			t.Fatalf("packet %d of flow %d: got %+v, want the decision %d", p.number, p.flow, *p, decision)
		}
		if isFlagged {
			flagged++
			fates[p.fate]++
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, state := range states {
		if last := a.replayer.last(i); last != state {
			t.Errorf("baseline of flow %d at the end: got %+v, want %+v", i, last, state)
		}
	}
	if numbers[0] != packets || numbers[1] < packets/5 || numbers[2] < packets/200 {
		t.Errorf("the flows have %d packets, want %d of the first and many of the others", numbers, packets)
	}
	if sum := fates[bpf.FateSuppressed] + fates[bpf.FateSent] + fates[bpf.FateRingFull]; sum != flagged || fates[bpf.FateSuppressed] == 0 || fates[bpf.FateSent] == 0 {
		t.Errorf("fates of %d flagged packets: %v", flagged, fates)
	}
}

// A packet that is not of the flow, or that is counted other than it was recorded, is an error,
// and so is a flagged packet without a fate.
func TestPacketsTooManyOrTooFew(t *testing.T) {
	a := &audited{}
	recorded := tally{bpf.OutcomeNewFlow: 1, bpf.OutcomeJudged: 10, bpf.OutcomeFlaggedLate: 3}
	counted := func(outcomes tally, fates ...uint64) *bpf.Counters {
		var c bpf.Counters
		copy(c.Packets[bpf.FamilyIPv4][bpf.ProtocolUDP][:], outcomes[:])
		copy(c.Fates[:], fates)
		return &c
	}
	before := counted(tally{bpf.OutcomeJudged: 5}, 1, 1)
	right := tally{bpf.OutcomeNewFlow: 1, bpf.OutcomeJudged: 15, bpf.OutcomeFlaggedLate: 2, bpf.OutcomeFlaggedEarly: 1}
	if err := a.checkTally(&recorded, before, counted(right, 2, 3)); err != nil {
		t.Errorf("the same packets: %v", err)
	}
	for _, fates := range [][]uint64{{1, 3}, {2, 4}} {
		if err := a.checkTally(&recorded, before, counted(right, fates...)); err == nil {
			t.Errorf("fates %v: no error", fates)
		}
	}
	for o := range bpf.NumOutcomes {
		right[o]++
		if err := a.checkTally(&recorded, before, counted(right, 2, 3)); err == nil {
			t.Errorf("one more with the outcome %v: no error", o)
		}
		right[o]--
	}
}

// Decisions of the audit are compared with the exact scores.
func TestDecisionsThatAreNotThoseOfTheScores(t *testing.T) {
	for _, test := range []struct {
		t       float64
		flagged bool
		isRight bool
	}{
		{3.9, false, true}, {3.9, true, false}, {-4.1, true, true}, {-4.1, false, false}, {4, true, true}, {4 - 1e-9, true, true},
		{4 + 1e-9, false, true}, {4 + 1e-7, false, false},
	} {
		s := scores{threshold: 4}
		s.add(&packet{isFlagged: test.flagged}, test.t)
		if err := s.check(); (err == nil) != test.isRight {
			t.Errorf("t = %v, flagged %t: got %v", test.t, test.flagged, err)
		}
	}
}

func TestFlagsOf(t *testing.T) {
	config := log2Config()
	config.Threshold = 5
	if got, want := flagsOf(config), "--audit.threshold=5 --audit.domain=log2"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := flagsOf(bpf.DefaultConfig()); got != "" {
		t.Errorf("defaults: got %q, want nothing", got)
	}
	config = bpf.DefaultConfig()
	config.MinSamples, config.IdleTimeout, config.Watches = 10, 2*time.Second, 5
	if got, want := flagsOf(config), "--audit.min-samples=10 --audit.idle-timeout=2s --collector.covert --collector.covert.flows=5"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
