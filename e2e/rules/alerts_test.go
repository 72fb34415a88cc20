// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package rules

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"
)

// ruleFile is a file of rules, with the fields that the tests read or change.
type ruleFile struct {
	Groups []struct {
		Name     string
		Interval string `yaml:",omitempty"`
		Rules    []rule
	}
}

type rule struct {
	Record      string `yaml:",omitempty"`
	Alert       string `yaml:",omitempty"`
	Expr        string
	For         string            `yaml:",omitempty"`
	Labels      map[string]string `yaml:",omitempty"`
	Annotations map[string]string `yaml:",omitempty"`
}

func readRules(t *testing.T, path string) (rules ruleFile) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(text, &rules); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return rules
}

// all returns pointers to the rules, so that they can be changed.
func (f *ruleFile) all() (rules []*rule) {
	for g := range f.Groups {
		for r := range f.Groups[g].Rules {
			rules = append(rules, &f.Groups[g].Rules[r])
		}
	}
	return rules
}

// testAlerts runs the literal cases against changed alerts.
func testAlerts(t *testing.T, rules ruleFile) (output string, err error) {
	t.Helper()
	folder := t.TempDir()
	changed, err := yaml.Marshal(rules)
	if err != nil {
		t.Fatal(err)
	}
	// No alert uses the statistics of deltas, which take most of the time.
	recorded := readRules(t, recordingRules)
	group := &recorded.Groups[0]
	group.Rules = slices.DeleteFunc(group.Rules, func(r rule) bool { return strings.Contains(r.Record, "delta") })
	recording, err1 := yaml.Marshal(recorded)
	cases, err2 := os.ReadFile("alerts.yml")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		alertingRules: changed, recordingRules: recording, "alerts.yml": cases,
	} {
		// The cases name the rules by relative paths.
		path := filepath.Join(folder, "e2e", "rules", name)
		err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, text, 0o600))
		if err != nil {
			t.Fatal(err)
		}
	}
	return promtool(t, "test", "rules", filepath.Join(folder, "e2e", "rules", "alerts.yml"))
}

// For every alert there are cases in which it fires and cases in which it does not. An alert
// that always fires, never fires, or does not wait fails them.
func TestTheCasesTellEveryAlert(t *testing.T) {
	if output, err := testAlerts(t, readRules(t, alertingRules)); err != nil {
		t.Fatalf("the alerts as they are: %v:\n%s", err, output)
	}
	for _, test := range []struct {
		description string
		change      func(r *rule)
	}{
		{"always fire", func(r *rule) { r.Expr, r.For = "vector(1)", "" }},
		{"never fire", func(r *rule) { r.Expr = "vector(1) > 2" }},
		{"do not wait", func(r *rule) { r.For = "" }},
	} {
		t.Run(test.description, func(t *testing.T) {
			rules := readRules(t, alertingRules)
			var changed []string
			for _, alert := range rules.all() {
				before := *alert
				if test.change(alert); alert.Expr != before.Expr || alert.For != before.For {
					changed = append(changed, alert.Alert)
				}
			}
			output, err := testAlerts(t, rules)
			for _, name := range changed {
				if err == nil || !strings.Contains(output, name) {
					t.Errorf("no case notices that of %s: %v:\n%s", name, err, output)
				}
			}
		})
	}
}

// A scrape that fails now and then, more often than the alerts wait, ends no alert and delays none.
func TestFailedScrapesEndNoAlert(t *testing.T) {
	bad := map[string][]ruleSeries{}
	for _, test := range []struct{ alert, series, value string }{
		{"XDPAuditExporterDown", `up{job="xdp_audit",instance="down:9400"}`, "0"},
		{"XDPAuditCollectorFailing", `xdp_audit_scrape_collector_success{collector="flags"}`, "0"},
		{"XDPAuditHookDown", `xdp_audit_hook_up{device="down"}`, "0"},
		{"XDPAuditDevicesRefused", `xdp_audit_devices_refused`, "1"},
		{"XDPAuditDeviceInNameOnly", `xdp_audit_hook_up{device="vrf"}`, "1"},
		{"XDPAuditDeviceInNameOnly", `xdp_audit_packets_total{device="vrf"}`, "0"},
		{"XDPAuditDeviceInNameOnly", `xdp_audit_device_received_packets_total{device="vrf"}`, "+1000"},
		{"XDPAuditConfigReloadFailed", `xdp_audit_config_last_reload_successful`, "0"},
		{"XDPAuditFlagBurst", `xdp_audit_flag_excess_score{device="burst"}`, "6"},
		{"XDPAuditFlagExcess", `xdp_audit_flag_excess_score{device="excess"}`, "1"},
		{"XDPAuditCovertFlow", `xdp_audit_covert_alarming_flows{device="covert"}`, "1"},
		{"XDPAuditLeak", `xdp_audit_leak_verdict{verdict="leak"}`, "1"},
		{"XDPAuditLeakInvalid", `xdp_audit_leak_verdict{verdict="invalid"}`, "1"},
	} {
		var values []string
		for minute := range 60 {
			value := test.value
			if step, isCounter := strings.CutPrefix(value, "+"); isCounter {
				value = fmt.Sprintf("%d%s", minute, strings.TrimPrefix(step, "1"))
			}
			if minute%4 == 3 && !strings.HasPrefix(test.series, "up{") {
				value = "stale"
			}
			values = append(values, value)
		}
		bad[test.alert] = append(bad[test.alert], ruleSeries{test.series, strings.Join(values, " ")})
	}
	rules := readRules(t, alertingRules)
	c := ruleCase{Interval: "1m"}
	for _, alert := range rules.all() {
		series := bad[alert.Alert]
		if len(series) == 0 {
			if !regexp.MustCompile(`\b(rate|increase|absent)\(`).MatchString(alert.Expr) {
				t.Errorf("%s: add its series to this test", alert.Alert)
			}
			continue
		}
		c.InputSeries = append(c.InputSeries, series...)
		for minute := 35; minute < 60; minute++ {
			c.Expressions = append(c.Expressions, ruleExpr{
				Expr:    fmt.Sprintf(`group(ALERTS{alertname=%q,alertstate="firing"})`, alert.Alert),
				At:      fmt.Sprintf("%dm", minute),
				Samples: []ruleSample{{"{}", 1}},
			})
		}
	}
	testScores(t, c)
}

// Every alert and docs/runbooks.md tell the person on call what to do.
func TestAlertsAreExplained(t *testing.T) {
	text, err := os.ReadFile("../../docs/runbooks.md")
	if err != nil {
		t.Fatal(err)
	}
	var headings, names []string
	for line := range strings.Lines(string(text)) {
		if name, isHeading := strings.CutPrefix(line, "## XDP"); isHeading {
			headings = append(headings, "XDP"+strings.TrimSpace(name))
		}
	}
	rules := readRules(t, alertingRules)
	for _, alert := range rules.all() {
		names = append(names, alert.Alert)
		for _, annotation := range []string{"summary", "description"} {
			if alert.Annotations[annotation] == "" {
				t.Errorf("%s has no %s", alert.Alert, annotation)
			}
		}
		if want := "https://github.com/xdp-audit/xdp_audit_exporter/blob/main/docs/runbooks.md#" + strings.ToLower(alert.Alert); alert.Annotations["runbook_url"] != want {
			t.Errorf("%s has the runbook_url %s, want %s", alert.Alert, alert.Annotations["runbook_url"], want)
		}
		if !slices.Contains([]string{"critical", "warning"}, alert.Labels["severity"]) {
			t.Errorf("%s has the severity %q", alert.Alert, alert.Labels["severity"])
		}
	}
	if !slices.Equal(names, headings) {
		t.Errorf("docs/runbooks.md has the headings %v, want the alerts %v", headings, names)
	}
}

// A rule for a metric that does not exist would never have a value.
func TestRulesAskForMetricsThatExist(t *testing.T) {
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	recorded := map[string]bool{}
	metric, series := regexp.MustCompile(`(?:^|[^:\w])xdp_audit_(\w+)`), regexp.MustCompile(`\w+:\w+:\w+`)
	for _, path := range []string{recordingRules, alertingRules} {
		rules := readRules(t, path)
		for _, r := range rules.all() {
			names := metric.FindAllStringSubmatch(r.Expr, -1)
			for _, name := range names {
				if !strings.Contains(string(text), "| `"+name[1]+"` |") {
					t.Errorf("%s%s: docs/metrics.md does not know xdp_audit_%s", r.Record, r.Alert, name[1])
				}
			}
			uses := series.FindAllString(r.Expr, -1)
			for _, name := range uses {
				if !recorded[name] {
					t.Errorf("%s%s: no rule before it records %s", r.Record, r.Alert, name)
				}
			}
			if len(names)+len(uses) == 0 && !strings.Contains(r.Expr, `up{job="xdp_audit"}`) {
				t.Errorf("%s%s asks for nothing: %s", r.Record, r.Alert, r.Expr)
			}
			recorded[r.Record] = true
		}
	}
}
