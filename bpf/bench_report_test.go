// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"cmp"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/document"
)

// result holds all measurements of a workload.
type result struct {
	workload
	costs   map[string][]int // by program: ns per packet in each round
	counted tally            // by the measured program
	bytes   int              // size of its flow table
}

func newResult(w workload) *result { return &result{workload: w, costs: map[string][]int{}} }

func (r *result) merge(m *measurement) {
	for name, costs := range m.costs {
		r.costs[name] = append(r.costs[name], costs...)
	}
	r.counted = r.counted.plus(m.counted[r.measured()])
	r.bytes = m.bytes
}

func (r *result) rounds() int { return len(r.costs[r.reference()]) }

// ratio returns the cost of the measured program divided by that of another one.
func (r *result) ratio(to string) float64 { return median(r.costs[r.measured()]) / median(r.costs[to]) }

// ratios returns the smallest and the largest ratio to the reference in a round.
func (r *result) ratios() (smallest, largest float64) {
	const half = 0.5 // mean of what the kernel truncated
	var all []float64
	for i, cost := range r.costs[r.measured()] {
		all = append(all, (float64(cost)+half)/(float64(r.costs[r.reference()][i])+half))
	}
	return slices.Min(all), slices.Max(all)
}

// verdict names the stricter budget that is met.
func (r *result) verdict() string {
	switch ratio := r.ratio(r.reference()); {
	case r.must == 0:
		return ""
	case ratio <= r.goal:
		return "goal"
	case ratio <= r.must:
		return "must"
	}
	return "**no**"
}

// share returns n as a percentage of the packets, or an empty string for 0.
func (r *result) share(n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f %%", 100*float64(n)/float64(r.counted.packets))
}

type report struct {
	date    time.Time
	size    programSize
	results []*result
}

// isComplete reports whether all workloads were measured.
func (r *report) isComplete() bool {
	return r.size.translated > 0 && !slices.ContainsFunc(r.results, func(r *result) bool { return r.rounds() == 0 })
}

// writeTo replaces the report in a Markdown file.
func (r *report) writeTo(path string) error {
	machine, err := thisMachine()
	if err != nil {
		return err
	}
	return document.Update(path, "measured", r.markdown(machine))
}

func (r *report) markdown(machine machine) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s, %d rounds of %d packets.\n\n", machine, r.date.Format(time.DateOnly), r.leastRounds(), benchPackets)
	r.writeBudgets(&b)
	b.WriteString("\n")
	r.writeOthers(&b)
	b.WriteString("\n")
	fmt.Fprintf(&b, "The program with the tag `%s` has %d instructions, of which the verifier followed %d, and\n%d bytes of machine code.\n",
		r.size.tag, r.size.translated, r.size.verified, r.size.jited)
	b.WriteString("\n")
	r.writeNoise(&b)
	return b.String()
}

// leastRounds returns the smallest number of rounds of a workload.
func (r *report) leastRounds() int {
	return slices.MinFunc(r.results, func(a, b *result) int { return cmp.Compare(a.rounds(), b.rounds()) }).rounds()
}

func (r *report) writeBudgets(b *strings.Builder) {
	b.WriteString("| work | null ns | reference ns | audit ns | ratio | min–max | new | flagged | table | must | goal | met |\n")
	b.WriteString("| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --- |\n")
	for _, r := range r.results {
		if r.table != nil {
			continue
		}
		smallest, largest := r.ratios()
		fmt.Fprintf(b, "| %s | %.1f | %s %.1f | %.1f | **%.2f** | %.2f–%.2f | %s | %s | %s | %s | %s | %s |\n", r.title,
			median(r.costs[progNull]), r.reference(), median(r.costs[r.reference()]), median(r.costs[progAudit]),
			r.ratio(r.reference()), smallest, largest, r.share(r.counted.inserts), r.share(r.counted.flagged()), mebibytes(r.bytes),
			factor(r.must), factor(r.goal), r.verdict())
	}
}

func (r *report) writeOthers(b *strings.Builder) {
	b.WriteString("| other table | work | reference ns | audit ns | with it, ns | ratio | min–max | to the audit | table |\n")
	b.WriteString("| --- | --- | --: | --: | --: | --: | --: | --: | --: |\n")
	for _, r := range r.results {
		if r.table == nil {
			continue
		}
		smallest, largest := r.ratios()
		fmt.Fprintf(b, "| %s | %s | %s %.1f | %.1f | %.1f | %.2f | %.2f–%.2f | **%.2f** | %s |\n", r.table.name, r.title,
			r.reference(), median(r.costs[r.reference()]), median(r.costs[progAudit]), median(r.costs[r.measured()]),
			r.ratio(r.reference()), smallest, largest, r.ratio(progAudit), mebibytes(r.bytes))
	}
}

// writeNoise writes one sentence on the variation of the references, which do the same work for
// every packet.
func (r *report) writeNoise(b *strings.Builder) {
	costs := map[string][]int{}
	for _, r := range r.results {
		for _, name := range []string{progNull, r.reference()} {
			costs[name] = append(costs[name], r.costs[name]...)
		}
	}
	var spreads []string
	for _, name := range []string{progNull, progFloor, progFloorTable} {
		slices.Sort(costs[name])
		n := len(costs[name])
		spreads = append(spreads, fmt.Sprintf("%s %d to %d ns", name, costs[name][n/20], costs[name][n-1-n/20]))
	}
	fmt.Fprintf(b, "Noise: nine in ten rounds of %s, of\n%s, of %s.\n", spreads[0], spreads[1], spreads[2])
}

func mebibytes(bytes int) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

func factor(f float64) string {
	if f == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", f)
}

// machine describes the machine of a measurement.
type machine struct {
	document.Machine
	jit      string
	goNumber string
}

func (m machine) String() string {
	return fmt.Sprintf("%v, JIT %s, Go %s.", m.Machine, m.jit, m.goNumber)
}

func thisMachine() (m machine, err error) {
	m = machine{jit: "off", goNumber: strings.TrimPrefix(runtime.Version(), "go")}
	if m.Machine, err = document.ThisMachine(); err != nil {
		return m, err
	}
	// A kernel without this file always uses the JIT.
	if jit, err := os.ReadFile("/proc/sys/net/core/bpf_jit_enable"); err != nil || jit[0] != '0' {
		m.jit = "on"
	}
	return m, nil
}

func TestReport(t *testing.T) {
	hot := newResult(workload{name: "hot", title: "one hot flow", flows: 1, must: 1.6, goal: 1.35})
	hot.costs = map[string][]int{progNull: {25, 25, 25}, progFloor: {50, 50, 54}, progAudit: {75, 76, 75}}
	hot.counted, hot.bytes = tally{packets: 1000}, 5<<19
	hot.counted.outcomes[OutcomeFlaggedLate] = 4
	hash := newResult(workload{name: "hash", title: "every packet a new flow", flows: allFlows, table: &lruHash})
	hash.costs = map[string][]int{progFloorTable: {99}, progAudit: {150}, lruHash.name: {300}}
	hash.counted, hash.bytes = tally{packets: 10, inserts: 10}, 9<<20
	r := report{
		date:    time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC),
		size:    programSize{verified: 30_000, translated: 1500, jited: 7000, tag: "0123456789abcdef"},
		results: []*result{hot, hash},
	}
	const want = `Some CPU, 2 cores, Linux 6.18.1, JIT on, Go 1.26.8.
2026-11-23, 1 rounds of 100000 packets.

| work | null ns | reference ns | audit ns | ratio | min–max | new | flagged | table | must | goal | met |
| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --- |
| one hot flow | 25.5 | floor 50.8 | 75.8 | **1.49** | 1.39–1.51 |  | 0.4 % | 2.5 MiB | 1.60 | 1.35 | must |

| other table | work | reference ns | audit ns | with it, ns | ratio | min–max | to the audit | table |
| --- | --- | --: | --: | --: | --: | --: | --: | --: |
| lru_hash | every packet a new flow | floor_table 99.5 | 150.5 | 300.5 | 3.02 | 3.02–3.02 | **2.00** | 9.0 MiB |

The program with the tag ` + "`0123456789abcdef`" + ` has 1500 instructions, of which the verifier followed 30000, and
7000 bytes of machine code.

Noise: nine in ten rounds of null 25 to 25 ns, of
floor 50 to 54 ns, of floor_table 99 to 99 ns.
`
	got := r.markdown(machine{document.Machine{CPU: "Some CPU", Cores: 2, Kernel: "6.18.1"}, "on", "1.26.8"})
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}
