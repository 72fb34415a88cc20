// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package covert

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func newFlow(device string, port int) bpf.Flow {
	return bpf.Flow{
		Device: device, Source: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(port)),
		Destination: netip.MustParseAddrPort("198.51.100.7:443"), Protocol: bpf.ProtocolUDP,
	}
}

// newWindow returns a window of a flow at a time after noon.
func newWindow(flow bpf.Flow, after time.Duration, delta func(i int) uint32) *bpf.Window {
	window := &bpf.Window{Flow: flow, Time: noon.Add(after)}
	for i := range WindowLength {
		window.DeltasNs = append(window.DeltasNs, delta(i))
	}
	return window
}

// twoSymbols returns two deltas in an order that looks random.
func twoSymbols(i int) uint32 { return 1_000_000 + 1_000_000*(scramble(uint32(i))&1) }

// manyTicks returns multiples of 10 ms in an order that looks random, too many for symbols.
func manyTicks(i int) uint32 { return 10_000_000 * (10 + scramble(uint32(i))%80) }

func steady(int) uint32 { return 1_000_000 }

// Of thousands of devices, those with the oldest last window are dropped. An audited device
// stays.
func TestDevicesAreForgotten(t *testing.T) {
	j := NewJudge()
	j.devices["eth0"] = &deviceCounts{windows: 3, lastWindow: noon}
	for i := range 2 * maxDevices {
		j.devices[fmt.Sprintf("veth%d", i)] = &deviceCounts{windows: 1, lastWindow: noon.Add(time.Duration(i+1) * time.Second)}
	}
	reports := j.Report(noon, []string{"eth0", "eth1"})
	if reports[0].Windows != 3 || reports[1].Windows != 0 {
		t.Errorf("%d and %d windows of the audited devices, want 3 and 0", reports[0].Windows, reports[1].Windows)
	}
	if len(j.devices) != maxDevices {
		t.Errorf("%d devices are kept, want %d", len(j.devices), maxDevices)
	}
	for _, name := range []string{"eth0", fmt.Sprintf("veth%d", maxDevices+1), fmt.Sprintf("veth%d", 2*maxDevices-1)} {
		if j.devices[name] == nil {
			t.Errorf("%s is forgotten", name)
		}
	}
	if j.devices[fmt.Sprintf("veth%d", maxDevices)] != nil {
		t.Error("a device is kept that went before others which are not")
	}
}

// The first of consecutive alarms has a verdict, then one a minute. A verdict has the number of
// alarms since the last one.
func TestVerdictsAreRare(t *testing.T) {
	j := NewJudge()
	var got []string
	for second := 0; second < 150; second += 10 {
		delta := twoSymbols
		if second == 30 {
			delta = steady
		}
		if verdict := j.Judge(newWindow(newFlow("eth0", 1), time.Duration(second)*time.Second, delta)); verdict != nil {
			got = append(got, fmt.Sprint(second, verdict.Tests[0], verdict.Earlier, verdict.Alarms))
		}
	}
	if want := []string{"0 symbols 0 1", "60 symbols 6 5", "120 symbols 12 6"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if j.Judge(newWindow(newFlow("eth0", 2), time.Second, twoSymbols)) == nil {
		t.Error("another flow has no verdict of its own")
	}
}

// A flow is judged by its own past only.
func TestPastsOfFlows(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func(int) uint32 { return uint32(1e6 * r.ExpFloat64()) }
	correlated := func() func(int) uint32 {
		level := 0.
		return func(int) uint32 {
			level = 0.95*level + 0.05*r.Float64()
			return uint32(1e6 * level)
		}
	}()
	j := NewJudge()
	for range PastLength {
		j.Judge(newWindow(newFlow("eth0", 1), 0, random))
		j.Judge(newWindow(newFlow("eth0", 2), 0, correlated))
	}
	for port, delta := range map[int]func(int) uint32{1: random, 2: correlated} {
		if verdict := j.Judge(newWindow(newFlow("eth0", port), 0, delta)); verdict != nil {
			t.Errorf("flow %d goes on as before, and alarms: %+v", port, verdict)
		}
	}
	for port, delta := range map[int]func(int) uint32{1: correlated, 2: random} {
		verdict := j.Judge(newWindow(newFlow("eth0", port), 0, delta))
		if verdict == nil || !slices.Contains(verdict.Tests, Autocorrelation) {
			t.Errorf("flow %d becomes another, and the verdict is %+v", port, verdict)
		}
	}
}

// The number of flows with a history is bounded. The flow with the oldest last window is
// dropped.
func TestPastsAreBounded(t *testing.T) {
	j := NewJudge()
	window := newWindow(newFlow("eth0", 0), 0, steady)
	for port := range maxFlows + 10 {
		window.Flow = newFlow("eth0", port)
		window.Time = noon.Add(time.Duration(port) * time.Second)
		if port == maxFlows {
			first := *window
			first.Flow = newFlow("eth0", 0)
			j.Judge(&first)
		}
		j.Judge(window)
	}
	if len(j.flows) != maxFlows {
		t.Errorf("%d pasts are kept, want %d", len(j.flows), maxFlows)
	}
	if j.flows[newFlow("eth0", 0)] == nil || j.flows[newFlow("eth0", 1)] != nil {
		t.Error("another flow than the one with the oldest last window is dropped")
	}
}

// BenchmarkJudgeRound judges a window of each of 64 flows.
func BenchmarkJudgeRound(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	j := NewJudge()
	window := newWindow(newFlow("eth0", 0), 0, func(int) uint32 { return uint32(1e6 * r.ExpFloat64()) })
	for b.Loop() {
		for port := range 64 {
			window.Flow = newFlow("eth0", port)
			j.Judge(window)
		}
	}
}

func TestScoresAreNotMixedUp(t *testing.T) {
	j := NewJudge()
	j.Judge(newWindow(newFlow("eth0", 1), 0, twoSymbols))
	j.Judge(newWindow(newFlow("eth1", 1), 0, steady))
	reports := j.Report(noon, []string{"eth0", "eth1"})
	if reports[0].Scores[Symbols] < 1 || reports[1].Scores[Symbols] != 0 {
		t.Errorf("got %v", reports)
	}
	if strings.Contains(fmt.Sprint(reports), "NaN") {
		t.Errorf("a test that cannot judge has a score: %v", reports)
	}
}

// Flows with symbols do not count as alarming, because an application with few delays has them
// too. Flows that other tests find do.
func TestSymbolsAloneAreNotAlarming(t *testing.T) {
	for _, test := range []struct {
		name              string
		deltas            []func(int) uint32
		alarming, symbols int
	}{
		{"symbols in four windows", []func(int) uint32{twoSymbols, twoSymbols, twoSymbols, twoSymbols}, 0, 1},
		{"symbols in three windows of four", []func(int) uint32{twoSymbols, twoSymbols, steady, twoSymbols}, 0, 0},
		{"a phase in four windows", []func(int) uint32{manyTicks, manyTicks, manyTicks, manyTicks}, 1, 0},
		{"a phase in three windows", []func(int) uint32{manyTicks, manyTicks, manyTicks}, 0, 0},
		{"a phase in three windows of four, and symbols", []func(int) uint32{manyTicks, manyTicks, twoSymbols, manyTicks}, 0, 0},
		{"a phase in the last four windows", []func(int) uint32{steady, manyTicks, manyTicks, manyTicks, manyTicks}, 1, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			j := NewJudge()
			for i, delta := range test.deltas {
				j.Judge(newWindow(newFlow("eth0", 1), time.Duration(i)*time.Second, delta))
			}
			got := j.Report(noon.Add(time.Minute), []string{"eth0"})[0]
			if got.AlarmingFlows != test.alarming || got.SymbolFlows != test.symbols {
				t.Errorf("%d alarming flows and %d with symbols, want %d and %d", got.AlarmingFlows, got.SymbolFlows, test.alarming, test.symbols)
			}
			if later := j.Report(noon.Add(time.Hour), []string{"eth0"})[0]; later.AlarmingFlows+later.SymbolFlows != 0 {
				t.Errorf("an hour later: %+v", later)
			}
		})
	}
}

func TestMeanings(t *testing.T) {
	for want, tests := range map[string][]Test{
		"application with few delays": {Symbols}, "coarse timer": {Symbols, Phase}, "begins in the flow": {Symbols, Phase, Entropy},
	} {
		if got := (&Verdict{Tests: tests}).Meaning(); !strings.Contains(got, want) {
			t.Errorf("%v: got %q, want %q", tests, got, want)
		}
	}
}
