// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// scrape is the result of one scrape, by metric name without the namespace.
type scrape map[string]*dto.MetricFamily

func (e *exporter) scrape() scrape {
	e.lab.t.Helper()
	return parse(e.lab.t, e.get("/metrics", http.StatusOK))
}

func parse(t *testing.T, page string) scrape {
	t.Helper()
	s, err := parsePage(page)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func parsePage(page string) (scrape, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(page))
	if err != nil {
		return nil, err
	}
	s := scrape{}
	for name, family := range families {
		s[strings.TrimPrefix(name, "xdp_audit_")] = family
	}
	return s, nil
}

// sum returns the sum of the series of a metric that have the given labels, each as name=value;
// 0 without any.
func (s scrape) sum(name string, labels ...string) float64 {
	var sum float64
	for _, m := range s.series(name, labels...) {
		sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return sum
}

func (s scrape) series(name string, labels ...string) (series []*dto.Metric) {
	for _, m := range s[name].GetMetric() {
		has := map[string]bool{}
		for _, pair := range m.GetLabel() {
			has[pair.GetName()+"="+pair.GetValue()] = true
		}
		matches := true
		for _, label := range labels {
			matches = matches && has[label]
		}
		if matches {
			series = append(series, m)
		}
	}
	return series
}

// label returns the value of a label of the only series that has the given labels.
func (s scrape) label(t *testing.T, name, label string, labels ...string) string {
	t.Helper()
	series := s.series(name, labels...)
	if len(series) != 1 {
		t.Fatalf("%d series of %s have the labels %v, want 1", len(series), name, labels)
	}
	for _, pair := range series[0].GetLabel() {
		if pair.GetName() == label {
			return pair.GetValue()
		}
	}
	t.Fatalf("%s has no label %s", name, label)
	return ""
}

// checkIdentities returns an error unless the sums agree that agree at every scrape, also under
// traffic.
func (s scrape) checkIdentities() error {
	if packets, outcomes := s.sum("packets_total"), s.sum("outcomes_total"); packets != outcomes {
		return fmt.Errorf("%v packets, but %v outcomes", packets, outcomes)
	}
	for _, direction := range []string{"early", "late"} {
		flags, outcomes := s.sum("leak_flags_total", "direction="+direction), s.sum("outcomes_total", "outcome=flagged_"+direction)
		if flags != outcomes {
			return fmt.Errorf("%v packets flagged %s, but %v such outcomes", flags, direction, outcomes)
		}
	}
	return nil
}

// checkAtRest also checks the sums that agree when no packet is in flight and the rings are
// drained.
func (s scrape) checkAtRest() error {
	if err := s.checkIdentities(); err != nil {
		return err
	}
	if flags, fates := s.sum("leak_flags_total"), s.sum("event_fates_total"); flags != fates {
		return fmt.Errorf("%v packets flagged, but %v fates of events", flags, fates)
	}
	if received, sent := s.sum("events_total"), s.sum("event_fates_total", "fate=sent"); received != sent {
		return fmt.Errorf("%v events received, but %v sent", received, sent)
	}
	return nil
}

// atRest waits until the exporter has read its events, and returns a scrape. There must be no
// traffic.
func (e *exporter) atRest() (s scrape) {
	e.lab.t.Helper()
	e.lab.poll(func() error {
		s = e.scrape()
		if err := s.checkIdentities(); err != nil {
			e.lab.t.Fatal(err)
		}
		return s.checkAtRest()
	})
	return s
}
