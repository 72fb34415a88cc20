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
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

// board is a dashboard under construction.
type board struct {
	*dashboard.DashboardBuilder
	panels uint32
}

// query is a PromQL expression and the legend of its series.
type query struct{ expr, legend string }

// source is the data source that the viewer selects.
func source() common.DataSourceRef {
	return common.DataSourceRef{Type: cog.ToPtr("prometheus"), Uid: cog.ToPtr("${datasource}")}
}

func newBoard(uid, title, description string) *board {
	b := &board{DashboardBuilder: dashboard.NewDashboardBuilder(title)}
	b.Uid(uid).Description(description).Tags([]string{"xdp_audit"}).Time("now-6h", "now").Refresh("30s").
		Timezone("browser").Tooltip(dashboard.DashboardCursorSyncCrosshair).Editable().
		WithVariable(dashboard.NewDatasourceVariableBuilder("datasource").Label("Data source").Type("prometheus")).
		Link(dashboard.NewDashboardLinkBuilder("XDP audit").Type(dashboard.DashboardLinkTypeDashboards).
			Tags([]string{"xdp_audit"}).IncludeVars(true).KeepTime(true))
	return b
}

// variable adds a selection of label values. isMany allows several values or all.
func (b *board) variable(name, label, query string, isMany bool) {
	v := dashboard.NewQueryVariableBuilder(name).Label(label).Datasource(source()).
		Query(dashboard.StringOrMap{String: &query}).Definition(query).
		Refresh(dashboard.VariableRefreshOnTimeRangeChanged).Sort(dashboard.VariableSortNaturalAsc)
	if isMany {
		v.Multi(true).IncludeAll(true).AllValue(".*").Current(dashboard.VariableOption{
			Text: dashboard.StringOrArrayOfString{String: cog.ToPtr("All")}, Value: dashboard.StringOrArrayOfString{String: cog.ToPtr("$__all")},
		})
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

// list adds a table of the labels of the series of a query. Labels in hidden are left out.
func (b *board) list(width uint32, title, description string, q query, hidden ...string) {
	exclude := map[string]any{"Time": true, "Value": true, "__name__": true}
	for _, label := range hidden {
		exclude[label] = true
	}
	b.WithPanel(table.NewPanelBuilder().Id(b.id()).Title(title).Description(description).Unit("none").Span(width).Height(graphHeight).
		Datasource(source()).WithTarget(target(0, q, true, prometheus.PromQueryFormatTable)).
		WithTransformation(dashboard.DataTransformerConfig{Id: "organize", Options: map[string]any{"excludeByName": exclude}}))
}
