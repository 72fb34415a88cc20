// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package rules

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// documentedQueries returns the blocks of PromQL of a document. In docs/planning.md each line of
// a block is a query.
func documentedQueries(t *testing.T, document string) (queries []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../..", document))
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range regexp.MustCompile("(?s)```promql\n(.*?)\n```").FindAllStringSubmatch(string(text), -1) {
		if document == "docs/planning.md" {
			queries = append(queries, strings.Split(block[1], "\n")...)
		} else {
			queries = append(queries, block[1])
		}
	}
	return queries
}

// queryWith returns the only query of a document that has this part.
func queryWith(t *testing.T, document, part string) (found string) {
	t.Helper()
	for _, query := range documentedQueries(t, document) {
		if strings.Contains(query, part) {
			if found != "" {
				t.Fatalf("%s has several queries with %q", document, part)
			}
			found = query
		}
	}
	if found == "" {
		t.Fatalf("%s has no query with %q", document, part)
	}
	return found
}

// expectVector adds the expectation that a query has these values, by labels, and no others.
func (c *ruleCase) expectVector(minute int, query string, want map[string]float64) {
	at := fmt.Sprintf("%dm", minute)
	var samples []ruleSample
	for labels, value := range want {
		// promtool compares floats exactly, and rate() rounds.
		c.InputSeries = append(c.InputSeries, ruleSeries{"want" + labels, strings.Repeat(fmt.Sprintf("%v ", value), minute+1)})
		samples = append(samples, ruleSample{labels, 1})
	}
	c.Expressions = append(c.Expressions,
		ruleExpr{Expr: fmt.Sprintf("abs((%s) - want) <= bool 1e-12 * abs(want)", query), At: at, Samples: samples},
		ruleExpr{Expr: fmt.Sprintf("(%s) unless want", query), At: at, Samples: []ruleSample{}})
}

// The queries of the documents have the values that follow from round counters.
func TestDocumentedQueries(t *testing.T) {
	const (
		eth0     = `{job="xdp_audit",instance="a:9400",device="eth0"}`
		eth1     = `{job="xdp_audit",instance="b:9400",device="eth1"}`
		ofDevice = `{instance="a:9400",device="eth0"}`
		mean     = "instance_device:xdp_audit_delta_seconds:mean"
		variance = "instance_device:xdp_audit_delta_seconds:variance"
		n        = "instance_device:xdp_audit_deltas:increase"
		effect   = "instance_device:xdp_audit_delta_seconds:effect5m_1h"
		z        = "instance_device:xdp_audit_delta_octaves:zscore5m_1h"
		ofFleet  = "job:xdp_audit_delta_octaves:zscore5m_1h"
	)
	with := func(labels, more string) string { return strings.TrimSuffix(labels, "}") + "," + more + "}" }
	// series returns a series that has these values at the minutes 0 to 10.
	series := func(name, values string) ruleSeries { return ruleSeries{name, values + "x10"} }
	host := func(i int) string { return fmt.Sprintf(`{job="xdp_audit",instance="host%d:9400",device="eth0"}`, i) }
	each := func(name string, values ...float64) (all []ruleSeries) {
		for i, value := range values {
			all = append(all, series(name+host(i), fmt.Sprint(value)))
		}
		return all
	}

	outcomes := []ruleSeries{
		series("xdp_audit_outcomes_total"+with(eth0, `outcome="judged"`), "0+5760"),
		series("xdp_audit_outcomes_total"+with(eth0, `outcome="flagged_early"`), "0+60"),
		series("xdp_audit_outcomes_total"+with(eth0, `outcome="flagged_late"`), "0+180"),
		series("xdp_audit_outcomes_total"+with(eth0, `outcome="min_samples"`), "0+30000"),
		series("xdp_audit_leak_flags_total"+with(eth0, `direction="early"`), "0+60"),
		series("xdp_audit_leak_flags_total"+with(eth0, `direction="late"`), "0+180"),
		// A device without packets has no fraction.
		series("xdp_audit_outcomes_total"+with(eth1, `outcome="judged"`), "7"),
		series("xdp_audit_leak_flags_total"+with(eth1, `direction="late"`), "0"),
	}
	// Each minute has two deltas, 0.5 s above and 0.1 s below the reference of 1 s.
	sums := []ruleSeries{
		series("xdp_audit_delta_reference_seconds"+eth0, "1"),
		series("xdp_audit_deltas_total"+eth0, "0+2"),
		series("xdp_audit_delta_deviation_above_seconds_total"+eth0, "0+0.5"),
		series("xdp_audit_delta_deviation_below_seconds_total"+eth0, "0+0.1"),
		series("xdp_audit_delta_deviation_seconds_squared_total"+eth0, "0+0.26"),
	}
	fates := func(fates ...string) (all []ruleSeries) {
		for _, fate := range fates {
			all = append(all, series("xdp_audit_event_fates_total"+with(eth0, `fate="`+fate+`"`), "0+6"))
		}
		return all
	}
	// Two fleets. In the first one device changed much, another less.
	scores := each(z, 6.25, -3.5, 2.5, 0, 0)
	for i, value := range []string{"4", "0"} {
		scores = append(scores, series(z+fmt.Sprintf(`{job="other",instance="other%d:9400",device="eth0"}`, i), value))
	}

	tested := map[string]bool{
		// The promtool of Debian 12 takes no native histograms. TestPrometheus in e2e asks for a
		// quantile of one.
		queryWith(t, "docs/metrics.md", "rate(xdp_audit_delta_seconds[5m])"): true,
	}
	for _, test := range []struct {
		document, part string // a part of the query that no other query of the document has
		input          []ruleSeries
		want           map[string]float64
	}{
		{"README.md", "xdp_audit_leak_flags_total", outcomes, map[string]float64{eth0: 0.04}},
		{"README.md", "zscore", []ruleSeries{
			series(ofFleet+`{job="faster"}`, "-6"), {ofFleet + `{job="slower"}`, "5.5+0.25x10"}, series(ofFleet+`{job="usual"}`, "4.9"),
			{ofFleet + `{job="for nine minutes"}`, "4.9x1 6x8"},
		}, map[string]float64{`{job="faster"}`: 6, `{job="slower"}`: 5.5}},
		{"docs/metrics.md", "sum by (instance, device, outcome)", outcomes, map[string]float64{
			with(ofDevice, `outcome="judged"`): 96, with(ofDevice, `outcome="flagged_early"`): 1, with(ofDevice, `outcome="flagged_late"`): 3,
			with(ofDevice, `outcome="min_samples"`): 500, `{instance="b:9400",device="eth1",outcome="judged"}`: 0,
		}},
		{"docs/metrics.md", "xdp_audit_leak_flags_total", outcomes, map[string]float64{eth0: 0.04}},
		{"docs/metrics.md", "xdp_audit_delta_reference_seconds\n", sums, map[string]float64{eth0: 1.2}},
		{"docs/metrics.md", "squared_total", sums, map[string]float64{eth0: 0.13 - 0.2*0.2}},
		{"docs/metrics.md", "delta_seconds_bucket", []ruleSeries{
			series("xdp_audit_delta_seconds_bucket"+with(eth0, `le="0.5"`), "0+0"),
			series("xdp_audit_delta_seconds_bucket"+with(eth0, `le="1"`), "0+90"),
			series("xdp_audit_delta_seconds_bucket"+with(eth0, `le="2"`), "0+100"),
			series("xdp_audit_delta_seconds_bucket"+with(eth0, `le="+Inf"`), "0+100"),
		}, map[string]float64{ofDevice: 1.9}},
		{"docs/metrics.md", "ring_full|no_reader", fates("sent", "rate_limit", "suppressed", "ring_full", "no_reader", "reader_gap", "other"), map[string]float64{
			with(ofDevice, `fate="ring_full"`): 0.1, with(ofDevice, `fate="no_reader"`): 0.1,
			with(ofDevice, `fate="reader_gap"`): 0.1, with(ofDevice, `fate="other"`): 0.1,
		}},
		{"docs/metrics.md", "restarts", []ruleSeries{
			series("xdp_audit_baseline_restarts_total"+eth0, "7+2"), series("xdp_audit_baseline_restarts_total"+eth1, "7"),
		}, map[string]float64{eth0: 10}},
		{"docs/metrics.md", "sort_desc", scores, map[string]float64{host(0): 6.25, host(1): 3.5}},
		{"docs/metrics.md", "scalar", []ruleSeries{
			series(mean+`5m{instance="a:9400",device="eth0"}`, "0.0012"), series(mean+`5m{instance="b:9400",device="eth0"}`, "0.001"),
			series(variance+`5m{instance="a:9400",device="eth0"}`, "4e-8"), series(variance+`5m{instance="b:9400",device="eth0"}`, "9e-8"),
			series(n+`5m{instance="a:9400",device="eth0"}`, "400"), series(n+`5m{instance="b:9400",device="eth0"}`, "300"),
			// A third device does not count.
			series(variance+`5m{instance="c:9400",device="eth0"}`, "1"), series(n+`5m{instance="c:9400",device="eth0"}`, "2"),
		}, map[string]float64{"{}": 10}},
		{"docs/metrics.md", "topk", append(each(effect, 0.1, -0.9, 0.3, -0.4, 0.5, 0.6, 2), each(n+"5m", 1000, 1000, 1000, 1000, 1000, 1000, 999)...),
			map[string]float64{host(1): 0.9, host(2): 0.3, host(3): 0.4, host(4): 0.5, host(5): 0.6}},
		{"docs/planning.md", "node_network", []ruleSeries{series(`node_network_receive_packets_total{instance="a:9100",device="eth0"}`, "0+600")},
			map[string]float64{`{instance="a:9100",device="eth0"}`: 10}},
		{"docs/planning.md", "bytes_total", []ruleSeries{
			series("xdp_audit_bytes_total"+with(eth0, `protocol="tcp"`), "0+80000"), series("xdp_audit_packets_total"+with(eth0, `protocol="tcp"`), "0+60"),
			series("xdp_audit_bytes_total"+with(eth0, `protocol="udp"`), "0+4000"), series("xdp_audit_packets_total"+with(eth0, `protocol="udp"`), "0+60"),
		}, map[string]float64{ofDevice: 700}},
		{"docs/planning.md", "evictions", append([]ruleSeries{
			series("xdp_audit_flow_evictions_total"+with(eth0, `reason="live"`), "0+360"), series("xdp_audit_flow_evictions_total"+with(eth0, `reason="expired"`), "0+90"),
		}, outcomes...), map[string]float64{ofDevice: 0.01}},
		{"docs/planning.md", "contended", append([]ruleSeries{series("xdp_audit_outcomes_total"+with(eth0, `outcome="contended"`), "0+4000")}, outcomes...),
			map[string]float64{ofDevice: 0.1}},
		{"docs/planning.md", "run_seconds", []ruleSeries{series("xdp_audit_program_run_seconds_total"+eth0, "0+0.0003"), series("xdp_audit_program_runs_total"+eth0, "0+6000")},
			map[string]float64{eth0: 50e-9}},
	} {
		t.Run(test.document+", "+test.part, func(t *testing.T) {
			c := ruleCase{Interval: "1m", InputSeries: test.input}
			query := queryWith(t, test.document, test.part)
			c.expectVector(10, query, test.want)
			check(t, c)
			tested[query] = true
		})
	}

	// A day, scraped once an hour.
	t.Run("docs/metrics.md, yesterday", func(t *testing.T) {
		c := ruleCase{Interval: "1h", InputSeries: []ruleSeries{
			{mean + "1h" + eth0, "1 9x22 1.2"}, {variance + "1h" + eth0, "0.0375 9x22 0.01"}, {n + "1h" + eth0, "500 9x22 400"},
		}}
		query := queryWith(t, "docs/metrics.md", "offset 1d")
		c.expectVector(24*60, query, map[string]float64{eth0: 20})
		tested[query] = true
		if output, err := c.runEvery(t, "1h"); err != nil {
			t.Errorf("%v:\n%s", err, output)
		}
	})
	t.Run("docs/metrics.md, exporters that could do more than read their counters", func(t *testing.T) {
		const query = "xdp_audit_privileges_capabilities > 0 or xdp_audit_privileges_landlock_abi == 0"
		text, err := os.ReadFile("../../docs/metrics.md")
		if err != nil || !strings.Contains(string(text), "`"+query+"`") {
			t.Fatalf("docs/metrics.md does not have the query: %v", err)
		}
		c := ruleCase{Interval: "1m", InputSeries: append(each("xdp_audit_privileges_capabilities", 0, 3, 0), each("xdp_audit_privileges_landlock_abi", 6, 6, 0)...)}
		c.expectVector(10, query, map[string]float64{host(1): 3, host(2): 0})
		check(t, c)
	})

	documents, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, document := range append(documents, "../../README.md", "../../deploy/README.md", "../../SECURITY.md") {
		name := strings.TrimPrefix(document, "../../")
		for _, query := range documentedQueries(t, name) {
			if !tested[query] {
				t.Errorf("%s has a query without a case here: %s", name, query)
			}
		}
	}
}
