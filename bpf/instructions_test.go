// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/document"
	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// countedPackets is the number of packets of each kind whose instructions are counted.
const countedPackets = 2000

// packetKind is a kind of packet with a budget of instructions.
type packetKind struct {
	name       string // in the table
	frame      []byte
	link       netdev.LinkLayer
	stripped   uint16 // VLAN tag that the driver removes
	change     func(*Config)
	deltaNs    uint64
	laterNs    uint64 // every 16th packet is later by it, and only those are counted
	warmUp     int    // packets before the counted ones
	isNew      bool   // every packet has a source address of its own
	watched    bool   // after the warm-up, the flow has a watch
	sent       bool   // every counted packet becomes an event
	outcome    []Outcome
	budget     int // of the median
	mostBudget int // of the packet that takes the most
}

func packetKinds() []packetKind {
	overUDP := udp(1000, 53, make([]byte, 18))
	overTCP := tcp(1000, 443, 8)
	judged := []Outcome{OutcomeJudged}
	flagged := []Outcome{OutcomeFlaggedEarly, OutcomeFlaggedLate}
	return []packetKind{
		{name: "judged, UDP over IPv4", frame: udpFrame(), deltaNs: 1e6, warmUp: 1000, outcome: judged,
			budget: 250, mostBudget: 250},
		{name: "judged, TCP over IPv4", frame: ethernet(etherIPv4, ipv4(ipTCP, overTCP)), deltaNs: 1e6, warmUp: 1000,
			outcome: judged, budget: 250, mostBudget: 250},
		{name: "judged, UDP over IPv6", frame: ethernet(etherIPv6, ipv6(ipUDP, overUDP)), deltaNs: 1e6, warmUp: 1000,
			outcome: judged, budget: 288, mostBudget: 288},
		{name: "judged, TCP over IPv6", frame: ethernet(etherIPv6, ipv6(ipTCP, overTCP)), deltaNs: 1e6, warmUp: 1000,
			outcome: judged, budget: 288, mostBudget: 288},
		{name: "judged, UDP over IPv4, two VLAN tags", deltaNs: 1e6, warmUp: 1000, outcome: judged,
			frame:  ethernet(tagQinQ, tagged(100, tagVLAN, tagged(7, etherIPv4, ipv4(ipUDP, overUDP)))),
			budget: 280, mostBudget: 280},
		{name: "judged, TCP over IPv4, VLAN tag removed by the driver", frame: ethernet(etherIPv4, ipv4(ipTCP, overTCP)), stripped: 5,
			deltaNs: 1e6, warmUp: 1000, outcome: judged, budget: 290, mostBudget: 290},
		{name: "judged, short UDP over IPv4 without padding", deltaNs: 1e6, warmUp: 1000, outcome: judged,
			frame:  ethernet(etherIPv4, ipv4(ipUDP, udp(1000, 53, make([]byte, 8)))),
			budget: 350, mostBudget: 350},
		{name: "judged, short UDP over IPv6", frame: ethernet(etherIPv6, ipv6(ipUDP, udp(1000, 53, make([]byte, 8)))),
			deltaNs: 1e6, warmUp: 1000, outcome: judged, budget: 395, mostBudget: 395},
		{name: "judged, ICMP over IPv4", frame: ethernet(etherIPv4, ipv4(ipICMP, icmp(8, 0, 77))), deltaNs: 1e6,
			warmUp: 1000, outcome: judged, budget: 350, mostBudget: 350},
		{name: "judged, TCP over IPv4, without an Ethernet header", frame: ipv4(ipTCP, overTCP), link: netdev.LinkIP,
			deltaNs: 1e6, warmUp: 1000, outcome: judged, budget: 380, mostBudget: 380},
		{name: "judged, TCP over IPv4, PPPoE", frame: ethernet(etherPPPoE, pppoe(pppIPv4, ipv4(ipTCP, overTCP))), deltaNs: 1e6,
			warmUp: 1000, outcome: judged, budget: 430, mostBudget: 430},
		{name: "judged, TCP over IPv4, two MPLS labels", frame: ethernet(etherMPLS, mpls([]int{16, 17}, ipv4(ipTCP, overTCP))),
			deltaNs: 1e6, warmUp: 1000, outcome: judged, budget: 430, mostBudget: 430},
		{name: "judged, `--audit.baseline=device`", frame: udpFrame(), deltaNs: 1e6, warmUp: 1000,
			change: func(c *Config) { c.Baseline = BaselineDevice }, outcome: judged, budget: 310, mostBudget: 310},
		{name: "judged, `--audit.domain=log2`", frame: udpFrame(), deltaNs: 1e6, warmUp: 1000,
			change: func(c *Config) { c.Domain = DomainLog2 }, outcome: judged, budget: 360, mostBudget: 360},
		{name: "judged and watched", frame: udpFrame(), deltaNs: 1e6, warmUp: 1000, watched: true,
			change: func(c *Config) { c.Watches = 64 }, outcome: judged, budget: 350, mostBudget: 375},
		{name: "judged and clipped, UDP over IPv4", frame: udpFrame(), deltaNs: 1e6, laterNs: 32_000, warmUp: 1000,
			outcome: judged, budget: 340, mostBudget: 340},
		// As in a storm of flags: calibration has learned, and most packets are far below
		// the tail.
		{name: "flagged", frame: udpFrame(), deltaNs: 1e4, warmUp: 20_000,
			change:  func(c *Config) { c.Threshold, c.Calibrate = 0, 1e-3 },
			outcome: flagged, budget: 460, mostBudget: 600},
		{name: "flagged and sent as an event", frame: udpFrame(), deltaNs: 1e6, warmUp: 1000, sent: true,
			change:  func(c *Config) { c.Threshold, c.Calibrate, c.EventRate = 0, 0, MaxEventRate },
			outcome: flagged, budget: 530, mostBudget: 600},
		{name: "new flow", frame: udpFrame(), deltaNs: 1e6, isNew: true, outcome: []Outcome{OutcomeNewFlow},
			budget: 360, mostBudget: 360},
		{name: "judged, TCP over IPv4, response times of another port", frame: ethernet(etherIPv4, ipv4(ipTCP, overTCP)), deltaNs: 1e6,
			warmUp: 1000, change: func(c *Config) { c.ExchangeConnections = 1024 }, outcome: judged, budget: 280, mostBudget: 280},
		{name: "not IP (ARP), without padding", frame: ethernet(etherARP, make([]byte, 28)), deltaNs: 1e6,
			outcome: []Outcome{OutcomeUnparsed}, budget: 60, mostBudget: 60},
		{name: "not IP (ARP)", frame: ethernet(etherARP, make([]byte, 46)), deltaNs: 1e6,
			outcome: []Outcome{OutcomeUnparsed}, budget: 60, mostBudget: 60},
	}
}

// instructionCount is what was counted for a kind of packet.
type instructionCount struct {
	packetKind
	usual int // median
	most  int
}

// count runs packets of the kind through the interpreter and counts their instructions. The deltas
// vary evenly by up to 2 %. Everything that the program leaves in its maps has to equal the model.
func (k packetKind) count(t *testing.T) instructionCount {
	t.Helper()
	config := DefaultConfig()
	config.Devices = []string{"test0"}
	if k.change != nil {
		k.change(&config)
	}
	layer := uint32(k.link)
	if k.stripped != 0 {
		layer = linkLayerStripped
	}
	p := newInterpretedProgramOn(t, config, longestFrame, k.link, layer)
	p.strip(k.stripped)
	frame := slices.Clone(k.frame)
	now := uint64(1e12)
	var counts []int
	for i := range k.warmUp + countedPackets {
		now += k.deltaNs - k.deltaNs/50 + uint64(i*40503%65536)*(k.deltaNs/25)/65536
		isLater := k.laterNs > 0 && i%16 == 0
		if isLater {
			now += k.laterNs
		}
		if k.isNew {
			binary.BigEndian.PutUint32(frame[sourceOffset(frame):], uint32(i))
		}
		if k.watched && i == k.warmUp {
			p.watch(t)
		}
		events := len(p.events)
		outcome := p.send(t, frame, now)
		if i < k.warmUp {
			continue
		}
		if !slices.Contains(k.outcome, outcome) {
			t.Fatalf("packet %d is counted as %v, want one of %v", i, outcome, k.outcome)
		}
		if k.sent && len(p.events) != events+1 {
			t.Fatalf("packet %d became no event", i)
		}
		if k.laterNs == 0 || isLater {
			counts = append(counts, p.executed)
		}
	}
	p.compare(t)
	slices.Sort(counts)
	return instructionCount{k, counts[len(counts)/2], counts[len(counts)-1]}
}

// instructionTable is the table of docs/performance.md.
func instructionTable(counts []instructionCount) string {
	var b strings.Builder
	b.WriteString("| packet | instructions | budget | most | budget of most |\n")
	b.WriteString("| --- | --: | --: | --: | --: |\n")
	for _, c := range counts {
		fmt.Fprintf(&b, "| %s | **%d** | %d | %d | %d |\n", c.name, c.usual, c.budget, c.most, c.mostBudget)
	}
	return b.String()
}

// TestInstructions holds the program to its budgets of executed instructions. The table in
// docs/performance.md has to state what is counted; with INSTRUCTIONS_REPORT=FILE the test writes
// the table into that file.
func TestInstructions(t *testing.T) {
	var counts []instructionCount
	for _, k := range packetKinds() {
		t.Run(k.name, func(t *testing.T) {
			c := k.count(t)
			counts = append(counts, c)
			t.Logf("%d instructions, at most %d; budgets %d and %d", c.usual, c.most, c.budget, c.mostBudget)
			if c.usual > c.budget {
				t.Errorf("a packet takes %d instructions, more than its budget of %d", c.usual, c.budget)
			}
			if c.most > c.mostBudget {
				t.Errorf("one packet takes %d instructions, more than the budget of %d", c.most, c.mostBudget)
			}
		})
	}
	if t.Failed() {
		return
	}
	const page, block = "../docs/performance.md", "instructions"
	table := instructionTable(counts)
	if path := os.Getenv("INSTRUCTIONS_REPORT"); path != "" {
		if err := document.Update(path, block, table); err != nil {
			t.Fatal(err)
		}
		return
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if want, err := document.Replace(string(text), block, table); err != nil || want != string(text) {
		t.Errorf("%s does not have this table, run make instructions: %v\n%s", page, err, table)
	}
}
