// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leaklab

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

// A capture has the time from the last segment of a request to the first of its response.
func TestExchangesOfSegments(t *testing.T) {
	segments := []segment{
		{ns: 1, isFromHere: true, client: 7}, // of another connection's past
		{ns: 10, client: 7}, {ns: 12, client: 7}, {ns: 13, client: 8}, {ns: 20, isFromHere: true, client: 7},
		{ns: 21, isFromHere: true, client: 7}, {ns: 22, isFromHere: true, client: 8}, {ns: 30, client: 7}, {ns: 35, isFromHere: true, client: 7},
	}
	if got := exchanges(segments, 7); !slices.Equal(got, []uint64{8, 5}) {
		t.Errorf("times %v", got)
	}
}

// The differences are those of the pairs that the judge takes.
func TestMedianDifference(t *testing.T) {
	const x, y = leak.X, leak.Y
	for _, test := range []struct {
		name     string
		order    leak.Order
		classes  []leak.Class
		times    []uint64
		excluded int
		want     float64
	}{
		{"blocks", leak.Blocks, []leak.Class{x, y, y, x, x, y}, []uint64{10, 12, 25, 20, 0, 9}, -1, 5},
		{"blocks, one without a response time", leak.Blocks, []leak.Class{x, y, y, x, x, y}, []uint64{10, 12, 25, 20, 0, 9}, 4, 3.5},
		{"random", leak.Random, []leak.Class{x, x, y, x}, []uint64{1, 2, 30, 10}, -1, 20},
		{"random, one without a response time", leak.Random, []leak.Class{x, x, y, x}, []uint64{1, 2, 30, 10}, 0, 28},
	} {
		m := &measured{order: test.order, classes: test.classes, records: make([]bpf.Exchange, len(test.classes))}
		if test.excluded >= 0 {
			m.records[test.excluded].Exclusion = bpf.ExclusionRetransmitted
		}
		if got := medianDifference(m, test.times); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// The classes of a run have as many pairs as it needs.
func TestClasses(t *testing.T) {
	for _, order := range []leak.Order{leak.Blocks, leak.Random} {
		all := classes(rand.New(rand.NewPCG(1, 2)), order, 500)
		pairs, ys := 0, 0
		for i := 0; i < len(all); i += 2 {
			if all[i] != all[i+1] {
				pairs++
			}
			ys += int(all[i]) + int(all[i+1])
		}
		if pairs != 500 || order == leak.Blocks && len(all) != 1000 || ys < len(all)*2/5 || ys > len(all)*3/5 {
			t.Errorf("%v: %d pairs in %d requests, %d of class Y", order, pairs, len(all), ys)
		}
	}
}

func TestReport(t *testing.T) {
	r := &report{}
	found := judged{pairs: 1234, effect: 1020, low: 900, high: 1140}
	for _, e := range []experiment{
		{server: netHTTP, order: leak.Blocks, planted: time.Microsecond, pairs: 13_000},
		{server: nginx, order: leak.Random, planted: 10 * time.Microsecond, jitter: jitter, pairs: 720},
		{server: nginx, order: leak.Blocks, pairs: unplanted},
	} {
		o := outcome{kernel: found, client: judged{pairs: never, effect: 2e3, low: -10e3, high: 14e3}, handler: 1000, capture: 1150, overhead: []float64{10e3, 60e3}, disagreement: []float64{100, 200}}
		if e.planted == 0 {
			o.kernel.pairs = never
		}
		e.outcomes = []outcome{o, o}
		r.experiments = append(r.experiments, &e)
	}
	text, failed := r.markdown()
	for _, want := range []string{
		"| net/http | 1 µs | blocks | steady | 1,234 | **1,234** | ≤ 13,000 | yes | never | never |",
		"| nginx | 10 µs | random | 100 µs of jitter | 1,234 | **1,234** | ≤ 720 | **no** | never | never |",
		"| nginx | nothing | blocks | steady | never | **never** | never | yes | never | never |",
		"| net/http | 1 µs | blocks | steady | 1.00 | 1.15 | 1.02 | 0.12 | 2 | 0 | 2.00 | 12.0 |",
		"| net/http | 2 | **2** | ≥ 95 % | yes | 4 | 0 | 10.0 µs | 60.0 µs | 0.5000 | 0.10 µs | 0.20 µs |",
		"| nginx | 4 | **0** | ≥ 95 % | **no** | 8 |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %s in\n%s", want, text)
		}
	}
	if len(failed) != 2 || !strings.Contains(failed[0], "1,234 pairs") || !strings.Contains(failed[1], "0 of 4") {
		t.Errorf("failed: %q", failed)
	}
	if pairsText(12_345_678) != "12,345,678" {
		t.Error(pairsText(12_345_678))
	}
}
