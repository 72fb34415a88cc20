// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package rules

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// dashboardQueries returns the queries of the dashboard of devices that have a part.
func dashboardQueries(t *testing.T, path, part string) (queries []string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	replacer := strings.NewReplacer("$__rate_interval", "5m", "$job", "xdp_audit", "$cluster", ".*", "$instance", "a:9400", "$device", "eth0")
	for _, panel := range board.Panels {
		for _, target := range panel.Targets {
			if strings.Contains(target.Expr, part) {
				queries = append(queries, replacer.Replace(target.Expr))
			}
		}
	}
	return queries
}

// The quantiles of the dashboard are those of the classic histogram where Prometheus stores no
// native ones.
func TestQuantilesOfClassicHistograms(t *testing.T) {
	const labels = `{job="xdp_audit",instance="a:9400",device="eth0",le=`
	queries := dashboardQueries(t, "../../deploy/grafana/dashboards/device.json", "xdp_audit_delta_seconds_bucket")
	want := []float64{0.5 + 0.5*50/80, 1.5, 1.95}
	if len(queries) != len(want) {
		t.Fatalf("%d queries: %q", len(queries), queries)
	}
	for i, query := range queries {
		c := ruleCase{Interval: "1m", InputSeries: []ruleSeries{
			{"xdp_audit_delta_seconds_bucket" + labels + `"0.5"}`, "0+0x10"}, {"xdp_audit_delta_seconds_bucket" + labels + `"1"}`, "0+80x10"},
			{"xdp_audit_delta_seconds_bucket" + labels + `"2"}`, "0+100x10"}, {"xdp_audit_delta_seconds_bucket" + labels + `"+Inf"}`, "0+100x10"},
		}}
		c.expectVector(10, query, map[string]float64{"{}": want[i]})
		check(t, c)
	}
}

// The table of hooks has the devices without a hook.
func TestTableOfHooks(t *testing.T) {
	const eth0, eth1 = `{job="xdp_audit",instance="a:9400",device="eth0"}`, `{job="xdp_audit",instance="a:9400",device="eth1"}`
	queries := dashboardQueries(t, "../../deploy/grafana/dashboards/fleet.json", "xdp_audit_hook_info")
	if len(queries) != 1 {
		t.Fatalf("%q", queries)
	}
	info := strings.TrimSuffix(eth0, "}") + `,mode="drv"}`
	c := ruleCase{Interval: "1m", InputSeries: []ruleSeries{
		{"xdp_audit_hook_info" + info, "1x10"}, {"xdp_audit_hook_up" + eth0, "1x10"}, {"xdp_audit_hook_up" + eth1, "0x10"},
	}}
	c.expectVector(10, strings.ReplaceAll(queries[0], `device=~"eth0"`, `device=~".*"`), map[string]float64{info: 1, eth1: 0})
	check(t, c)
}
