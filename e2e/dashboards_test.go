// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// grafanaDashboard is a dashboard, with the fields that the tests read.
type grafanaDashboard struct {
	UID, Title, Description string
	Panels                  []grafanaPanel
	Templating              struct{ List []grafanaVariable }
	Annotations             struct{ List []grafanaAnnotation }
	Links                   []grafanaLink
}

type grafanaAnnotation struct {
	Name, Expr, TextFormat string
	Datasource             struct{ Type, UID string }
	UseValueForTime        bool
}

type grafanaLink struct{ Title, URL string }

type grafanaPanel struct {
	ID                       int
	Type, Title, Description string
	GridPos                  struct{ X, Y, W, H int }
	Datasource               struct{ Type, UID string }
	FieldConfig              struct {
		Defaults struct {
			Unit  string
			Links []grafanaLink
		}
		Overrides []struct {
			Matcher    struct{ Options any }
			Properties []struct {
				ID    string
				Value json.RawMessage
			}
		}
	}
	Targets []grafanaTarget
	Panels  []grafanaPanel
}

// links returns the links of a panel: of its series, or of a column of its table.
func (p grafanaPanel) links(t *testing.T) []grafanaLink {
	t.Helper()
	found := p.FieldConfig.Defaults.Links
	for _, override := range p.FieldConfig.Overrides {
		for _, property := range override.Properties {
			if property.ID != "links" {
				continue
			}
			var links []grafanaLink
			if err := json.Unmarshal(property.Value, &links); err != nil || override.Matcher.Options != "device" {
				t.Errorf("%q links from the field %v: %v", p.Title, override.Matcher.Options, err)
			}
			found = append(found, links...)
		}
	}
	return found
}

type grafanaTarget struct {
	RefID, Expr, LegendFormat, Format string
	Instant, Range                    bool
}

type grafanaVariable struct {
	Type, Name      string
	Query, AllValue string
	Datasource      struct{ UID string }
}

// readDashboards returns the dashboards by file.
func readDashboards(t *testing.T) map[string]grafanaDashboard {
	t.Helper()
	files, err := filepath.Glob("../deploy/grafana/dashboards/*.json")
	if err != nil || len(files) < 2 {
		t.Fatalf("found %v, want the dashboards: %v", files, err)
	}
	dashboards := map[string]grafanaDashboard{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var d grafanaDashboard
		if err := json.Unmarshal(text, &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		dashboards[filepath.Base(file)] = d
	}
	return dashboards
}

var (
	grafanaReference = regexp.MustCompile(`\$\{?(\w+)\}?`)
	grafanaLegend    = regexp.MustCompile(`\{\{(\w+)\}\}`)
	grafanaMetric    = regexp.MustCompile(`(?:^|[^:\w])xdp_audit_(\w+)\{`)
	labelValues      = regexp.MustCompile(`^label_values\((.+), (\w+)\)$`)
	grafanaSeries    = regexp.MustCompile(`\b(?:[\w:]*xdp_audit_\w+(?::\w+)?|process_\w+|up|ALERTS)\b(\{[^}]*\})?`)
	grafanaAddress   = regexp.MustCompile(`^/d/([\w-]+)\?(.+)$`)
	grafanaPassed    = regexp.MustCompile(`var-(\w+)=|\$\{(\w+):queryparam\}`)
	grafanaOfSeries  = regexp.MustCompile(`\$\{(__field\.labels|__data\.fields)\.(\w+)`)
)

// Errors that would make Grafana show a panel wrongly, or not at all.
func TestDashboardsAreSound(t *testing.T) {
	uids := map[string]string{}
	for file, d := range readDashboards(t) {
		t.Run(file, func(t *testing.T) {
			if other, isTaken := uids[d.UID]; d.UID == "" || isTaken {
				t.Errorf("its uid %q is that of %q too", d.UID, other)
			}
			uids[d.UID] = file
			if d.Title == "" || d.Description == "" {
				t.Error("it has no title or no description")
			}
			known := map[string]bool{"__rate_interval": true}
			for _, v := range d.Templating.List {
				known[v.Name] = true
				if v.Type == "query" && v.Datasource.UID != "${datasource}" {
					t.Errorf("the variable %s asks the data source %q", v.Name, v.Datasource.UID)
				}
			}
			for _, name := range []string{"datasource", "job", "cluster", "instance", "device"} {
				if !known[name] {
					t.Errorf("it has no variable %s", name)
				}
			}
			if len(d.Annotations.List) != 1 || d.Annotations.List[0].Name != "Restarts" {
				t.Errorf("its annotations are %v", d.Annotations.List)
			}
			if hasRecords := slices.ContainsFunc(d.Panels, func(p grafanaPanel) bool { return p.Datasource.Type == "loki" }); hasRecords != (file == "device.json") {
				t.Errorf("it has a panel of records: %v", hasRecords)
			}
			ids, cells := map[int]string{}, map[[2]int]string{}
			for _, p := range d.Panels {
				if other, isTaken := ids[p.ID]; p.ID <= 0 || isTaken {
					t.Errorf("%q has the id %d, as %q", p.Title, p.ID, other)
				}
				ids[p.ID] = p.Title
				p.checkPlace(t, cells)
				if p.Title == "" || len(p.Panels) > 0 {
					t.Errorf("panel %d has no title, or panels of its own, which no test reads", p.ID)
				}
				if p.Type != "row" {
					p.check(t, known)
				}
			}
		})
	}
}

// Each query, of panels, variables and annotations, is of the selected jobs and clusters.
func TestDashboardsSelectJobsAndClusters(t *testing.T) {
	for file, d := range readDashboards(t) {
		check := func(what, expr string) {
			series := grafanaSeries.FindAllStringSubmatch(expr, -1)
			if len(series) == 0 {
				t.Errorf("%s: %s asks for no series: %s", file, what, expr)
			}
			for _, s := range series {
				// An alert on missing targets has to show while there is no job to select.
				if !strings.Contains(s[1], `cluster=~"$cluster"`) || !strings.Contains(s[1], `job=~"$job"`) && !strings.HasPrefix(s[0], "ALERTS{") {
					t.Errorf("%s: %s asks for all jobs or clusters: %s", file, what, s[0])
				}
			}
		}
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				if p.Datasource.Type == "prometheus" {
					check(p.Title, q.Expr)
				}
			}
		}
		for _, v := range d.Templating.List {
			if v.Name == "instance" || v.Name == "device" {
				check("the variable "+v.Name, v.Query)
			}
			// All jobs are those of the exporter: .* would add the processes of other jobs.
			if isForAll := v.AllValue == ".*"; v.Name == "job" && isForAll || v.Name == "cluster" && !isForAll {
				t.Errorf("%s: the variable %s stands for %q if all are selected", file, v.Name, v.AllValue)
			}
		}
		for _, a := range d.Annotations.List {
			check(a.Name, a.Expr)
		}
	}
}

// The dashboard of the fleet leads to that of each device, and back.
func TestDashboardsAreLinked(t *testing.T) {
	boards := readDashboards(t)
	fleet, device := boards["fleet.json"], boards["device.json"]
	// check returns the parameters that the address of another dashboard sets.
	check := func(from grafanaDashboard, link grafanaLink, to grafanaDashboard) map[string]bool {
		t.Helper()
		address := grafanaAddress.FindStringSubmatch(link.URL)
		if address == nil || address[1] != to.UID || link.Title == "" {
			t.Fatalf("%q of %s leads to %q, not to %s", link.Title, from.Title, link.URL, to.UID)
		}
		passed := map[string]bool{}
		for _, p := range grafanaPassed.FindAllStringSubmatch(address[2], -1) {
			passed[p[1]+p[2]] = true
		}
		for name := range passed {
			for _, board := range []grafanaDashboard{from, to} {
				if !slices.ContainsFunc(board.Templating.List, func(v grafanaVariable) bool { return v.Name == name }) {
					t.Errorf("%q passes %s, which is not a variable of %s", link.Title, name, board.Title)
				}
			}
		}
		if !passed["datasource"] || !passed["job"] || !passed["cluster"] {
			t.Errorf("%q does not keep what is selected: %s", link.Title, link.URL)
		}
		return passed
	}
	if len(fleet.Links) != 1 || len(device.Links) != 1 {
		t.Fatalf("the links are %v and %v", fleet.Links, device.Links)
	}
	check(fleet, fleet.Links[0], device)
	check(device, device.Links[0], fleet)
	for _, p := range fleet.Panels {
		isOfDevices := p.Type == "table" || len(p.Targets) > 0 && strings.Contains(p.Targets[0].LegendFormat, "{{device}}")
		links := p.links(t)
		if isOfDevices != (len(links) == 1) {
			t.Errorf("%q has the links %v", p.Title, links)
			continue
		}
		for _, link := range links {
			if passed := check(fleet, link, device); !passed["instance"] || !passed["device"] || !strings.Contains(link.URL, "${__url_time_range}") {
				t.Errorf("%q does not lead to a device at the same time: %s", p.Title, link.URL)
			}
			for _, label := range grafanaOfSeries.FindAllStringSubmatch(link.URL, -1) {
				if p.Type != "table" && !strings.Contains(p.Targets[0].LegendFormat, "{{"+label[2]+"}}") || (label[1] == "__data.fields") != (p.Type == "table") {
					t.Errorf("%q links by %s, which its series do not have", p.Title, label[0])
				}
			}
		}
	}
}

// checkPlace expects a panel to be on the grid of 24 columns without overlapping another.
func (p grafanaPanel) checkPlace(t *testing.T, cells map[[2]int]string) {
	t.Helper()
	g := p.GridPos
	if g.W < 1 || g.H < 1 || g.X < 0 || g.Y < 0 || g.X+g.W > 24 {
		t.Errorf("%q is at %+v, outside of the grid", p.Title, g)
	}
	for x := g.X; x < g.X+g.W; x++ {
		for y := g.Y; y < g.Y+g.H; y++ {
			if other, isTaken := cells[[2]int{x, y}]; isTaken {
				t.Errorf("%q lies on %q", p.Title, other)
				return
			}
			cells[[2]int{x, y}] = p.Title
		}
	}
}

// check expects a panel to have a description and a query.
func (p grafanaPanel) check(t *testing.T, known map[string]bool) {
	t.Helper()
	if p.Description == "" || p.FieldConfig.Defaults.Unit == "" {
		t.Errorf("%q has no description or no unit", p.Title)
	}
	if of := p.Datasource; of.Type != "prometheus" || of.UID != "${datasource}" {
		if of.Type != "loki" || of.UID != "${loki}" || !strings.Contains(p.Description, "Empty without Loki") {
			t.Errorf("%q asks the data source %+v", p.Title, of)
		}
		return
	}
	if len(p.Targets) == 0 {
		t.Errorf("%q asks for nothing", p.Title)
	}
	documented, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	refs := map[string]bool{}
	for _, q := range p.Targets {
		// This includes panels that may be empty. Recorded series have a colon in their names.
		for _, name := range grafanaMetric.FindAllStringSubmatch(q.Expr, -1) {
			if !strings.Contains(string(documented), "| `"+strings.TrimSuffix(name[1], "_bucket")+"` |") {
				t.Errorf("%q asks for xdp_audit_%s, which docs/metrics.md does not know", p.Title, name[1])
			}
		}
		if refs[q.RefID] || q.RefID == "" || q.Expr == "" || q.Instant == q.Range {
			t.Errorf("%q has the query %+v", p.Title, q)
		}
		refs[q.RefID] = true
		for _, reference := range grafanaReference.FindAllStringSubmatch(q.Expr, -1) {
			if !known[reference[1]] {
				t.Errorf("%q refers to %s, which is not a variable", p.Title, reference[0])
			}
		}
	}
}
