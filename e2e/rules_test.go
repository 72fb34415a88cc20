// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gonum.org/v1/gonum/stat"
)

// The recording rules compute the statistics of the deltas that were sent, and the same score
// for a late packet as the exporter.
func TestRulesOnCountersOfTheKernel(t *testing.T) {
	const deviation, start = 20e3, 1e12 // ns
	random := rand.New(rand.NewPCG(7, 1))
	normal := func(n int, mean float64) []float64 {
		deltas := make([]float64, n)
		for i := range deltas {
			deltas[i] = math.Round(mean + deviation*random.NormFloat64())
		}
		return deltas
	}
	first, usual, late, shifted := normal(200, 1e6), normal(50_000, 1e6), []float64{1e6 + 7*deviation}, normal(5000, 1.004e6)

	l := newLab(t)
	promtool := findTool(t, "promtool")
	e := l.startExporter("--audit.device="+device, "--audit.clock=metadata", "--audit.window=1000000")
	now, sent := uint64(start), 0
	send := func(deltas []float64) scrape {
		t.Helper()
		var times []uint64
		if sent == 0 {
			times = append(times, now)
		}
		for _, delta := range deltas {
			now += uint64(delta)
			times = append(times, now)
		}
		if err := newGenerator(t, l.sender, generatorOptions{times: times}).send(generatedFrame(), len(times)); err != nil {
			t.Fatal(err)
		}
		sent += len(times)
		s := e.atRest()
		if got := s.sum("packets_total"); got != float64(sent) {
			t.Fatalf("%v packets were counted, want %d", got, sent)
		}
		return s
	}

	// The values scraped from minute one on.
	minutes := map[int]scrape{0: send(first), 5: send(usual), 61: send(late), 66: send(shifted)}
	const last = 70
	input := []map[string]string{}
	for _, name := range []string{
		"deltas_total", "delta_reference_seconds", "delta_deviation_above_seconds_total", "delta_deviation_below_seconds_total",
		"delta_deviation_seconds_squared_total", "last_delta_seconds", "last_tscore",
	} {
		var values []string
		var value float64
		for minute := range last + 1 {
			if s, isNew := minutes[minute]; isNew {
				value = s.sum(name)
			}
			values = append(values, fmt.Sprint(value))
		}
		input = append(input, map[string]string{"series": "xdp_audit_" + name + `{device="eth0"}`, "values": strings.Join(values, " ")})
	}

	mean1, variance1 := stat.MeanVariance(shifted, nil)
	mean2, variance2 := stat.MeanVariance(append(usual, late...), nil)
	welch := (mean1 - mean2) / math.Sqrt(variance1/float64(len(shifted))+variance2/float64(len(usual)+1))
	t.Logf("Welch's t is %.3f, and the late packet has a score of %.3f", welch, minutes[61].sum("last_tscore"))
	const of = "instance_device:xdp_audit_delta_seconds:"
	expect := []map[string]any{}
	for _, check := range []struct {
		expr   string
		minute int
	}{
		{fmt.Sprintf("abs(%stscore5m_1h / %v - 1) < bool 1e-6", of, welch), last},
		{fmt.Sprintf("abs(%svariance5m / %v - 1) < bool 1e-6", of, variance1*1e-18), last},
		{fmt.Sprintf("abs(%svariance1h offset 5m / %v - 1) < bool 1e-6", of, variance2*1e-18), last},
		{fmt.Sprintf("instance_device:xdp_audit_deltas:increase5m == bool %d", len(shifted)), last},
		// The score of the late packet against the window before it, as the exporter computes
		// it: t = d / (s · √(1 + 1/n)).
		{"abs((xdp_audit_last_delta_seconds - " + of + "mean1h offset 1m) / (" + of + "stddev1h offset 1m * " +
			"sqrt(1 + 1 / (instance_device:xdp_audit_deltas:increase1h offset 1m))) / xdp_audit_last_tscore - 1) < bool 0.01", 62},
	} {
		expect = append(expect, map[string]any{
			"expr": check.expr, "eval_time": fmt.Sprintf("%dm", check.minute), "exp_samples": []map[string]any{{"labels": `{device="eth0"}`, "value": 1}},
		})
	}
	rules, err := filepath.Abs("../deploy/rules/xdp_audit_recording.yml")
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(map[string]any{ // JSON is YAML
		"rule_files": []string{rules}, "evaluation_interval": "1m",
		"tests": []map[string]any{{"interval": "1m", "input_series": input, "promql_expr_test": expect}},
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "cases.yml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if output, err := exec.CommandContext(t.Context(), promtool, "test", "rules", path).CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, output)
	}
	e.expectStopped()
}
