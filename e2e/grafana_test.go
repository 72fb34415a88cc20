// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// mayBeEmpty are the panels whose data depends on settings that the test must not change, or on
// requests that it does not send.
func mayBeEmpty() map[string]string {
	const runtime = "the kernel accounts for run time only while kernel.bpf_stats_enabled is 1, a setting of the whole host"
	const requests = "no client here sends requests of two classes"
	return map[string]string{
		"Program, per run": runtime, "Program, cores": runtime, "Effect on response times": requests, "Median response time": requests,
	}
}

// shortened replaces the windows of rules and dashboards by short ones in the same order, so
// that the test need not wait for long.
func shortened(t *testing.T, text string) string {
	t.Helper()
	windows := map[string]string{
		"30s": "1s", "1m30s": "2s", "2m": "2s", "4m30s": "2s", "59m30s": "4s", "23h59m30s": "8s", "5m": "2s", "5m30s": "3s", "6m": "3s", "15m": "3s", "30m": "2s",
		"1h": "4s", "1h30s": "5s", "61m": "5s", "1d": "8s", "1d30s": "9s", "1441m": "9s",
	}
	return regexp.MustCompile(`(offset |\[)((?:\d+[smhd])+)`).ReplaceAllStringFunc(text, func(match string) string {
		digits := strings.IndexFunc(match, func(r rune) bool { return r >= '0' && r <= '9' })
		window, isKnown := windows[match[digits:]]
		if !isKnown {
			t.Fatalf("%q is a window that the test does not shorten", match)
		}
		return match[:digits] + window
	})
}

// replaceAll replaces text that must occur.
func replaceAll(t *testing.T, text, before, after string) string {
	t.Helper()
	if !strings.Contains(text, before) {
		t.Fatalf("there is no %q", before)
	}
	return strings.ReplaceAll(text, before, after)
}

// startShortened starts a Prometheus with the configuration and the rules of deploy, at short
// intervals.
func (l *lab) startShortened(server string) *process {
	l.t.Helper()
	folder := l.t.TempDir()
	if err := os.Mkdir(filepath.Join(folder, "rules"), 0o700); err != nil {
		l.t.Fatal(err)
	}
	for name, edit := range map[string]func(string) string{
		"prometheus.yml": func(text string) string { return replaceAll(l.t, text, ": 15s", ": 250ms") },
		"rules/xdp_audit_recording.yml": func(text string) string {
			text = replaceAll(l.t, replaceAll(l.t, text, ">= 3000", ">= 2"), ">= 24", ">= 2")
			return replaceAll(l.t, shortened(l.t, text), "interval: 1m", "interval: 1s")
		},
		"rules/xdp_audit_alerts.yml": func(text string) string { return shortened(l.t, text) },
	} {
		text, err := os.ReadFile(filepath.Join("../deploy", name))
		if err != nil {
			l.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, name), []byte(edit(string(text))), 0o600); err != nil {
			l.t.Fatal(err)
		}
	}
	return l.start(server, []string{
		"--config.file=" + filepath.Join(folder, "prometheus.yml"), "--storage.tsdb.path=" + filepath.Join(folder, "data"),
		"--web.listen-address=" + prometheusAddress, "--enable-feature=native-histograms", "--log.level=warn",
	})
}

// keepSending sends a packet per millisecond until the test ends. Every fiftieth packet is late,
// and from time to time one belongs to a new flow.
func (l *lab) keepSending(to netip.Addr) {
	l.t.Helper()
	f := l.newFlow(to)
	random := rand.New(rand.NewPCG(1, 2))
	ctx, stop := context.WithCancel(l.ctx)
	sent := make(chan error, 1)
	go func() {
		sent <- netlab.Pace(ctx, func(i int) time.Duration {
			gap := time.Millisecond + time.Duration(random.NormFloat64()*50e3)
			if i%50 == 49 {
				gap += 5 * time.Millisecond
			}
			return gap
		}, func(i int) error {
			_, err := f.client.Write(make([]byte, payloadBytes))
			if err == nil && i%100 == 0 {
				err = l.sendOnce(f.server.LocalAddr().String())
			}
			if ctx.Err() != nil {
				return nil // the end of the test cancels a dial
			}
			return err
		})
	}()
	l.t.Cleanup(func() {
		stop()
		if err := <-sent; err != nil {
			l.t.Error(err)
		}
	})
}

// sendOnce sends the only packet of a flow.
func (l *lab) sendOnce(to string) error {
	conn, err := l.sender.Namespace.Dial(l.ctx, "udp", to)
	if err != nil {
		return err
	}
	_, err = conn.Write(make([]byte, payloadBytes))
	return errors.Join(err, conn.Close())
}

// answer is the response of Prometheus to a query.
type answer struct {
	Status, Error string
	Data          struct{ Result []answerSeries }
}

type answerSeries struct {
	Metric     map[string]string
	Value      []any
	Values     [][]any
	Histogram  []any
	Histograms [][]any
}

// hasValue reports whether any series has a number or a histogram.
func (s answerSeries) hasValue() bool {
	for _, v := range append(s.Values, s.Value) {
		if len(v) < 2 {
			continue
		}
		text, _ := v[1].(string)
		if number, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(number) && !math.IsInf(number, 0) {
			return true
		}
	}
	return len(s.Histogram) > 0 || len(s.Histograms) > 0
}

// ask sends a request to the API of Prometheus.
func (l *lab) ask(client *http.Client, path string, values url.Values, answer any) error {
	target := "http://" + prometheusAddress + "/api/v1/" + path + "?" + values.Encode()
	request, err := http.NewRequestWithContext(l.ctx, http.MethodGet, target, nil)
	if err != nil {
		return err
	}
	_, body, err := do(client, request)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(body), answer)
}

// evaluate runs a query at the present time, or over the last seconds.
func (l *lab) evaluate(client *http.Client, expr string, isRange bool) (series []answerSeries, err error) {
	var a answer
	if isRange {
		now := time.Now()
		seconds := func(at time.Time) string { return strconv.FormatInt(at.Unix(), 10) }
		err = l.ask(client, "query_range", url.Values{
			"query": {expr}, "start": {seconds(now.Add(-3 * time.Second))}, "end": {seconds(now)}, "step": {"1"},
		}, &a)
	} else {
		err = l.ask(client, "query", url.Values{"query": {expr}}, &a)
	}
	if err == nil && a.Status != "success" {
		err = fmt.Errorf("%s: %s", expr, a.Error)
	}
	return a.Data.Result, err
}

// substituted returns a query with the values that Grafana substitutes.
func substituted(t *testing.T, expr, instance, device string) string {
	t.Helper()
	return strings.NewReplacer("$__rate_interval", "3s", "$instance", instance, "$device", device).Replace(shortened(t, expr))
}

// Every query of every dashboard is sent to a Prometheus that scrapes the exporter under
// traffic, with the rules of deploy. Panels that should have data have data, and their legends
// use labels that exist.
func TestDashboardsShowWhatPrometheusHas(t *testing.T) {
	l := newLab(t)
	server := findTool(t, "prometheus")
	second, _ := l.connect("audited1", "sender1", 1)
	assessments := filepath.Join(t.TempDir(), "leak.yml")
	err := os.WriteFile(assessments, []byte(oneAssessment), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	l.startExporter("--audit.device="+device, "--audit.device=audited1", "--collector.covert", "--trail.file="+filepath.Join(t.TempDir(), "trail"),
		"--leak.config.file="+assessments)
	l.keepSending(l.audited.IPv4.Addr())
	l.keepSending(second.IPv4.Addr())
	p := l.startShortened(server)
	client := l.client()

	// The statistics with the longest windows appear last.
	ctx, cancel := context.WithTimeout(l.ctx, 3*patience)
	defer cancel()
	if err := netlab.Poll(ctx, func() error {
		if p.hasEnded() {
			t.Fatalf("Prometheus ended: %s", &p.stderr)
		}
		series, err := l.evaluate(client, "job:xdp_audit_delta_octaves:zscore1h_1d", false)
		if err == nil && len(series) != 1 {
			err = fmt.Errorf("%d scores of an hour against a day, want 1", len(series))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}

	empty := mayBeEmpty()
	for file, d := range readDashboards(t) {
		for _, v := range d.Templating.List {
			t.Run(file+" variable "+v.Name, func(t *testing.T) { l.checkVariable(t, client, v) })
		}
		for _, panel := range d.Panels {
			for _, q := range panel.Targets {
				t.Run(fmt.Sprintf("%s %s %s", file, panel.Title, q.RefID), func(t *testing.T) {
					l.checkTarget(t, client, q, ".*", ".*", empty[panel.Title])
					l.checkTarget(t, client, q, address, device, empty[panel.Title])
				})
			}
		}
	}
	l.checkRules(client)
	l.checkRecipes(client)
}

func (l *lab) checkVariable(t *testing.T, client *http.Client, v grafanaVariable) {
	t.Helper()
	if v.Type != "query" {
		if v.Type != "datasource" || v.Query != "prometheus" {
			t.Errorf("it is %+v, want a query or a choice of data sources", v)
		}
		return
	}
	parts := labelValues.FindStringSubmatch(v.Query)
	if parts == nil {
		t.Fatalf("%q is not label_values(series, label)", v.Query)
	}
	series, err := l.evaluate(client, fmt.Sprintf("count by (%s) (%s)", parts[2], substituted(t, parts[1], ".*", ".*")), false)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]bool{}
	for _, s := range series {
		values[s.Metric[parts[2]]] = true
	}
	want := map[string][]string{"instance": {address}, "device": {device, "audited1"}}[v.Name]
	if len(values) != len(want) {
		t.Errorf("it offers %v, want %v", values, want)
	}
	for _, value := range want {
		if !values[value] {
			t.Errorf("it offers %v, want %v", values, want)
		}
	}
}

func (l *lab) checkTarget(t *testing.T, client *http.Client, q grafanaTarget, instance, device, mayBeEmpty string) {
	t.Helper()
	expr := substituted(t, q.Expr, instance, device)
	var series []answerSeries
	err := l.tryPoll(func() (err error) {
		if series, err = l.evaluate(client, expr, q.Range); err != nil {
			t.Fatal(err) // a refused query stays refused
		}
		for _, s := range series {
			if s.hasValue() {
				return nil
			}
		}
		if mayBeEmpty != "" && len(series) == 0 {
			return nil
		}
		return fmt.Errorf("%s: %d series, none with a value", expr, len(series))
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(series) == 0 {
		t.Logf("empty: %s", mayBeEmpty)
	}
	for _, s := range series {
		for _, label := range grafanaLegend.FindAllStringSubmatch(q.LegendFormat, -1) {
			if s.Metric[label[1]] == "" {
				t.Errorf("the legend %q has no label in %v", q.LegendFormat, s.Metric)
			}
		}
		if q.Format == "heatmap" && len(s.Histogram) == 0 && len(s.Histograms) == 0 {
			t.Errorf("a heatmap has no histogram: %v", s.Values)
		}
	}
}

// checkRules expects every rule to be evaluated without an error.
func (l *lab) checkRules(client *http.Client) {
	l.t.Helper()
	var rules struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Name, Health, LastError string }
			}
		}
	}
	count := 0
	if err := l.ask(client, "rules", nil, &rules); err != nil {
		l.t.Fatal(err)
	}
	for _, group := range rules.Data.Groups {
		for _, rule := range group.Rules {
			count++
			if rule.Health == "err" || rule.LastError != "" {
				l.t.Errorf("the rule %s is %s: %s", rule.Name, rule.Health, rule.LastError)
			}
		}
	}
	if count < 40 {
		l.t.Errorf("%d rules, want those of deploy/rules", count)
	}
}

// checkRecipes expects Prometheus to accept every query of the documents.
func (l *lab) checkRecipes(client *http.Client) {
	l.t.Helper()
	for _, file := range []string{"../README.md", "../docs/metrics.md"} {
		text, err := os.ReadFile(file)
		if err != nil {
			l.t.Fatal(err)
		}
		queries := regexp.MustCompile("(?s)```promql\n(.*?)```").FindAllStringSubmatch(string(text), -1)
		if len(queries) == 0 {
			l.t.Errorf("%s has no queries", file)
		}
		for _, query := range queries {
			if _, err := l.evaluate(client, query[1], false); err != nil {
				l.t.Errorf("%s: %v", file, err)
			}
		}
	}
}
