// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// grafanaDashboard is a dashboard, with the fields that the tests read.
type grafanaDashboard struct {
	UID, Title, Description string
	Panels                  []grafanaPanel
	Templating              struct{ List []grafanaVariable }
}

type grafanaPanel struct {
	ID                       int
	Type, Title, Description string
	GridPos                  struct{ X, Y, W, H int }
	Datasource               struct{ Type, UID string }
	FieldConfig              struct{ Defaults struct{ Unit string } }
	Targets                  []grafanaTarget
	Panels                   []grafanaPanel
}

type grafanaTarget struct {
	RefID, Expr, LegendFormat, Format string
	Instant, Range                    bool
}

type grafanaVariable struct {
	Type, Name string
	Query      string
	Datasource struct{ UID string }
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
			for _, name := range []string{"datasource", "instance", "device"} {
				if !known[name] {
					t.Errorf("it has no variable %s", name)
				}
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
	if p.Datasource.Type != "prometheus" || p.Datasource.UID != "${datasource}" {
		t.Errorf("%q asks the data source %+v", p.Title, p.Datasource)
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
