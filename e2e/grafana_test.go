// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"bytes"
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

	"github.com/go-logfmt/logfmt"

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
		"prometheus.yml": func(text string) string {
			text = replaceAll(l.t, text, `- targets: ["127.0.0.1:9400"]`, `- {targets: ["127.0.0.1:9400"], labels: {cluster: lab}}`)
			return replaceAll(l.t, text, ": 15s", ": 250ms")
		},
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
	return strings.NewReplacer("$__rate_interval", "3s", "$job", "(xdp_audit)", "$cluster", ".*", "$instance", instance, "$device", device).
		Replace(shortened(t, expr))
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
	began, trail := time.Now(), filepath.Join(t.TempDir(), "trail")
	l.startExporter("--audit.device="+device, "--audit.device=audited1", "--collector.covert", "--trail.file="+trail,
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
		for _, a := range d.Annotations.List {
			t.Run(file+" annotation "+a.Name, func(t *testing.T) { l.checkRestarts(t, client, a, began) })
		}
		for _, panel := range d.Panels {
			for _, q := range panel.Targets {
				if panel.Datasource.Type == "loki" {
					t.Run(file+" "+panel.Title, func(t *testing.T) { l.checkRecords(t, q.Expr, trail) })
					continue
				}
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
		if v.Type != "datasource" || v.Query != map[string]string{"datasource": "prometheus", "loki": "loki"}[v.Name] {
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
	want := map[string][]string{"job": {"xdp_audit"}, "cluster": {"lab"}, "instance": {address}, "device": {device, "audited1"}}[v.Name]
	if len(values) != len(want) {
		t.Errorf("it offers %v, want %v", values, want)
	}
	for _, value := range want {
		if !values[value] {
			t.Errorf("it offers %v, want %v", values, want)
		}
	}
}

// checkRestarts expects the values of an annotation query to be the time at which the exporter
// started, in milliseconds, as Grafana reads them.
func (l *lab) checkRestarts(t *testing.T, client *http.Client, a grafanaAnnotation, began time.Time) {
	t.Helper()
	if a.Datasource.UID != "${datasource}" || !a.UseValueForTime {
		t.Errorf("it is %+v, want values that are times", a)
	}
	l.checkTarget(t, client, grafanaTarget{Expr: a.Expr, LegendFormat: a.TextFormat, Range: true}, ".*", ".*", "")
	series, err := l.evaluate(client, substituted(t, a.Expr, address, device), false)
	if err != nil || len(series) != 1 {
		t.Fatalf("%d series: %v", len(series), err)
	}
	text, _ := series[0].Value[1].(string)
	// The kernel says when a process started in hundredths of a second.
	milliseconds, err := strconv.ParseFloat(text, 64)
	if at := time.UnixMilli(int64(milliseconds)); err != nil || at.Before(began.Add(-time.Second)) || at.After(time.Now()) {
		t.Errorf("the exporter started at %v, want after %v: %v", at, began, err)
	}
}

// lokiFilter matches the stage of a query that keeps lines by one of their fields.
var lokiFilter = regexp.MustCompile(` \| (\w+)=~"([^"]*)"`)

// checkRecords expects the query of a panel to select the streams of the exporter, and of the lines
// of the trail those of the flagged packets of the device. There is no Loki here: the test does
// what Loki does with these stages, and knows no others.
func (l *lab) checkRecords(t *testing.T, query, trail string) {
	t.Helper()
	query = substituted(t, query, address, device)
	stages, isOfExporter := strings.CutPrefix(query, `{job=~"(xdp_audit)",cluster=~".*",instance=~"`+address+`"} | logfmt`)
	filters := lokiFilter.FindAllStringSubmatch(stages, -1)
	if !isOfExporter || lokiFilter.ReplaceAllString(stages, "") != "" || len(filters) == 0 {
		t.Fatalf("%s is not of the exporter, or has stages that the test does not know", query)
	}
	document, err := os.ReadFile("../docs/trail.md")
	if err != nil {
		t.Fatal(err)
	}
	// The traffic here has no signs of a channel.
	covert := regexp.MustCompile(`(?m)^time=\S+ device=(\S+) covert=.+\n`).FindSubmatch(document)
	if covert == nil {
		t.Fatal("docs/trail.md has no record of a window")
	}
	window := strings.Replace(string(covert[0]), string(covert[1]), device, 1)
	if err := l.tryPoll(func() error {
		text, err := os.ReadFile(trail)
		if err != nil {
			return err
		}
		text = append(text[:bytes.LastIndexByte(text, '\n')+1], window...)
		// Lines by whether they are shown, and by device.
		found := map[bool]map[string]int{true: {}, false: {}}
		records := logfmt.NewDecoder(bytes.NewReader(text))
		for records.ScanRecord() {
			fields := map[string]string{}
			for records.ScanKeyval() {
				fields[string(records.Key())] = string(records.Value())
			}
			isShown := true
			for _, filter := range filters {
				isShown = isShown && regexp.MustCompile("^(?:"+filter[2]+")$").MatchString(fields[filter[1]])
			}
			if isFlagged := fields["direction"] != ""; isShown && !isFlagged || !isShown && isFlagged && fields["device"] == device {
				t.Errorf("shown is %v: %v", isShown, fields)
			}
			found[isShown][fields["device"]]++
		}
		if len(found[true]) != 1 || found[true][device] == 0 || found[false]["audited1"] == 0 {
			err = fmt.Errorf("lines by whether they are shown and by device: %v", found)
		}
		return errors.Join(err, records.Err())
	}); err != nil {
		t.Fatal(err)
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
