// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/document"
)

// liveTargets is the minimum fraction of the rate of null, by verdict and flows.
var liveTargets = map[[2]string]float64{{"PASS", "1"}: 0.85, {"PASS", "8,192"}: 0.65}

type liveReport struct {
	cases []*liveCase
}

func (r liveReport) find(verdict, flows string, subject liveSubject) *liveCase {
	i := slices.IndexFunc(r.cases, func(c *liveCase) bool {
		return c.verdict == verdict && c.flows == flows && c.subject == subject
	})
	if i < 0 {
		return nil
	}
	return r.cases[i]
}

// table returns medians, in millions of frames per second.
func (r liveReport) table() string {
	var b strings.Builder
	b.WriteString("| verdict | flows | generator alone | no program | null | audit | audit ÷ null | middle half | audit adds | target | met |\n")
	b.WriteString("| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --- |\n")
	for _, verdict := range []string{"PASS", "DROP"} {
		for _, flows := range liveFlows {
			null, audit := r.find(verdict, flows.name, subjectNull), r.find(verdict, flows.name, subjectAudit)
			ratios, added := compare(null, audit)
			ratio, low, high := median(ratios), ratios[len(ratios)/4], ratios[len(ratios)*3/4]
			target, met := "", ""
			if least, ok := liveTargets[[2]string{verdict, flows.name}]; ok {
				target, met = fmt.Sprintf("%.0f %%", 100*least), "**no**"
				if ratio >= least {
					met = "yes"
				}
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | **%.0f %%** | %.0f–%.0f %% | %.0f ns | %s | %s |\n", verdict, flows.name,
				r.find("", flows.name, subjectGenerator), r.find(verdict, flows.name, subjectPlain), null, audit,
				100*ratio, 100*low, 100*high, median(added), target, met)
		}
	}
	return b.String()
}

// String returns the median rate, in millions per second.
func (c *liveCase) String() string {
	if c == nil {
		return ""
	}
	return fmt.Sprintf("%.2f", median(c.rates)/1e6)
}

// compare returns for each round, in rising order, the fraction of the rate of null that the
// audit reached, and the nanoseconds that it added per frame. Both are measured one after the
// other, so that a lasting disturbance affects both.
func compare(null, audit *liveCase) (ratios, added []float64) {
	for i := range audit.rates {
		ratios = append(ratios, audit.rates[i]/null.rates[i])
		added = append(added, 1e9/audit.rates[i]-1e9/null.rates[i])
	}
	slices.Sort(ratios)
	return ratios, added
}

// text returns the whole report.
func (r liveReport) text(machine string, date time.Time) string {
	var sent, dropped, audited uint64
	for _, c := range r.cases {
		sent += c.sent
		dropped += c.dropped
		if c.counted != nil {
			audited += c.sent - c.dropped
		}
	}
	return fmt.Sprintf("%s\n%s, %d rounds. Medians, in millions of frames a second.\n\n%s\n"+
		"Of %.1f million frames %d found the receiver's queue full. All others were received, and the\n"+
		"audit counted each of the %.1f million that came to it exactly once.\n%s",
		machine, date.Format(time.DateOnly), len(r.cases[0].rates), r.table(), float64(sent)/1e6, dropped, float64(audited)/1e6,
		liveMethod)
}

const liveMethod = `
The frames are valid UDP over IPv4, 60 bytes long. The kernel makes them
(` + "`BPF_PROG_TEST_RUN`" + ` on live frames) and redirects them into a pair of veth devices, 64 at
a time. The core that made a batch then handles it, so that no queue between cores decides
the rate. It does so at real-time priority, and leaves the other cores to the rest of the
machine. What making a frame costs is therefore in every rate; *generator alone* says how
much that is.

A program that passes frames hands them to the stack, which builds a socket buffer and
drops it as soon as it comes to IP, because no device has its hardware address. Passing
hardly costs less than that, and every further step would make the audit a smaller part of
the whole. *No program* is a device with GRO, without which it takes no redirected frames.
*null* returns its verdict. *audit* is the exporter with default flags; where frames are
dropped, its program is loaded a second time, with the same maps and the other verdict.
Null and audit are measured one after the other in each round, and the ratio is the median
of the rounds' ratios.
`

// writeTo replaces the report in a Markdown file.
func (r liveReport) writeTo(path string) error {
	machine, err := document.ThisMachine()
	if err != nil {
		return err
	}
	return document.Update(path, "live", r.text(machine.String()+".", time.Now()))
}

func TestLiveReport(t *testing.T) {
	var cases []*liveCase
	for _, flows := range liveFlows {
		add := func(verdict string, subject liveSubject, rates ...float64) *liveCase {
			c := &liveCase{verdict: verdict, flows: flows.name, subject: subject, rates: rates, sent: 1e6}
			cases = append(cases, c)
			return c
		}
		add("", subjectGenerator, 9e6, 9e6, 9e6).sent = 0
		add("PASS", subjectPlain, 4e6, 4e6, 4e6).dropped = 1
		add("PASS", subjectNull, 4e6, 5e6, 4e6)
		add("PASS", subjectAudit, 3e6, 4e6, 3.2e6).counted = func() float64 { return 0 }
		add("DROP", subjectNull, 8e6, 8e6, 8e6)
		add("DROP", subjectAudit, 4e6, 4e6, 4e6)
	}
	const want = `Some CPU, 2 cores, Linux 6.18.1.
2026-11-23, 3 rounds. Medians, in millions of frames a second.

| verdict | flows | generator alone | no program | null | audit | audit ÷ null | middle half | audit adds | target | met |
| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --- |
| PASS | 1 | 9.00 | 4.00 | 4.00 | 3.20 | **80 %** | 75–80 % | 62 ns | 85 % | **no** |
| PASS | 8,192 | 9.00 | 4.00 | 4.00 | 3.20 | **80 %** | 75–80 % | 62 ns | 65 % | yes |
| PASS | every packet new | 9.00 | 4.00 | 4.00 | 3.20 | **80 %** | 75–80 % | 62 ns |  |  |
| DROP | 1 | 9.00 |  | 8.00 | 4.00 | **50 %** | 50–50 % | 125 ns |  |  |
| DROP | 8,192 | 9.00 |  | 8.00 | 4.00 | **50 %** | 50–50 % | 125 ns |  |  |
| DROP | every packet new | 9.00 |  | 8.00 | 4.00 | **50 %** | 50–50 % | 125 ns |  |  |

Of 15.0 million frames 3 found the receiver's queue full. All others were received, and the
audit counted each of the 3.0 million that came to it exactly once.
` + liveMethod
	got := liveReport{cases}.text("Some CPU, 2 cores, Linux 6.18.1.", time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC))
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}
