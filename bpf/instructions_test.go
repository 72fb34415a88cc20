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
)

// countedPackets is the number of packets of each kind whose instructions are counted.
const countedPackets = 2000

// packetKind is a kind of packet with a budget of instructions.
type packetKind struct {
	name    string // in the table
	frame   []byte
	change  func(*Config)
	deltaNs uint64
	warmUp  int  // packets before the counted ones
	isNew   bool // every packet has a source address of its own
	watched bool // after the warm-up, the flow has a watch
	outcome []Outcome
	budget  int
}

func packetKinds() []packetKind {
	payload := udp(1000, 53, make([]byte, 18))
	judged := []Outcome{OutcomeJudged}
	return []packetKind{
		{name: "judged, IPv4", frame: udpFrame(), deltaNs: 1e6, warmUp: 1000, outcome: judged, budget: 250},
		{name: "judged, IPv6", frame: ethernet(etherIPv6, ipv6(ipUDP, payload)), deltaNs: 1e6, warmUp: 1000,
			outcome: judged, budget: 288},
		{name: "judged, two VLAN tags", deltaNs: 1e6, warmUp: 1000, outcome: judged, budget: 280,
			frame: ethernet(tagQinQ, tagged(100, tagVLAN, tagged(7, etherIPv4, ipv4(ipUDP, payload))))},
		{name: "judged and watched", frame: udpFrame(), deltaNs: 1e6, warmUp: 1000, watched: true,
			change: func(c *Config) { c.Watches = 64 }, outcome: judged, budget: 350},
		// As in a storm of flags: calibration has learned, and most packets are far below
		// the tail.
		{name: "flagged", frame: udpFrame(), deltaNs: 1e4, warmUp: 20_000,
			change:  func(c *Config) { c.Threshold, c.Calibrate = 0, 1e-3 },
			outcome: []Outcome{OutcomeFlaggedEarly, OutcomeFlaggedLate}, budget: 460},
		{name: "new flow", frame: udpFrame(), deltaNs: 1e6, isNew: true, outcome: []Outcome{OutcomeNewFlow}, budget: 360},
		{name: "not IP (ARP)", frame: ethernet(etherARP, make([]byte, 46)), deltaNs: 1e6,
			outcome: []Outcome{OutcomeUnparsed}, budget: 60},
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
	p := newInterpretedProgram(t, config, longestFrame)
	frame := slices.Clone(k.frame)
	now := uint64(1e12)
	var counts []int
	for i := range k.warmUp + countedPackets {
		now += k.deltaNs - k.deltaNs/50 + uint64(i*40503%65536)*(k.deltaNs/25)/65536
		if k.isNew {
			binary.BigEndian.PutUint32(frame[sourceOffset(frame):], uint32(i))
		}
		if k.watched && i == k.warmUp {
			p.watch(t)
		}
		outcome := p.send(t, frame, now)
		if i < k.warmUp {
			continue
		}
		if !slices.Contains(k.outcome, outcome) {
			t.Fatalf("packet %d is counted as %v, want one of %v", i, outcome, k.outcome)
		}
		counts = append(counts, p.executed)
	}
	p.compare(t)
	slices.Sort(counts)
	return instructionCount{k, counts[len(counts)/2], counts[len(counts)-1]}
}

// instructionTable is the table of docs/performance.md.
func instructionTable(counts []instructionCount) string {
	var b strings.Builder
	b.WriteString("| packet | instructions | budget | most |\n")
	b.WriteString("| --- | --: | --: | --: |\n")
	for _, c := range counts {
		fmt.Fprintf(&b, "| %s | **%d** | %d | %d |\n", c.name, c.usual, c.budget, c.most)
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
			t.Logf("%d instructions, at most %d; budget %d", c.usual, c.most, c.budget)
			if c.usual > c.budget {
				t.Errorf("a packet takes %d instructions, more than its budget of %d", c.usual, c.budget)
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
