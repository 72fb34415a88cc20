// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package assessment

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/assessmentfile"
	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

// configuration returns one with assessments of these names.
func configuration(t testing.TB, order leak.Order, names ...string) *assessmentfile.File {
	t.Helper()
	text := "assessments:\n"
	for i, name := range names {
		text += fmt.Sprintf("  - {name: %s, protocol: tcp, port: %d, order: %v, classes: {fixed: {dscp: 8}, random: {dscp: 16}}}\n", name, i+1, order)
	}
	file, err := assessmentfile.Parse("leak.yml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func ignore([]bpf.Assessment) error { return nil }

func at(ns uint64) func() uint64 { return func() uint64 { return ns } }

func reload(t testing.TB, s *Set, file *assessmentfile.File, sinceNs uint64) {
	t.Helper()
	if err := s.Reload(file, ignore, at(sinceNs)); err != nil {
		t.Fatal(err)
	}
}

// recorder has the lines of each assessment.
type recorder struct {
	mu    sync.Mutex
	lines map[string][]byte
}

func newRecorder() *recorder { return &recorder{lines: map[string][]byte{}} }

func (r *recorder) Append(assessment string, lines []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines[assessment] = append(r.lines[assessment], lines...)
	return nil
}

func (r *recorder) Line(lines []byte, class leak.Class, ns uint64) []byte {
	return RawCSV.line(lines, class, ns)
}

// traffic returns n requests of connections that are open at the same time. Their times often are
// equal, and some responses take longer than the hold.
func traffic(r *rand.Rand, n int, names []string, holdNs uint64) (exchanges []bpf.Exchange) {
	type connection struct {
		name     string
		nowNs    uint64
		position uint32
		hasStart bool
		first    int
	}
	connections := make([]connection, 12)
	for i := range connections {
		connections[i] = connection{name: names[i%len(names)], nowNs: 1000 + r.Uint64N(100), hasStart: r.IntN(4) > 0}
	}
	for range n {
		i := r.IntN(len(connections))
		c := &connections[i]
		arrivalNs := c.nowNs + r.Uint64N(20)
		responseNs := r.Uint64N(30)
		if r.IntN(20) == 0 {
			responseNs = r.Uint64N(3 * holdNs)
		}
		class := r.IntN(2)
		if c.position%2 == 1 {
			class = 1 - c.first
		}
		c.first = class
		exclusion := bpf.ExclusionNone
		if r.IntN(15) == 0 {
			exclusion = bpf.Exclusion(1 + r.IntN(int(bpf.NumExclusions)-1))
			if exclusion == bpf.ExclusionMixed || exclusion == bpf.ExclusionUnclassified {
				class = bpf.ClassNone
			}
		}
		c.nowNs = arrivalNs + responseNs
		if r.IntN(25) > 0 { // others were lost: the ring was full
			exchanges = append(exchanges, bpf.Exchange{
				Assessment: c.name, Class: class, Exclusion: exclusion, TimeNs: c.nowNs, ResponseNs: responseNs,
				Connection: uint64(i), Position: c.position, HasStart: c.hasStart,
			})
		}
		c.position++
	}
	return exchanges
}

// sorted returns what a judge must have got: all requests sorted at once.
func sorted(t *testing.T, file *assessmentfile.File, exchanges []bpf.Exchange, holdNs uint64) (reports map[string]leak.Report, lines map[string][]byte) {
	t.Helper()
	key := func(x *bpf.Exchange) uint64 { return max(x.TimeNs-x.ResponseNs, x.TimeNs-min(x.TimeNs, holdNs)) }
	all := slices.Clone(exchanges)
	slices.SortFunc(all, func(a, b bpf.Exchange) int {
		return cmp.Or(cmp.Compare(key(&a), key(&b)), cmp.Compare(a.Connection, b.Connection), cmp.Compare(a.Position, b.Position))
	})
	judges := map[string]*leak.Judge{}
	for i := range file.Assessments {
		judge, err := leak.New(file.Assessments[i].Judged())
		if err != nil {
			t.Fatal(err)
		}
		judges[file.Assessments[i].Name] = judge
	}
	lines = map[string][]byte{}
	for _, x := range all {
		r := leak.Request{Class: leak.Unknown, TimeNs: x.TimeNs - x.ResponseNs, Connection: x.Connection, Number: x.Position, IsMiddle: !x.HasStart}
		if x.Class != bpf.ClassNone {
			r.Class = leak.Class(x.Class)
		}
		if x.Exclusion != bpf.ExclusionNone {
			judges[x.Assessment].Exclude(r)
			continue
		}
		judges[x.Assessment].Response(r, x.ResponseNs)
		lines[x.Assessment] = fmt.Appendf(lines[x.Assessment], "%c,%d\n", "XY"[x.Class], x.ResponseNs)
	}
	reports = map[string]leak.Report{}
	for name, judge := range judges {
		reports[name] = judge.Report()
	}
	return reports, lines
}

// However requests are spread over CPUs and batches, a judge gets them as if all were sorted at
// once.
func TestOrder(t *testing.T) {
	const holdNs = 100
	names := []string{"a", "b", "c"}
	for _, order := range []leak.Order{leak.Random, leak.Blocks, leak.Observed} {
		for seed := range uint64(8) {
			r := rand.New(rand.NewPCG(seed, uint64(order)))
			file := configuration(t, order, names...)
			exchanges := traffic(r, 3000, names, holdNs)
			reports, lines := sorted(t, file, exchanges, holdNs)
			for range 3 {
				// The order of equal times is that of the CPUs that read them, so any.
				r.Shuffle(len(exchanges), func(i, j int) { exchanges[i], exchanges[j] = exchanges[j], exchanges[i] })
				slices.SortStableFunc(exchanges, func(a, b bpf.Exchange) int { return cmp.Compare(a.TimeNs, b.TimeNs) })
				record := newRecorder()
				s := newSet(record, holdNs, mostHeld)
				reload(t, s, file, 0)
				for rest := exchanges; len(rest) > 0; {
					n := min(1+r.IntN(60), len(rest))
					if err := s.Add(rest[:n]); err != nil {
						t.Fatal(err)
					}
					rest = rest[n:]
					if len(rest) > 0 && r.IntN(3) == 0 {
						_ = s.Advance(rest[0].TimeNs)
					}
				}
				_ = s.Flush()
				for _, status := range s.Snapshot() {
					name := status.Assessment.Name
					if !reflect.DeepEqual(status.Report, reports[name]) {
						t.Fatalf("%v, seed %d, %s: the report differs from that of sorted requests", order, seed, name)
					}
					if !bytes.Equal(record.lines[name], lines[name]) {
						t.Fatalf("%v, seed %d, %s: the raw lines differ from those of sorted requests", order, seed, name)
					}
				}
				if c := s.Counts(); c != (Counts{}) {
					t.Errorf("%+v, want none", c)
				}
			}
		}
	}
}

// Status has each request in one place, at any moment.
func TestIdentities(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const holdNs = 100
	s := newSet(nil, holdNs, mostHeld)
	file := configuration(t, leak.Random, "a", "b")
	reload(t, s, file, 0)
	exchanges := traffic(r, 5000, []string{"a", "b", "unknown"}, holdNs)
	slices.SortFunc(exchanges, func(a, b bpf.Exchange) int { return cmp.Compare(a.TimeNs, b.TimeNs) })
	check := func(n int) {
		t.Helper()
		received, held := uint64(0), uint64(0)
		for _, status := range s.Snapshot() {
			sum := status.Held
			for i := range status.Responses {
				sum += status.Responses[i]
				if count := status.Times[i].Count(); count != status.Responses[i] || count != status.Report.Classes[i].Responses {
					t.Fatalf("class %d: %d responses, %d in the histogram, %d judged", i, status.Responses[i], count, status.Report.Classes[i].Responses)
				}
				if status.SumNs[i] != status.Report.Classes[i].SumNs {
					t.Fatalf("sums of %d and %d ns", status.SumNs[i], status.Report.Classes[i].SumNs)
				}
			}
			excluded := status.Report.ExcludedUnknown + status.Report.Classes[0].Excluded + status.Report.Classes[1].Excluded
			for _, n := range status.Excluded {
				sum += n
				excluded -= n
			}
			if sum != status.Received || excluded != 0 {
				t.Fatalf("%d received, and the sum is %d; %d excluded too many", status.Received, sum, excluded)
			}
			received, held = received+status.Received, held+status.Held
		}
		if c := s.Counts(); received+c.Discarded != uint64(n) || c.Held != held {
			t.Fatalf("%d added, %d received, %+v, %d held", n, received, c, held)
		}
	}
	for n := 0; n < len(exchanges); n += 100 {
		check(n)
		_ = s.Add(exchanges[n:min(n+100, len(exchanges))])
	}
	check(len(exchanges))
	if s.Counts().Held == 0 {
		t.Error("no request waits at the end")
	}
	_ = s.Advance(exchanges[len(exchanges)-1].TimeNs + holdNs + 1)
	check(len(exchanges))
	if held := s.Counts().Held; held != 0 {
		t.Errorf("%d requests wait without end", held)
	}
}

// Records that the kernel does not make are counted too.
func TestUnusualRecords(t *testing.T) {
	s := New(nil)
	reload(t, s, configuration(t, leak.Random, "a"), 0)
	_ = s.Add([]bpf.Exchange{
		{Assessment: "a", Class: bpf.ClassNone, TimeNs: 10, ResponseNs: 20},
		{Assessment: "a", Class: 7, Exclusion: 200, TimeNs: 11},
		{Assessment: "a", Class: 1, TimeNs: 1 << 50, ResponseNs: 1 << 49},
	})
	_ = s.Flush()
	status := s.Snapshot()[0]
	if status.Excluded[bpf.ExclusionUnclassified] != 2 || status.Responses != [2]uint64{0, 1} || status.Held != 0 {
		t.Errorf("%+v", status)
	}
	if status.SumNs[1] != leak.LongestNs || status.Report.Classes[1].SumNs != leak.LongestNs {
		t.Errorf("the sum is %d ns", status.SumNs[1])
	}
}

// An assessment that did not change continues, with its requests that wait.
func TestReload(t *testing.T) {
	record := newRecorder()
	s := newSet(record, 100, mostHeld)
	exchange := func(name string, timeNs uint64) bpf.Exchange {
		return bpf.Exchange{Assessment: name, Class: int(timeNs % 2), TimeNs: timeNs, ResponseNs: 5, Connection: timeNs, HasStart: true}
	}
	reload(t, s, configuration(t, leak.Random, "a", "b", "c"), 1000)
	_ = s.Add([]bpf.Exchange{exchange("a", 999), exchange("a", 1000), exchange("b", 1000), exchange("c", 1000), exchange("d", 1000)})
	if c := s.Counts(); c.Discarded != 2 || c.Held != 3 {
		t.Errorf("%+v", c)
	}

	refused := errors.New("refused")
	after := configuration(t, leak.Random, "a", "b", "d")
	after.Assessments[1].Target *= 2
	var measured []bpf.Assessment
	if err := s.Reload(after, func(m []bpf.Assessment) error { measured = m; return refused }, at(0)); !errors.Is(err, refused) {
		t.Errorf("error %v", err)
	}
	if len(measured) != 3 || measured[2].Name != "d" || measured[2].Port != 3 {
		t.Errorf("measured: %+v", measured)
	}
	if states := s.Snapshot(); len(states) != 3 || states[2].Assessment.Name != "c" || states[1].Held != 1 {
		t.Errorf("after a refused reload: %+v", states)
	}

	reload(t, s, after, 2000)
	if c := s.Counts(); c.Discarded != 4 || c.Held != 1 {
		t.Errorf("%+v", c)
	}
	_ = s.Add([]bpf.Exchange{exchange("a", 1999), exchange("b", 1999), exchange("c", 2001), exchange("d", 1999), exchange("a", 2001), exchange("b", 2001), exchange("d", 2000)})
	_ = s.Flush()
	got := map[string]uint64{}
	for _, status := range s.Snapshot() {
		got[status.Assessment.Name] = status.Responses[0] + status.Responses[1]
	}
	if want := map[string]uint64{"a": 3, "b": 1, "d": 1}; !reflect.DeepEqual(got, want) {
		t.Errorf("responses %v, want %v", got, want)
	}
	if lines := string(record.lines["a"]); lines != "X,5\nY,5\nY,5\n" {
		t.Errorf("lines %q", lines)
	}

	twice := configuration(t, leak.Random, "a", "b")
	twice.Assessments[1].Name = "a"
	if err := s.Reload(twice, ignore, at(0)); err == nil || !strings.Contains(err.Error(), "two assessments") {
		t.Errorf("two of a name: %v", err)
	}
	bad := configuration(t, leak.Random, "z")
	bad.Assessments[0].Alpha = 2
	if err := s.Reload(bad, ignore, at(0)); err == nil || !strings.Contains(err.Error(), "assessment z") {
		t.Errorf("bad alpha: %v", err)
	}
}

// The number of requests that wait is bounded. Then the order is that of the ones that waited.
func TestHeldIsBounded(t *testing.T) {
	s := newSet(nil, holdNs, 64)
	reload(t, s, configuration(t, leak.Blocks, "a"), 0)
	var all []bpf.Exchange
	for i := range uint64(1000) {
		x := bpf.Exchange{Assessment: "a", Class: int(i % 2), TimeNs: 10_000 + i, ResponseNs: 1, Connection: i / 2, Position: uint32(i % 2), HasStart: true}
		if i%100 == 0 {
			x.ResponseNs, x.Connection = 5000, 1_000_000+i
		}
		all = append(all, x)
	}
	_ = s.Add(all)
	c := s.Counts()
	if c.Held != 64 || c.Disordered == 0 || c.Disordered > 10 || cap(s.queue.heap) > 128 {
		t.Errorf("%+v, capacity %d", c, cap(s.queue.heap))
	}
	_ = s.Flush()
	if status := s.Snapshot()[0]; status.Received != 1000 || status.Held != 0 || status.Report.Pairs < 480 {
		t.Errorf("%d received, %d held, %d pairs", status.Received, status.Held, status.Report.Pairs)
	}
}

// A leak is found through the whole package, whichever CPU each response comes from.
func TestFindsALeak(t *testing.T) {
	for _, order := range []leak.Order{leak.Random, leak.Blocks} {
		r := rand.New(rand.NewPCG(7, uint64(order)))
		s := New(nil)
		reload(t, s, configuration(t, order, "login"), 0)
		var all []bpf.Exchange
		for connection := range uint64(20) {
			nowNs, first := 1000+connection, 0
			for position := range uint32(200) {
				class := r.IntN(2)
				if order == leak.Blocks && position%2 == 1 {
					class = 1 - first
				}
				first = class
				responseNs := 200_000 + uint64(10_000*r.ExpFloat64()) + uint64(class)*10_000
				nowNs += 1000 + r.Uint64N(100_000) + responseNs
				all = append(all, bpf.Exchange{Assessment: "login", Class: class, TimeNs: nowNs, ResponseNs: responseNs, Connection: connection, Position: position, HasStart: true})
			}
		}
		slices.SortFunc(all, func(a, b bpf.Exchange) int { return cmp.Compare(a.TimeNs, b.TimeNs) })
		for batch := range slices.Chunk(all, 37) {
			_ = s.Add(batch)
		}
		_ = s.Flush()
		report := s.Snapshot()[0].Report
		if report.Verdict != leak.Leak || report.LowNs > 10_000 || report.HighNs < 10_000 || report.Classes[0].Name != "fixed" {
			t.Errorf("%v: %s", order, report.Sentence)
		}
	}
}

// A reader, scrapes and reloads at the same time.
func TestConcurrency(t *testing.T) {
	record := newRecorder()
	s := newSet(record, 100, 1000)
	r := rand.New(rand.NewPCG(3, 4))
	exchanges := traffic(r, 20_000, []string{"a", "b"}, 100)
	slices.SortFunc(exchanges, func(a, b bpf.Exchange) int { return cmp.Compare(a.TimeNs, b.TimeNs) })
	files := []*assessmentfile.File{configuration(t, leak.Random, "a", "b"), configuration(t, leak.Random, "a")}
	reload(t, s, files[0], 0)
	var others sync.WaitGroup
	done := make(chan struct{})
	repeat := func(f func(i int)) {
		others.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
					f(i)
				}
			}
		})
	}
	repeat(func(int) {
		for _, status := range s.Snapshot() {
			sum := status.Held + status.Responses[0] + status.Responses[1]
			for _, n := range status.Excluded {
				sum += n
			}
			if sum != status.Received {
				t.Errorf("%d received, and the sum is %d", status.Received, sum)
			}
		}
		s.Counts()
	})
	repeat(func(i int) { _ = s.Reload(files[i%2], ignore, at(0)) })
	for batch := range slices.Chunk(exchanges, 200) {
		if err := s.Add(batch); err != nil {
			t.Fatal(err)
		}
	}
	_ = s.Flush()
	close(done)
	others.Wait()
	var kept uint64
	for i := range exchanges {
		if exchanges[i].Assessment == "a" {
			kept++
		}
	}
	if status := s.Snapshot()[0]; status.Received != kept || status.Held != 0 {
		t.Errorf("assessment a, which all configurations have: %d received, %d held, want %d", status.Received, status.Held, kept)
	}
	if lines := uint64(bytes.Count(record.lines["a"], []byte("\n"))); lines != s.Snapshot()[0].Responses[0]+s.Snapshot()[0].Responses[1] {
		t.Errorf("%d lines", lines)
	}
}

// BenchmarkAdd measures an exchange among 200 connections, without and with raw files.
func BenchmarkAdd(b *testing.B) {
	for name, raw := range map[string]RawWriter{"judge": nil, "judge-and-raw": discard{}} {
		b.Run(name, func(b *testing.B) {
			s := New(raw)
			reload(b, s, configuration(b, leak.Random, "a"), 0)
			r := rand.New(rand.NewPCG(1, 2))
			batch := make([]bpf.Exchange, 1000)
			nowNs := uint64(1e9)
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				if n%len(batch) > 0 {
					continue
				}
				b.StopTimer()
				for i := range batch {
					nowNs += 3000
					batch[i] = bpf.Exchange{Assessment: "a", Class: r.IntN(2), TimeNs: nowNs, ResponseNs: 200_000 + r.Uint64N(100_000), Connection: r.Uint64N(200), HasStart: true}
				}
				b.StartTimer()
				if err := s.Add(batch); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

type discard struct{}

func (discard) Append(string, []byte) error { return nil }

func (discard) Line(lines []byte, class leak.Class, ns uint64) []byte {
	return RawCSV.line(lines, class, ns)
}
