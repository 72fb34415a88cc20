// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"math"
	"math/rand/v2"
	"testing"
)

// cuts are the cuts of a flow.
type cuts struct{ early, late float64 }

func (p *probe) cutsOf(t *testing.T, device string) (all []cuts) {
	t.Helper()
	if err := p.VisitCuts(device, func(early, late float64) { all = append(all, cuts{early, late}) }); err != nil {
		t.Fatal(err)
	}
	return all
}

// The late cut of exponential traffic follows its scores, and no packet of it is early. Flags above
// the cut are rare for the flow, and those below are not.
func TestCutsAreThoseOfTheFlows(t *testing.T) {
	const packets = 500_000
	for _, scope := range []Scope{BaselineFlow, BaselineDevice} {
		t.Run(string(scope), func(t *testing.T) {
			config := testConfig()
			config.EventRate, config.Baseline = MaxEventRate, scope
			p := newProbe(t, config)
			if all := p.cutsOf(t, "test0"); len(all) != 0 {
				t.Errorf("without packets the cuts are %v", all)
			}
			random := rand.New(rand.NewPCG(1, 2))
			in := newInjector(t, p, packets)
			in.send(t, rounded(packets, func() float64 { return 1e5 * random.ExpFloat64() }))
			all := p.cutsOf(t, "test0")
			// |t| is x - 1 at x means: 5e-5 of the packets are at 8.9 or more.
			if len(all) != 1 || all[0].early != 4 || all[0].late < 6.5 || all[0].late > 13 {
				t.Fatalf("the cuts are %v, want one of 4 and about 8.9", all)
			}
			var are [2]int // common, rare
			flag := p.Counters()[0].LastFlag
			for i := range 200 {
				// The first flags use up the tokens for any flag.
				factor := 0.9
				if i >= 100 && i%2 == 0 {
					factor = 1.1
				}
				in.send(t, rounded(20, func() float64 { return 1e5 * random.Float64() }))
				cut, before := p.cutsOf(t, "test0")[0].late, p.Counters()[0].Decisions[DecisionCommon]
				in.send(t, []uint64{uint64(flag.MeanNs() + factor*cut*flag.StandardDeviation())})
				c := p.Counters()[0]
				flag = c.LastFlag
				score, isRare := flag.Score(), c.Decisions[DecisionCommon] == before
				if i >= 100 && math.Abs(score-cut) > 1e-3*cut {
					if isRare != (score > cut) {
						t.Errorf("a flag with the score %v is rare: %t, with the cut at %v", score, isRare, cut)
					}
					are[b2i(isRare)]++
				}
			}
			if are[0] < 20 || are[1] < 20 {
				t.Errorf("%d flags are common, and %d rare", are[0], are[1])
			}
			if none := p.cutsOf(t, "test1"); len(none) != 0 {
				t.Errorf("another device has the cuts %v", none)
			}
		})
	}
}

// Flows of another device, and those without a flag, have no cuts. After Close nobody has.
func TestCutsAreThoseOfFlaggedFlowsOfADevice(t *testing.T) {
	config := testConfig()
	config.Devices = []string{"test0", "test1"}
	p := newProbe(t, config)
	now := uint64(1e12)
	for flow := range 3 {
		frame := newTestFlow(flow).frame
		for i := range 300 {
			now += 1_000_000 + uint64(i%7)*1000
			run(t, p.program(flow%2), frame, now, 1)
		}
		if flow < 2 {
			now += 50_000_000
			run(t, p.program(flow%2), frame, now, 1)
		}
	}
	for device, want := range map[string]int{"test0": 1, "test1": 1, "test2": 0} {
		if got := len(p.cutsOf(t, device)); got != want {
			t.Errorf("%d flows of %s have cuts, want %d", got, device, want)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if all := p.cutsOf(t, "test0"); len(all) != 0 {
		t.Errorf("after Close the cuts are %v", all)
	}
}
