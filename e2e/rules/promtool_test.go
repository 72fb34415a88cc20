// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package rules tests the rules for Prometheus with promtool.
package rules

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The rules, relative to this directory.
const (
	recordingRules = "../../deploy/rules/xdp_audit_recording.yml"
	alertingRules  = "../../deploy/rules/xdp_audit_alerts.yml"
)

// promtool runs promtool, and returns its output. The error is not nil if promtool found an
// error.
func promtool(t *testing.T, args ...string) (output string, err error) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("REQUIRE_BPF") == "1" {
			t.Fatalf("promtool is not installed: %v", err)
		}
		t.Skipf("promtool is not installed: %v", err)
	}
	text, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	return string(text), err
}

// The cases in YAML files.
func TestLiteralCases(t *testing.T) {
	files, err := filepath.Glob("*.yml")
	if err != nil || len(files) == 0 {
		t.Fatalf("there are no cases: %v", err)
	}
	for _, file := range files {
		t.Run(file, func(t *testing.T) {
			if output, err := promtool(t, "test", "rules", file); err != nil {
				t.Errorf("%v:\n%s", err, output)
			}
		})
	}
}

// ruleTest is a test file for promtool test rules. It is written as JSON, which is valid YAML.
type ruleTest struct {
	RuleFiles          []string   `json:"rule_files"`
	EvaluationInterval string     `json:"evaluation_interval"`
	Tests              []ruleCase `json:"tests"`
}

type ruleCase struct {
	Interval    string       `json:"interval"` // between the values of a series
	InputSeries []ruleSeries `json:"input_series"`
	Expressions []ruleExpr   `json:"promql_expr_test"`
}

type ruleSeries struct {
	Series string `json:"series"`
	Values string `json:"values"`
}

type ruleExpr struct {
	Expr    string       `json:"expr"`
	At      string       `json:"eval_time"`
	Samples []ruleSample `json:"exp_samples"`
}

type ruleSample struct {
	Labels string  `json:"labels"`
	Value  float64 `json:"value"`
}

// run checks the case against the recording rules, evaluated once per minute.
func (c ruleCase) run(t *testing.T) (output string, err error) {
	t.Helper()
	return c.runEvery(t, "1m")
}

// runEvery evaluates the rules at another interval.
func (c ruleCase) runEvery(t *testing.T, interval string) (output string, err error) {
	t.Helper()
	rules, err := os.ReadFile(recordingRules)
	if err != nil {
		t.Fatal(err)
	}
	const usual = "interval: 1m"
	if bytes.Count(rules, []byte(usual)) != 1 {
		t.Fatalf("%s does not have %q once", recordingRules, usual)
	}
	cases, err := json.Marshal(ruleTest{[]string{"rules.yml"}, interval, []ruleCase{c}})
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	for name, text := range map[string][]byte{
		"rules.yml": bytes.Replace(rules, []byte(usual), []byte("interval: "+interval), 1), "cases.yml": cases,
	} {
		if err := os.WriteFile(filepath.Join(folder, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return promtool(t, "test", "rules", filepath.Join(folder, "cases.yml"))
}

// expect adds the expectation that a series is within a relative error of a value. series is a
// name with labels.
func (c *ruleCase) expect(minute int, series string, want, tolerance float64) {
	labels := series[strings.IndexByte(series, '{'):]
	c.Expressions = append(c.Expressions, ruleExpr{
		Expr: fmt.Sprintf("abs(%s - %v) <= bool %v", series, want, tolerance*max(want, -want)), At: fmt.Sprintf("%dm", minute),
		Samples: []ruleSample{{labels, 1}},
	})
}

// expectNone adds the expectation that a series does not exist at a time.
func (c *ruleCase) expectNone(minute int, series string) {
	c.Expressions = append(c.Expressions, ruleExpr{Expr: series, At: fmt.Sprintf("%dm", minute), Samples: []ruleSample{}})
}
