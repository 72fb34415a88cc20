// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

// Every metric has the labels of its description, in the order of their names: nothing else checks
// that they are the same, and a registry copies and sorts labels in another order at each scrape.
func TestLabels(t *testing.T) {
	baseline := &bpf.Baseline{Samples: 100, FrozenSince: time.Unix(1, 0)}
	source := &fakeSource{
		counters: []bpf.Counters{randomCounters("eth0", rand.New(rand.NewPCG(9, 10))), {Device: "eth1", Baseline: baseline}},
		hooks:    []bpf.Hook{{Device: "eth0", Up: true}, {Device: "eth1"}},
		runs:     []bpf.Runs{{Device: "eth0"}},
	}
	source.counters[0].Baseline = &bpf.Baseline{Domain: bpf.DomainLog2, Samples: 100}
	set := newSet(t, source, Options{
		Collectors: Names(), Trail: fakeTrail{}, Covert: NewCovert(), Excess: NewExcess(nil), Leak: fakeLeak{Set: assessed(t, 100), raw: &LeakRawCounts{}},
		Privileges: &Privileges{Capabilities: []string{"CAP_BPF"}},
	})
	ch := make(chan prometheus.Metric, 10_000)
	if err := set.Update(ch); err != nil {
		t.Fatal(err)
	}
	close(ch)
	variable := regexp.MustCompile(`fqName: "xdp_audit_(\w+)".*variableLabels: \{(.*?)\}`)
	seen := map[string]bool{}
	for metric := range ch {
		match := variable.FindStringSubmatch(metric.Desc().String())
		if match == nil {
			t.Fatalf("the description is %s", metric.Desc())
		}
		var out dto.Metric
		if err := metric.Write(&out); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, pair := range out.Label {
			names = append(names, pair.GetName())
		}
		if got := strings.Join(names, ","); got != match[2] || !slices.IsSorted(names) {
			t.Errorf("%s has the labels %q, the description has %q", match[1], got, match[2])
		}
		seen[match[1]] = true
	}
	if len(seen) < 71 {
		t.Errorf("only %d metrics were seen", len(seen))
	}
}

// Labels are made once for all scrapes and series, apart from those of devices.
func TestAllocationsOfMetrics(t *testing.T) {
	counters := randomCounters("eth0", rand.New(rand.NewPCG(11, 12)))
	update := func() {
		ch := make(chan prometheus.Metric, 100)
		if err := newPacketsCollector(&fakeSource{counters: []bpf.Counters{counters}}).Update(ch); err != nil {
			t.Error(err)
		}
	}
	const metrics = 2*11 + 11
	if got := testing.AllocsPerRun(100, update); got > 2*metrics+10 {
		t.Errorf("%v allocations for %d metrics, want 2 for each", got, metrics)
	}
}
