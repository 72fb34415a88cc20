// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/collector"
)

// manyDevices is the number of devices of a scrape whose cost is measured.
const manyDevices = 200

// auditOfMany is an audit of many devices that have received packets.
type auditOfMany struct {
	*fakeAudit
	counters []bpf.Counters
	hooks    []bpf.Hook
}

func (a *auditOfMany) Counters() []bpf.Counters { return a.counters }
func (a *auditOfMany) Hooks() []bpf.Hook        { return a.hooks }

func newAuditOfMany() *auditOfMany {
	a := &auditOfMany{fakeAudit: newFakeAudit()}
	for i := range manyDevices {
		name := fmt.Sprint("many", i)
		a.hooks = append(a.hooks, bpf.Hook{
			Device: name, Up: true, Received: 1e9, Mode: "skb", Driver: "veth", Clock: "ktime", ProgramID: uint32(i), ProgramTag: "0123456789abcdef",
		})
		c := bpf.Counters{Device: name, Inserts: 1e6, LastFlag: &bpf.Flag{DeltaNs: 1e6, Samples: 8192, LenBytes: 60}}
		for outcome := range c.Packets[bpf.FamilyIPv4][bpf.ProtocolTCP] {
			c.Packets[bpf.FamilyIPv4][bpf.ProtocolTCP][outcome] = uint64(1e6 + i + outcome)
		}
		for cell := 300; cell < 364; cell++ {
			c.Histogram[cell] = uint64(1e5 + i + cell)
		}
		a.counters = append(a.counters, c)
	}
	return a
}

// scrapeOfMany returns a function that scrapes many devices and returns the answer.
func scrapeOfMany(tb testing.TB, format expfmt.Format) (scrape func() *httptest.ResponseRecorder) {
	tb.Helper()
	set, err := collector.New(newAuditOfMany(), collector.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	handler, _ := newScrapeHandlers(set, nil, &options{sending: defaultSending}, nil, slog.New(slog.DiscardHandler))
	request := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	request.Header.Set("Accept", string(format))
	request.Header.Set("Accept-Encoding", "gzip")
	return func() *httptest.ResponseRecorder {
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, request)
		return answer
	}
}

// cpuTime returns the time that the threads of this process have run.
func cpuTime(tb testing.TB) time.Duration {
	tb.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// cheapest returns the CPU time of the cheapest call of each function. They run in turn, so that
// other load on the machine slows all of them.
func cheapest(tb testing.TB, rounds int, functions ...func()) []time.Duration {
	tb.Helper()
	least := make([]time.Duration, len(functions))
	for round := range rounds {
		for i, f := range functions {
			begin := cpuTime(tb)
			f()
			if took := cpuTime(tb) - begin; round == 0 || took < least[i] {
				least[i] = took
			}
		}
	}
	return least
}

// What a scrape costs for each device. None of the limits depends on the speed of the machine: the
// CPU time is a multiple of the time in which the same process encodes and compresses the same
// metrics. Each limit is a third above what was measured or more, and half above for the CPU time.
func TestCostOfScrape(t *testing.T) {
	scrape := scrapeOfMany(t, expfmt.NewFormat(expfmt.TypeTextPlain))
	plain, err := gzip.NewReader(scrape().Body)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(plain)
	if err != nil {
		t.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	series := strings.Count(string(text), `{device="many`) + strings.Count(string(text), `,device="many`)

	const rounds = 10
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range rounds {
		scrape()
	}
	runtime.ReadMemStats(&after)
	took := cheapest(t, 2*rounds, func() { scrape() }, func() { encode(t, families) })

	for _, test := range []struct {
		name  string
		value float64
		limit float64
	}{
		{"series for a device", float64(series) / manyDevices, 124},
		{"bytes of the answer for a series", float64(len(text)) / float64(series), 96},
		{"allocations for a series", float64(after.Mallocs-before.Mallocs) / rounds / float64(series), 5},
		{"allocated bytes for a series", float64(after.TotalAlloc-before.TotalAlloc) / rounds / float64(series), 460},
		{"times the CPU time of encoding", took[0].Seconds() / took[1].Seconds(), 4.2},
	} {
		t.Logf("%s: %.2f", test.name, test.value)
		if test.value > test.limit {
			t.Errorf("%s: %.2f, want at most %v", test.name, test.value, test.limit)
		}
	}
}

// encode encodes and compresses metrics.
func encode(tb testing.TB, families map[string]*dto.MetricFamily) {
	tb.Helper()
	compressed, err := gzip.NewWriterLevel(io.Discard, gzip.BestSpeed)
	if err != nil {
		tb.Fatal(err)
	}
	encoder := expfmt.NewEncoder(compressed, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, family := range families {
		if err := encoder.Encode(family); err != nil {
			tb.Fatal(err)
		}
	}
}

func BenchmarkScrapeOfManyDevices(b *testing.B) {
	for _, format := range []expfmt.FormatType{expfmt.TypeTextPlain, expfmt.TypeOpenMetrics, expfmt.TypeProtoDelim} {
		b.Run(fmt.Sprint(format), func(b *testing.B) {
			scrape := scrapeOfMany(b, expfmt.NewFormat(format))
			b.ReportAllocs()
			least := time.Hour
			for b.Loop() {
				least = min(least, cheapest(b, 1, func() { scrape() })[0])
			}
			b.ReportMetric(least.Seconds()*1e3, "least-cpu-ms")
		})
	}
}
