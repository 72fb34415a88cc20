// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"fmt"
	"strings"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/variants"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/heatmap"
	"github.com/grafana/grafana-foundation-sdk/go/logs"
	"github.com/grafana/grafana-foundation-sdk/go/loki"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

// board is a dashboard under construction.
type board struct {
	*dashboard.DashboardBuilder
	panels uint32
	// isOverview lets series and rows of a device lead to the dashboard of the device.
	isOverview bool
}

// query is a PromQL expression and the legend of its series.
type query struct{ expr, legend string }

// source is the data source that the viewer selects.
func source() common.DataSourceRef {
	return common.DataSourceRef{Type: cog.ToPtr("prometheus"), Uid: cog.ToPtr("${datasource}")}
}

// newBoard returns a dashboard with the variables that both have: what selects the exporters.
func newBoard(uid, title, description string) *board {
	b := &board{DashboardBuilder: dashboard.NewDashboardBuilder(title)}
	b.Uid(uid).Description(description).Tags([]string{"xdp_audit"}).Time("now-6h", "now").Refresh("30s").
		Timezone("browser").Tooltip(dashboard.DashboardCursorSyncCrosshair).Editable().
		WithVariable(dashboard.NewDatasourceVariableBuilder("datasource").Label("Data source").Type("prometheus"))
	b.Annotation(restarts())
	b.variable("job", "Job", `label_values(xdp_audit_exporter_build_info, job)`, asListed)
	b.variable("cluster", "Cluster", `label_values(up{job=~"$job"}, cluster)`, orMissing)
	return b
}

// choice says how many values of a variable a viewer selects, and what stands for all of them.
type choice int

const (
	oneOf     choice = iota
	asListed         // several or all: each value of the list
	orMissing        // several or all: any value, also of series without the label
)

// variable adds a selection of label values.
func (b *board) variable(name, label, query string, of choice) {
	v := dashboard.NewQueryVariableBuilder(name).Label(label).Datasource(source()).
		Query(dashboard.StringOrMap{String: &query}).Definition(query).
		Refresh(dashboard.VariableRefreshOnTimeRangeChanged).Sort(dashboard.VariableSortNaturalAsc)
	if of != oneOf {
		v.Multi(true).IncludeAll(true).Current(dashboard.VariableOption{
			Text: dashboard.StringOrArrayOfString{String: cog.ToPtr("All")}, Value: dashboard.StringOrArrayOfString{String: cog.ToPtr("$__all")},
		})
	}
	if of == orMissing {
		v.AllValue(".*")
	}
	b.WithVariable(v)
}

func (b *board) id() uint32 {
	b.panels++
	return b.panels
}

func (b *board) row(title string) {
	b.WithRow(dashboard.NewRowBuilder(title).Id(b.id()))
}

// target returns a query of a panel. isInstant selects the newest values only.
func target(i int, q query, isInstant bool, format prometheus.PromQueryFormat) cog.Builder[variants.Dataquery] {
	t := prometheus.NewDataqueryBuilder().RefId(string(rune('A' + i))).Expr(q.expr).Format(format)
	if q.legend != "" {
		t.LegendFormat(q.legend)
	}
	if isInstant {
		return t.Instant()
	}
	return t.Range()
}

// Units of rates, which Grafana scales with the prefixes of the SI.
const (
	packetsPerSecond = "si:packets/s"
	eventsPerSecond  = "si:events/s"
	recordsPerSecond = "si:records/s"
	flowsPerSecond   = "si:flows/s"
)

// quantile returns the query of a quantile by labels: of the native histogram, or of the classic
// one where Prometheus stores no native histograms.
func quantile(of, metric, selector string, labels ...string) string {
	native, classic := "sum", append([]string{"le"}, labels...)
	if len(labels) > 0 {
		native = "sum by (" + strings.Join(labels, ", ") + ") "
	}
	return fmt.Sprintf("histogram_quantile(%s, %s(rate(%s{%s}[$__rate_interval]))) or histogram_quantile(%[1]s, sum by (%[5]s) (rate(%[3]s_bucket{%[4]s}[$__rate_interval])))",
		of, native, metric, selector, strings.Join(classic, ", "))
}

const graphHeight, statHeight, statWidth = 8, 4, 4

// graph adds a panel with curves over time.
func (b *board) graph(width uint32, title, unit, description string, queries ...query) {
	p := timeseries.NewPanelBuilder().Id(b.id()).Title(title).Description(description).Unit(unit).Span(width).Height(graphHeight).
		Datasource(source()).FillOpacity(8).ShowPoints(common.VisibilityModeNever).
		Legend(common.NewVizLegendOptionsBuilder().DisplayMode(common.LegendDisplayModeList).Placement(common.LegendPlacementBottom).ShowLegend(true)).
		Tooltip(common.NewVizTooltipOptionsBuilder().Mode(common.TooltipDisplayModeMulti).Sort(common.SortOrderDescending))
	for i, q := range queries {
		p.WithTarget(target(i, q, false, prometheus.PromQueryFormatTimeSeries))
	}
	if b.isOverview && strings.Contains(queries[0].legend, "{{device}}") {
		p.DataLinks([]cog.Builder[dashboard.DashboardLink]{toDevice("__field.labels")})
	}
	b.WithPanel(p)
}

// step is a colour and the value it starts at. The value of the first step is ignored.
type step struct {
	from  float64
	color string
}

func thresholds(steps []step) cog.Builder[dashboard.ThresholdsConfig] {
	var list []dashboard.Threshold
	for i, s := range steps {
		t := dashboard.Threshold{Color: s.color}
		if i > 0 {
			t.Value = cog.ToPtr(s.from)
		}
		list = append(list, t)
	}
	return dashboard.NewThresholdsConfigBuilder().Mode(dashboard.ThresholdsModeAbsolute).Steps(list)
}

// plain is the colour of values that are neither good nor bad.
func plain() []step { return []step{{color: "blue"}} }

// none is for values that should be 0.
func none() []step { return []step{{color: "green"}, {1, "red"}} }

// number adds a panel with the newest value of a query, or with the name of its series if
// isName is set.
func (b *board) number(title, unit, description string, steps []step, isName bool, q query) {
	p := stat.NewPanelBuilder().Id(b.id()).Title(title).Description(description).Unit(unit).Span(statWidth).Height(statHeight).
		Datasource(source()).Thresholds(thresholds(steps)).ColorMode(common.BigValueColorModeValue).GraphMode(common.BigValueGraphModeNone).
		ReduceOptions(common.NewReduceDataOptionsBuilder().Calcs([]string{"lastNotNull"})).
		WithTarget(target(0, q, true, prometheus.PromQueryFormatTimeSeries))
	if isName {
		p.TextMode(common.BigValueTextModeName)
	}
	b.WithPanel(p)
}

// heat adds a heat map of the native histogram that a query returns.
func (b *board) heat(width uint32, title, unit, description string, q query) {
	b.WithPanel(heatmap.NewPanelBuilder().Id(b.id()).Title(title).Description(description).Unit(unit).Span(width).Height(graphHeight + 2).
		Datasource(source()).Calculate(false).
		YAxis(heatmap.NewYAxisConfigBuilder().Unit(unit)).
		Color(heatmap.NewHeatmapColorOptionsBuilder().Mode(heatmap.HeatmapColorModeScheme).Scheme("Turbo").Scale(heatmap.HeatmapColorScaleExponential).Exponent(0.5).Steps(64)).
		WithTarget(target(0, q, false, prometheus.PromQueryFormatHeatmap)))
}

// list adds a table of the labels of the series of a query.
func (b *board) list(width uint32, title, description string, q query) {
	exclude := map[string]any{"Time": true, "Value": true, "__name__": true}
	p := table.NewPanelBuilder().Id(b.id()).Title(title).Description(description).Unit("none").Span(width).Height(graphHeight).
		Datasource(source()).WithTarget(target(0, q, true, prometheus.PromQueryFormatTable)).
		WithTransformation(dashboard.DataTransformerConfig{Id: "organize", Options: map[string]any{"excludeByName": exclude}})
	if b.isOverview {
		l, _ := toDevice("__data.fields").Build()
		p.OverrideByName("device", []dashboard.DynamicConfigValue{{Id: "links", Value: []dashboard.DashboardLink{l}}})
	}
	b.WithPanel(p)
}

// records adds a panel with the lines of a Loki query. Grafana shows nothing there if it has no
// data source of that type.
func (b *board) records(width uint32, title, description, expr string) {
	of := common.DataSourceRef{Type: cog.ToPtr("loki"), Uid: cog.ToPtr("${loki}")}
	b.WithPanel(logs.NewPanelBuilder().Id(b.id()).Title(title).Description(description).Unit("none").Span(width).Height(graphHeight).
		Datasource(of).ShowTime(true).WrapLogMessage(true).EnableLogDetails(true).SortOrder(common.LogsSortOrderDescending).
		WithTarget(loki.NewDataqueryBuilder().RefId("A").Expr(expr).QueryType("range").MaxLines(200)))
}
