// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package flowtable

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

// planning is the document that contains the rates, between two comment lines.
const (
	planning   = "../../docs/planning.md"
	beginRates = "<!-- begin hit rates -->\n"
	endRates   = "<!-- end hit rates -->\n"
)

// stepNs is the time between two packets. From 8 ns on, the oldest slot is exact.
const stepNs = 100

// packetsPerFlow is the mean number of counted packets of a flow in random order.
const packetsPerFlow = 2

var (
	simulatedLoads = []float64{0.1, 0.25, 0.5, 0.75, 1, 1.5, 2} // live flows per slot
	simulatedWays  = []int{1, 2, 4, 8}
	// Rates are means over that many tables.
	simulatedSizes = []struct{ slots, tables int }{{8192, 32}, {65536, 4}}
)

// traffic is the order in which live flows send. Flows are numbers.
type traffic struct {
	name string
	// past returns the flows in the order of their last packets, the latest at the end. Sending
	// them fills the table as an endless past would, because only last packets decide which flow
	// has a slot.
	past func(flows int, r *rand.Rand) []int
	// packets returns the flow of each counted packet.
	packets func(flows int, r *rand.Rand) []int
}

func inTurn() traffic {
	order := func(flows int, _ *rand.Rand) []int {
		numbers := make([]int, flows)
		for i := range numbers {
			numbers[i] = i
		}
		return numbers
	}
	return traffic{"in turn", order, order}
}

// zipf draws packets independently: flow k with a probability proportional to (1 + k)^−s.
func zipf(s float64) traffic {
	return traffic{
		name: fmt.Sprintf("Zipf %v", s),
		past: func(flows int, r *rand.Rand) []int {
			// The time since a flow's last packet is exponential with its rate.
			ages := make([]float64, flows)
			for k := range ages {
				ages[k] = r.ExpFloat64() * math.Pow(float64(1+k), s)
			}
			order := inTurn().past(flows, r)
			slices.SortFunc(order, func(a, b int) int { return cmp.Compare(ages[b], ages[a]) })
			return order
		},
		packets: func(flows int, r *rand.Rand) []int {
			z := rand.NewZipf(r, s, 1, uint64(flows-1))
			numbers := make([]int, packetsPerFlow*flows)
			for i := range numbers {
				numbers[i] = int(z.Uint64())
			}
			return numbers
		},
	}
}

func randomHashes(n int, r *rand.Rand) []Hash {
	hashes := make([]Hash, n)
	for i := range hashes {
		set, mark := r.Uint64(), r.Uint64()
		hashes[i] = Hash{Set: set >> 32, Way: uint32(set) % Ways, Mark: uint16(mark), Tag: max(uint32(mark>>32), 1)}
	}
	return hashes
}

// send sends one packet of each flow in numbers and returns how many packets found their slot.
func send(table *Table, hashes []Hash, numbers []int, nowNs *uint64) (hits int) {
	for _, number := range numbers {
		h := hashes[number]
		*nowNs += stepNs
		if way := table.Find(h); way >= 0 {
			table.Set(h.Set)[way].LastNs = *nowNs
			hits++
			continue
		}
		table.Insert(h, *nowNs)
	}
	return hits
}

// hitRates returns the fraction of packets that find their slot, for each of simulatedWays and
// the same packets.
func hitRates(kind traffic, slots, tables int, load float64) []float64 {
	flows := int(math.Round(load * float64(slots)))
	rates := make([]float64, len(simulatedWays))
	for seed := range tables {
		r := rand.New(rand.NewPCG(uint64(flows), uint64(seed)))
		hashes := randomHashes(flows, r)
		past, packets := kind.past(flows, r), kind.packets(flows, r)
		for i, ways := range simulatedWays {
			table, nowNs := New(slots/ways, ways), uint64(0)
			send(table, hashes, past, &nowNs)
			rates[i] += float64(send(table, hashes, packets, &nowNs)) / float64(len(packets)*tables)
		}
	}
	return rates
}

// fewerThan returns P(X < ways) for X with Poisson's distribution of that mean.
func fewerThan(ways int, mean float64) (p float64) {
	term := math.Exp(-mean)
	for k := range ways {
		p += term
		term *= mean / float64(k+1)
	}
	return p
}

// cell is a row of the simulation.
type cell struct {
	slots, tables int
	load          float64
	inTurn, zipf  []float64 // hit rates, by simulatedWays
}

func simulate() []cell {
	var cells []cell
	for _, size := range simulatedSizes {
		for _, load := range simulatedLoads {
			cells = append(cells, cell{slots: size.slots, tables: size.tables, load: load})
		}
	}
	var group sync.WaitGroup
	for i := range cells {
		c := &cells[i]
		group.Go(func() { c.inTurn = hitRates(inTurn(), c.slots, c.tables, c.load) })
		group.Go(func() { c.zipf = hitRates(zipf(1.1), c.slots, c.tables, c.load) })
	}
	group.Wait()
	return cells
}

// report formats the cells as a Markdown table.
func report(cells []cell) string {
	var b strings.Builder
	b.WriteString("| slots | live flows / slots |")
	for _, kind := range []string{"in turn", "Zipf"} {
		for _, ways := range simulatedWays {
			fmt.Fprintf(&b, " %s, %d |", kind, ways)
		}
	}
	b.WriteString("\n|" + strings.Repeat(" --- |", 2+2*len(simulatedWays)) + "\n")
	for _, c := range cells {
		fmt.Fprintf(&b, "| %d | %v |", c.slots, c.load)
		for _, rate := range slices.Concat(c.inTurn, c.zipf) {
			fmt.Fprintf(&b, " %.3f |", rate)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// split returns the rates in the document, and the text before and after.
func split(t *testing.T, path string) (before, rates, after []byte) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, begins := bytes.Cut(text, []byte(beginRates))
	rates, after, ends := bytes.Cut(rest, []byte(endRates))
	if !begins || !ends {
		t.Fatalf("%s has no lines %q and %q", path, strings.TrimSpace(beginRates), strings.TrimSpace(endRates))
	}
	return before, rates, after
}

// checkDocument compares the rates with those in the document. HIT_RATES_REPORT=path writes
// them to the document at path instead.
func checkDocument(t *testing.T, cells []cell) {
	want := report(cells)
	if path := os.Getenv("HIT_RATES_REPORT"); path != "" {
		before, _, after := split(t, path)
		text := slices.Concat(before, []byte(beginRates), []byte(want), []byte(endRates), after)
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if _, got, _ := split(t, planning); string(got) != want {
		t.Errorf("%s has\n%s\nbut the simulation gives\n%s\nRun this test with HIT_RATES_REPORT=%s", planning, got, want, planning)
	}
}

// checkPoisson checks the rates of flows in turn. Such a flow finds its slot if fewer other
// flows than ways are in its set, because all of them send between two of its packets. Their
// number has Poisson's distribution, with the flows per set as its mean.
func checkPoisson(t *testing.T, cells []cell) {
	for _, c := range cells {
		for i, ways := range simulatedWays {
			want := fewerThan(ways, c.load*float64(ways))
			if got := c.inTurn[i]; math.Abs(got-want) > 0.005 {
				t.Errorf("%d slots, %v flows per slot, %d ways: hit rate %.4f, want %.4f", c.slots, c.load, ways, got, want)
			}
		}
	}
}

// checkWays checks that more ways give a higher rate while there are at most as many flows as
// slots. With more flows in turn, chance leaves some sets nearly empty, which helps tables of
// few ways.
func checkWays(t *testing.T, cells []cell) {
	for _, c := range cells {
		if !slices.IsSorted(c.zipf) {
			t.Errorf("%d slots, %v flows per slot: hit rates of Zipf's flows %.4f do not rise with ways", c.slots, c.load, c.zipf)
		}
		if c.load <= 0.75 && !slices.IsSorted(c.inTurn) {
			t.Errorf("%d slots, %v flows per slot: hit rates of flows in turn %.4f do not rise with ways", c.slots, c.load, c.inTurn)
		}
	}
}

// checkOrders checks that flows in random order lose fewer slots than flows in turn, and that
// fewer flows lose fewer slots.
func checkOrders(t *testing.T, cells []cell) {
	for i, c := range cells {
		for w, ways := range simulatedWays {
			if c.zipf[w] < c.inTurn[w]-0.001 {
				t.Errorf("%d slots, %v flows per slot, %d ways: hit rate %.4f of Zipf's flows is below that of flows in turn, %.4f",
					c.slots, c.load, ways, c.zipf[w], c.inTurn[w])
			}
			if i > 0 && cells[i-1].slots == c.slots && (cells[i-1].inTurn[w] < c.inTurn[w] || cells[i-1].zipf[w] < c.zipf[w]) {
				t.Errorf("%d slots, %d ways: hit rate at %v flows per slot is above that at %v", c.slots, ways, c.load, cells[i-1].load)
			}
		}
	}
}

func TestHitRates(t *testing.T) {
	cells := simulate()
	t.Run("flows in turn follow Poisson's distribution", func(t *testing.T) { checkPoisson(t, cells) })
	t.Run("ways help", func(t *testing.T) { checkWays(t, cells) })
	t.Run("flows in turn have the lower rate, and more flows lower it", func(t *testing.T) { checkOrders(t, cells) })
	t.Run("a table of four slots for each live flow keeps nearly all", func(t *testing.T) {
		for _, c := range cells {
			if c.load <= 0.25 && c.inTurn[len(simulatedWays)-1] < 0.995 {
				t.Errorf("%d slots, %v flows per slot, 8 ways: hit rate %.4f, want at least 0.995", c.slots, c.load, c.inTurn[len(simulatedWays)-1])
			}
		}
	})
	t.Run("the document has the rates", func(t *testing.T) { checkDocument(t, cells) })
}

// A flood of flows that send one packet each takes the slot of a live flow if as many of them
// as ways fall into its set between two of its packets.
func TestFloodFollowsPoisson(t *testing.T) {
	const slots, live, gaps = 8192, 64, 200
	for _, gap := range []int{2048, 4096, 8192} { // new flows between two packets of a live one
		r := rand.New(rand.NewPCG(uint64(gap), 1))
		table, nowNs := New(slots/Ways, Ways), uint64(0)
		flows, hits := randomHashes(live, r), 0
		numbers := inTurn().past(live, r)
		for i := range gaps {
			found := send(table, flows, numbers, &nowNs)
			if i > 0 {
				hits += found
			}
			flood := randomHashes(gap, r)
			send(table, flood, inTurn().past(gap, r), &nowNs)
		}
		got, want := float64(hits)/(live*(gaps-1)), fewerThan(Ways, float64(gap+live-1)*Ways/slots)
		if math.Abs(got-want) > 0.015 {
			t.Errorf("%d new flows between two packets: hit rate %.4f, want %.4f", gap, got, want)
		}
	}
}
