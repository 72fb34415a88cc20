// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

// fakeSource returns what it holds.
type fakeSource struct {
	counters []bpf.Counters
	hooks    []bpf.Hook
	runs     []bpf.Runs
	runsErr  error
	slots    int
	devices  bpf.DeviceSlots
	events   bpf.EventCounts
	watch    bpf.WatchCounts
}

func (f *fakeSource) Counters() []bpf.Counters     { return f.counters }
func (f *fakeSource) Hooks() []bpf.Hook            { return f.hooks }
func (f *fakeSource) Runs() ([]bpf.Runs, error)    { return f.runs, f.runsErr }
func (f *fakeSource) Slots() int                   { return f.slots }
func (f *fakeSource) DeviceSlots() bpf.DeviceSlots { return f.devices }
func (f *fakeSource) EventCounts() bpf.EventCounts { return f.events }
func (f *fakeSource) WatchCounts() bpf.WatchCounts { return f.watch }

// counters returns counters of a device, of which edit sets some.
func counters(device string, edit func(c *bpf.Counters)) bpf.Counters {
	c := bpf.Counters{Device: device}
	edit(&c)
	return c
}

// registered makes a Collector a prometheus.Collector that fails the test when Update does.
type registered struct {
	t *testing.T
	Collector
}

func (r registered) Describe(chan<- *prometheus.Desc) {}

func (r registered) Collect(ch chan<- prometheus.Metric) {
	if err := r.Update(ch); err != nil {
		r.t.Error(err)
	}
}

func gatherer(t *testing.T, c prometheus.Collector) prometheus.Gatherer {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(c); err != nil {
		t.Fatal(err)
	}
	return registry
}

// expect compares all metrics of a collector with their text.
func expect(t *testing.T, c Collector, text string) {
	t.Helper()
	if err := testutil.GatherAndCompare(gatherer(t, registered{t, c}), strings.NewReader(text)); err != nil {
		t.Error(err)
	}
}

// sums returns the sum over all series of each counter and gauge, by name without the
// namespace.
func sums(t *testing.T, g prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]float64{}
	for _, family := range families {
		for _, m := range family.Metric {
			sums[strings.TrimPrefix(family.GetName(), "xdp_audit_")] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sums
}

// randomCounters fills every cell that the kernel can count in.
func randomCounters(device string, r *rand.Rand) bpf.Counters {
	return counters(device, func(c *bpf.Counters) {
		for family := range c.Packets {
			for protocol := range c.Packets[family] {
				if family != int(bpf.FamilyOther) || protocol == int(bpf.ProtocolOther) {
					c.Bytes[family][protocol] = r.Uint64N(1 << 40)
					for outcome := range c.Packets[family][protocol] {
						c.Packets[family][protocol][outcome] = r.Uint64N(1 << 30)
					}
				}
			}
		}
		for cell := range c.Histogram {
			c.Histogram[cell] = r.Uint64N(1 << 20)
		}
		for fate := range c.Fates {
			c.Fates[fate] = r.Uint64N(1 << 20)
		}
		c.Evictions = [bpf.NumEvictions]uint64{r.Uint64N(1000), r.Uint64N(1000)}
		c.Inserts = 2000 + r.Uint64N(1000)
		c.Sums = bpf.DeltaSums{ReferenceNs: 1, AboveNs: bpf.Uint128{Lo: r.Uint64()}, SquaredNs2: bpf.Uint128{Hi: r.Uint64(), Lo: r.Uint64()}}
		c.LastFlag = &bpf.Flag{DeltaNs: r.Uint64N(1 << 30), Samples: 100, M2: bpf.Uint128{Lo: r.Uint64()}, LenBytes: 60}
	})
}

func newSet(t *testing.T, source Source, options Options) *Set {
	t.Helper()
	set, err := New(source, options)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func TestSetReportsItsCollectors(t *testing.T) {
	var log strings.Builder
	source := &fakeSource{
		hooks:   []bpf.Hook{{Device: "eth0"}},
		runsErr: errors.New("no permission"),
	}
	set := newSet(t, source, Options{Collectors: []string{"trail", "program"}, Trail: fakeTrail{}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	err := testutil.GatherAndCompare(gatherer(t, set), strings.NewReader(`
# HELP xdp_audit_hook_up Whether the audit is attached to the device.
# TYPE xdp_audit_hook_up gauge
xdp_audit_hook_up{device="eth0"} 0
# HELP xdp_audit_scrape_collector_success Whether a collector succeeded.
# TYPE xdp_audit_scrape_collector_success gauge
xdp_audit_scrape_collector_success{collector="program"} 0
xdp_audit_scrape_collector_success{collector="trail"} 1
`), "xdp_audit_hook_up", "xdp_audit_scrape_collector_success")
	if err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(gatherer(t, set), "xdp_audit_scrape_collector_duration_seconds"); err != nil || n != 2 {
		t.Errorf("%d durations (%v), want 2", n, err)
	}
	for _, want := range []string{"level=ERROR", "collector program", "no permission"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log is %q, want %q", log.String(), want)
		}
	}
}

func TestSetUpdateReturnsFailures(t *testing.T) {
	failure := errors.New("no permission")
	set := newSet(t, &fakeSource{runsErr: failure}, Options{})
	ch := make(chan prometheus.Metric, 1000)
	if err := set.Update(ch); !errors.Is(err, failure) {
		t.Errorf("Update returned %v, want %v", err, failure)
	}
}

func TestSetReadsCountersOnce(t *testing.T) {
	source := &countingSource{}
	gather := gatherer(t, newSet(t, source, Options{}))
	for scrape := 1; scrape <= 3; scrape++ {
		if _, err := gather.Gather(); err != nil {
			t.Fatal(err)
		}
		if source.reads != scrape {
			t.Fatalf("%d readings of the counters in %d scrapes", source.reads, scrape)
		}
	}
}

type countingSource struct {
	fakeSource
	reads int
}

func (c *countingSource) Counters() []bpf.Counters {
	c.reads++
	return c.fakeSource.Counters()
}

func TestFilter(t *testing.T) {
	set := newSet(t, &fakeSource{}, Options{Collectors: []string{"packets", "flags", "timing"}})
	tests := []struct {
		description      string
		collect, exclude []string
		want             []string
		err              string
	}{
		{description: "no filter", want: []string{"packets", "flags", "timing"}},
		{description: "collect keeps the set's order", collect: []string{"timing", "packets"}, want: []string{"packets", "timing"}},
		{description: "collect twice is once", collect: []string{"flags", "flags"}, want: []string{"flags"}},
		{description: "exclude", exclude: []string{"flags"}, want: []string{"packets", "timing"}},
		{description: "exclude what is disabled", exclude: []string{"flows"}, want: []string{"packets", "flags", "timing"}},
		{description: "exclude all", exclude: []string{"packets", "flags", "timing"}, want: []string{}},
		{description: "collect what is disabled", collect: []string{"flows"}, err: `"flows" is disabled`},
		{
			description: "collect what does not exist", collect: []string{"flags", "cpu\n"},
			err: `"cpu\n": use one of packets, flags, timing, events, flows, program, covert, leak, trail, privileges`,
		},
		{
			description: "exclude what does not exist", exclude: []string{""},
			err: `"": use one of packets, flags, timing, events, flows, program, covert, leak, trail, privileges`,
		},
		{
			description: "collect and exclude", collect: []string{"flags"}, exclude: []string{"timing"},
			err: "cannot be combined",
		},
	}
	for _, test := range tests {
		t.Run(test.description, func(t *testing.T) {
			filtered, err := set.Filter(test.collect, test.exclude)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("got error %v, want %s", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := names(filtered.subjects); !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
			if got := names(set.subjects); len(got) != 3 {
				t.Errorf("the filter left %v of the set itself", got)
			}
		})
	}
}

func TestNew(t *testing.T) {
	withoutCovert := slices.DeleteFunc(Names(), func(name string) bool { return name == "covert" })
	if !slices.Equal(withoutCovert, Defaults()) {
		t.Errorf("the defaults are %v of %v", Defaults(), Names())
	}
	if got := names(newSet(t, &fakeSource{}, Options{}).subjects); !slices.Equal(got, Defaults()) {
		t.Errorf("without a choice the set is %v, want %v", got, Defaults())
	}
	if got := names(newSet(t, &fakeSource{}, Options{Collectors: []string{}}).subjects); len(got) != 0 {
		t.Errorf("the empty choice gave %v", got)
	}
	if _, err := New(&fakeSource{}, Options{Collectors: []string{"cpu"}}); err == nil {
		t.Error("a collector that does not exist was accepted")
	}
}

func TestIdentities(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		source := &fakeSource{counters: []bpf.Counters{randomCounters("eth0", r), randomCounters("eth1", r)}}
		gather := gatherer(t, newSet(t, source, Options{}))
		got := sums(t, gather)
		if got["packets_total"] != got["outcomes_total"] || got["packets_total"] == 0 {
			t.Fatalf("%v packets, but %v outcomes", got["packets_total"], got["outcomes_total"])
		}
		var flagged, deltas uint64
		for i := range source.counters {
			packets := &source.counters[i].Packets
			flagged += packets.Outcome(bpf.OutcomeFlaggedEarly) + packets.Outcome(bpf.OutcomeFlaggedLate)
			deltas += packets.Outcome(bpf.OutcomeJudged) + packets.Outcome(bpf.OutcomeMinSamples)
		}
		if got["leak_flags_total"] != float64(flagged) {
			t.Fatalf("%v flags, but %v flagged packets", got["leak_flags_total"], flagged)
		}
		if got["deltas_total"] != float64(deltas+flagged) {
			t.Fatalf("%v deltas, but %v packets that have one", got["deltas_total"], deltas+flagged)
		}
	}
}

func TestLint(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	source := &fakeSource{
		counters: []bpf.Counters{randomCounters("eth0", r)},
		hooks:    []bpf.Hook{{Device: "eth0", Up: true}},
		runs:     []bpf.Runs{{Device: "eth0"}},
	}
	problems, err := testutil.GatherAndLint(gatherer(t, newSet(t, source, Options{Collectors: Names(), Trail: fakeTrail{}, Covert: NewCovert(), Leak: fakeLeak{Set: assessed(t, 100)}})))
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}
}

// A device name that is not UTF-8 fails the scrape of the device. Nothing panics.
func TestNameOutsideUTF8(t *testing.T) {
	source := &fakeSource{counters: []bpf.Counters{counters("eth\xff", func(*bpf.Counters) {})}}
	families, err := gatherer(t, newSet(t, source, Options{Collectors: []string{"packets", "timing"}})).Gather()
	if err == nil {
		t.Error("no error for a label outside UTF-8")
	}
	if len(families) == 0 {
		t.Error("nothing was gathered")
	}
}

func TestConcurrentScrapes(t *testing.T) {
	source := &fakeSource{
		counters: []bpf.Counters{randomCounters("eth0", rand.New(rand.NewPCG(5, 6)))},
		hooks:    []bpf.Hook{{Device: "eth0", Up: true}},
	}
	set := newSet(t, source, Options{})
	gather := gatherer(t, set)
	var scrapes sync.WaitGroup
	for range 8 {
		scrapes.Go(func() {
			filtered, err := set.Filter([]string{"timing"}, nil)
			if err != nil {
				t.Error(err)
				return
			}
			ch := make(chan prometheus.Metric, 1000)
			if err := filtered.Update(ch); err != nil {
				t.Error(err)
			}
			if _, err := gather.Gather(); err != nil {
				t.Error(err)
			}
		})
	}
	scrapes.Wait()
}

func BenchmarkScrape(b *testing.B) {
	r := rand.New(rand.NewPCG(7, 8))
	source := &fakeSource{counters: []bpf.Counters{
		randomCounters("eth0", r), randomCounters("eth1", r), randomCounters("eth2", r), randomCounters("eth3", r),
	}}
	set, err := New(source, Options{})
	if err != nil {
		b.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(set)
	for b.Loop() {
		if _, err := registry.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}
