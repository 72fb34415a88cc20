// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// Uids of the dashboards, by which they link to each other.
const (
	fleetUID  = "xdp-audit-fleet"
	deviceUID = "xdp-audit-device"
)

// selected keeps what selects the exporters in the address of another dashboard.
const selected = "${datasource:queryparam}&${job:queryparam}&${cluster:queryparam}"

// link is a link to another dashboard. The builder of the SDK places links into a menu.
type link struct{ title, url string }

func (l link) Build() (dashboard.DashboardLink, error) {
	return dashboard.DashboardLink{
		Title: l.title, Type: dashboard.DashboardLinkTypeLink, Icon: "dashboard", Tags: []string{}, Url: &l.url, KeepTime: true,
	}, nil
}

// toDashboard is a link for the top of a dashboard.
func toDashboard(title, uid string) link { return link{title, "/d/" + uid + "?" + selected} }

// toDevice leads from a series or the row of a table, whose labels are in the given place, to the
// dashboard of its device.
func toDevice(labels string) link {
	return link{"Dashboard of ${" + labels + ".device}", "/d/" + deviceUID + "?${__url_time_range}&" + selected +
		"&var-instance=${" + labels + ".instance:percentencode}&var-device=${" + labels + ".device:percentencode}"}
}

// annotation is an annotation query. The builder of the SDK places its switch into a menu.
type annotation dashboard.AnnotationQuery

func (a annotation) Build() (dashboard.AnnotationQuery, error) {
	return dashboard.AnnotationQuery(a), nil
}

// restarts marks the starts of the exporters: the value of the query is the time of the start.
func restarts() annotation {
	expr := `process_start_time_seconds{` + ofInstance + `} * 1000`
	ref := source()
	return annotation{
		Name: "Restarts", Datasource: &ref, Enable: true, IconColor: "orange", Expr: &expr, UseValueForTime: cog.ToPtr(true),
		TitleFormat: cog.ToPtr("Exporter started"), TextFormat: cog.ToPtr(perInstance), TagKeys: cog.ToPtr("instance"),
	}
}
