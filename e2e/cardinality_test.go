// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"github.com/xdp-audit/xdp_audit_exporter/internal/document"
)

// seriesCount is the number of series that a server stores for a target, by subject.
type seriesCount struct {
	device   int // of one device
	shared   int // of the audit, without a device
	exporter int // go_*, process_* and promhttp_*
	added    int // by the server: up and four about the scrape
}

func (c seriesCount) total(devices int) int {
	return c.shared + c.exporter + c.added + devices*c.device
}

// addedByPrometheus is the number of series that a server adds for each target.
const addedByPrometheus = 5

// countSeries counts the series that a server stores of a page. A native histogram is one
// series; a classic one is a series per bucket and two more.
func countSeries(families map[string]*dto.MetricFamily, device string, isNative bool) seriesCount {
	c := seriesCount{added: addedByPrometheus}
	for name, family := range families {
		for _, m := range family.GetMetric() {
			n := 1
			switch {
			case m.GetSummary() != nil:
				n = len(m.GetSummary().GetQuantile()) + 2
			case m.GetHistogram() != nil && (!isNative || m.GetHistogram().Schema == nil):
				n = len(m.GetHistogram().GetBucket()) + 2
			}
			of := ""
			for _, label := range m.GetLabel() {
				if label.GetName() == "device" {
					of = label.GetValue()
				}
			}
			switch {
			case of == device:
				c.device += n
			case of == "" && strings.HasPrefix(name, "xdp_audit_"):
				c.shared += n
			case of == "":
				c.exporter += n
			}
		}
	}
	return c
}

// The number of series in docs/fleet.md is the number that the exporter has and that Prometheus
// stores. FLEET_REPORT=path writes the figures.
func TestCardinality(t *testing.T) {
	l := newLab(t)
	server := findTool(t, "prometheus")
	l.connect("audited1", "sender1", 1)
	devices := []string{device, "audited1"}
	e := l.startExporter("--audit.device=" + strings.Join(devices, ","))
	l.send(l.newFlow(l.audited.IPv4.Addr()), 1000)
	e.atRest()

	text, err := parsePage(e.get("/metrics", http.StatusOK))
	if err != nil {
		t.Fatal(err)
	}
	// parsePage removes the namespace, which distinguishes the audit's own series from the
	// others.
	whole := map[string]*dto.MetricFamily{}
	for _, family := range text {
		whole[family.GetName()] = family
	}
	classic := countSeries(whole, device, false)
	native := countSeries(e.scrapeProtobuf(), device, true)
	for _, other := range devices[1:] {
		if got := countSeries(whole, other, false).device; got != classic.device {
			t.Errorf("%s has %d series, %s has %d", other, got, device, classic.device)
		}
	}

	for _, test := range []struct {
		description string
		flags       []string
		want        seriesCount
	}{
		{"classic", nil, classic},
		{"native", []string{"--enable-feature=native-histograms"}, native},
	} {
		t.Run(test.description, func(t *testing.T) {
			if got, want := l.stored(t, server, test.flags), test.want.total(len(devices)); got != want {
				t.Errorf("Prometheus stores %d series, the page has %d", got, want)
			}
		})
	}

	report := fleetReport(classic, native)
	if path := os.Getenv("FLEET_REPORT"); path != "" {
		if err := document.Update(path, "series", report); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.ReadFile("../docs/fleet.md")
	if err != nil {
		t.Fatal(err)
	}
	after, err := document.Replace(string(before), "series", report)
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != after {
		t.Errorf("docs/fleet.md has other figures: run make fleet-figures. Those of the exporter:\n%s", report)
	}
	e.expectStopped()
}

// scrapeProtobuf scrapes like a server that accepts native histograms.
func (e *exporter) scrapeProtobuf() map[string]*dto.MetricFamily {
	e.lab.t.Helper()
	request, err := http.NewRequestWithContext(e.lab.ctx, http.MethodGet, e.scheme+"://"+address+"/metrics", nil)
	if err != nil {
		e.lab.t.Fatal(err)
	}
	format := expfmt.NewFormat(expfmt.TypeProtoDelim)
	request.Header.Set("Accept", string(format))
	response, err := e.client.Do(request)
	if err != nil {
		e.lab.t.Fatal(err)
	}
	defer response.Body.Close()
	decoder := expfmt.NewDecoder(response.Body, expfmt.ResponseFormat(response.Header))
	families := map[string]*dto.MetricFamily{}
	for {
		family := &dto.MetricFamily{}
		if err := decoder.Decode(family); err != nil {
			if len(families) == 0 || !strings.HasSuffix(err.Error(), "EOF") {
				e.lab.t.Fatal(err)
			}
			return families
		}
		families[family.GetName()] = family
	}
}

// stored returns the number of series that a Prometheus server stores of the exporter.
func (l *lab) stored(t *testing.T, server string, flags []string) int {
	t.Helper()
	folder := t.TempDir()
	config := filepath.Join(folder, "prometheus.yml")
	text := fmt.Sprintf("scrape_configs:\n- job_name: xdp_audit\n  scrape_interval: 500ms\n  scrape_timeout: 500ms\n"+
		"  static_configs:\n  - targets: [%q]\n", address)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := l.start(server, append([]string{
		"--config.file=" + config, "--storage.tsdb.path=" + filepath.Join(folder, "data"),
		"--web.listen-address=" + prometheusAddress, "--log.level=warn",
	}, flags...))
	client := l.client()
	count := 0.0
	l.poll(func() (err error) {
		if p.hasEnded() {
			t.Fatalf("Prometheus ended: %s", &p.stderr)
		}
		// Wait for complete scrapes: up is written last, and promhttp_* does not count the first
		// scrape.
		if _, err = l.query(client, `min_over_time(up{job="xdp_audit"}[1m]) == 1 and count_over_time(up{job="xdp_audit"}[1m]) > 2`); err != nil {
			return err
		}
		count, err = l.query(client, `count({job="xdp_audit"})`)
		return err
	})
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-p.ended
	return int(count)
}

// fleetReport returns the table of docs/fleet.md.
func fleetReport(classic, native seriesCount) string {
	const interval = 15
	var b strings.Builder
	b.WriteString("| series of a node | classic histogram | native histogram |\n| --- | --: | --: |\n")
	for _, row := range []struct {
		name            string
		classic, native int
	}{
		{"per device", classic.device, native.device},
		{"per exporter, independent of the devices", classic.shared, native.shared},
		{"`go_*`, `process_*`, `promhttp_*` (none with `--web.disable-exporter-metrics`)", classic.exporter, native.exporter},
		{"added by Prometheus per target", classic.added, native.added},
		{"**one device**", classic.total(1), native.total(1)},
		{"**two devices**", classic.total(2), native.total(2)},
		{"**four devices**", classic.total(4), native.total(4)},
	} {
		fmt.Fprintf(&b, "| %s | %d | %d |\n", row.name, row.classic, row.native)
	}
	b.WriteString("\n| nodes of two devices, scraped every 15 s | classic: series | samples per second | native: series | samples per second |\n")
	b.WriteString("| --: | --: | --: | --: | --: |\n")
	for _, nodes := range []int{100, 1000, 10000} {
		c, n := nodes*classic.total(2), nodes*native.total(2)
		fmt.Fprintf(&b, "| %d | %d | %d | %d | %d |\n", nodes, c, c/interval, n, n/interval)
	}
	return b.String()
}

// Prometheus accepts the configurations in docs/fleet.md.
func TestFleetConfigurations(t *testing.T) {
	promtool := findTool(t, "promtool")
	text, err := os.ReadFile("../docs/fleet.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "```yaml\n")[1:]
	if len(blocks) != 3 {
		t.Errorf("%d configurations, want 3", len(blocks))
	}
	for i, block := range blocks {
		configuration, _, _ := strings.Cut(block, "```")
		path := filepath.Join(t.TempDir(), "prometheus.yml")
		if err := os.WriteFile(path, []byte(configuration), 0o600); err != nil {
			t.Fatal(err)
		}
		if output, err := exec.Command(promtool, "check", "config", path).CombinedOutput(); err != nil {
			t.Errorf("configuration %d: %v\n%s\n%s", i, err, output, configuration)
		}
	}
}
