// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package probe

import (
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

// fakeExporter judges the requests that a service gets, with their classes, as an exporter does.
type fakeExporter struct {
	*httptest.Server
	mu     sync.Mutex
	state  assessment
	judge  *leak.Judge
	number uint32
	status int  // of its answers, 0 for 200
	isDeaf bool // marks are lost
}

func newFakeExporter(t *testing.T, order leak.Order) *fakeExporter {
	t.Helper()
	judge, err := leak.New(leak.Config{Order: order, Classes: [2]string{"fixed", "random"}, TargetNs: 10_000, Alpha: 1e-4})
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeExporter{judge: judge, state: assessment{
		Name: "login", Protocol: "tcp", Classes: [2]string{"fixed: {dscp: 10, source_port: 1024-1999}", "random: {dscp: 20, source_port: 2000-2999}"},
	}}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		user, _, _ := r.BasicAuth()
		switch {
		case r.URL.Path != leakPath:
			http.NotFound(w, r)
			return
		case user != "me":
			w.WriteHeader(http.StatusUnauthorized)
			return
		case f.status != 0:
			w.WriteHeader(f.status)
			return
		}
		f.state.Report = f.judge.Report()
		_ = json.NewEncoder(w).Encode(map[string]any{"assessments": []assessment{{Name: "other", Protocol: "tcp", Port: 1}, f.state}})
	}))
	t.Cleanup(f.Close)
	return f
}

// got takes a request of a class.
func (f *fakeExporter) got(class leak.Class, took time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.Requests++
	r := leak.Request{Class: class, TimeNs: uint64(f.number) * 1000, Number: f.number}
	f.number++
	if f.isDeaf {
		r.Class = leak.Unknown
	}
	f.judge.Response(r, uint64(took))
}

// service returns a service that the exporter measures. Its times are those of the exporter alone.
func (f *fakeExporter) service(t *testing.T, plant time.Duration, warmup int) *service {
	t.Helper()
	var mu sync.Mutex
	n, times := 0, rand.New(rand.NewPCG(3, 4))
	s := newService(t, func(w http.ResponseWriter, r *http.Request, isY bool) {
		mu.Lock()
		defer mu.Unlock()
		if n++; n > warmup {
			class, took := leak.X, 100*time.Microsecond+time.Duration(10_000*times.ExpFloat64())
			if isY {
				class, took = leak.Y, took+plant
			}
			f.got(class, took)
		}
		same(w, r, isY)
	}).start()
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	f.state.Port = uint16(port)
	return s
}

// config returns a file with the user of the exporter.
func (f *fakeExporter) config(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "http.yml")
	if err := os.WriteFile(path, []byte("basic_auth: {username: me, password: secret}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (f *fakeExporter) arguments(t *testing.T, s *service, more ...string) []string {
	return s.arguments(append([]string{"--report=" + f.URL, "--report.http-config=" + f.config(t)}, more...)...)
}

// The verdict of the exporter decides, and the probe takes order, marks and target from it.
func TestReport(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		description string
		order       leak.Order
		plant       time.Duration
		want        leak.Verdict
		code        int
	}{
		{"a leak that only the kernel sees", leak.Blocks, 20 * time.Microsecond, leak.Leak, exitLeak},
		{"a leak by coins", leak.Random, 20 * time.Microsecond, leak.Leak, exitLeak},
		{"a difference below the exporter's target", leak.Blocks, time.Microsecond, leak.None, exitNone},
		{"a difference of an observation", leak.Observed, 20 * time.Microsecond, leak.Difference, exitLeak},
	} {
		t.Run(test.description, func(t *testing.T) {
			t.Parallel()
			f := newFakeExporter(t, test.order)
			o := probe(t, f.arguments(t, f.service(t, test.plant, 2), "--requests=8000")...)
			if o.code != test.code || o.result.Verdict != test.want || o.result.DecidedBy != ofKernel || o.result.Order != test.order.String() {
				t.Errorf("exit code %d, %v by %s:\n%s%s", o.code, o.result.Verdict, o.result.DecidedBy, o.stdout, o.stderr)
			}
			if o.result.Kernel.Report.Verdict != test.want || o.result.Client.TargetNs != 10_000 || o.result.Client.Alpha != 1e-4 {
				t.Errorf("kernel: %v, target of the client: %v ns", o.result.Kernel.Report.Verdict, o.result.Client.TargetNs)
			}
			for _, want := range []string{"DSCP 10 and 20", "kernel ", "client ", "By the client's times", "`random`"} {
				if !strings.Contains(o.stdout+o.stderr, want) {
					t.Errorf("it does not say %q:\n%s%s", want, o.stdout, o.stderr)
				}
			}
		})
	}
}

// Each fault of the exporter's side is named.
func TestReportFaults(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		description string
		change      func(f *fakeExporter)
		flags       []string
		want        string
	}{
		{"marks are lost", func(f *fakeExporter) { f.isDeaf = true }, []string{"--requests=300"}, "marks are lost"},
		{"another order", nil, []string{"--order=random"}, "--order=blocks"},
		{"another mark", nil, []string{"--x.dscp=9"}, "--x.dscp: 9"},
		{"another port", nil, []string{"--label=port", "--x.port=999"}, "--x.port: 999"},
		{"blocks and ports", nil, []string{"--label=port"}, "--order=random"},
		{"no class by DSCP", func(f *fakeExporter) { f.state.Classes[1] = "random: {vlan: 7}" }, nil, "has no dscp"},
		{"an unknown assessment", nil, []string{"--assessment=logout"}, `--assessment: "logout"`},
		{"no assessment of the port", func(f *fakeExporter) { f.state.Port = 2 }, nil, "login (tcp port 2)"},
		{"an assessment of UDP", func(f *fakeExporter) { f.state.Protocol = "udp" }, nil, "login (udp"},
		{"a status", func(f *fakeExporter) { f.status = http.StatusTeapot }, nil, "418"},
		{"no assessments", func(f *fakeExporter) { f.status = http.StatusNotFound }, nil, "--leak.config.file"},
		{"a wrong user", nil, []string{"--report.http-config=none"}, "--report.http-config"},
		{"the exporter ends", func(f *fakeExporter) {
			time.AfterFunc(200*time.Millisecond, func() {
				f.mu.Lock()
				defer f.mu.Unlock()
				f.status = http.StatusBadGateway
			})
		}, []string{"--requests=2000"}, "502"},
	} {
		t.Run(test.description, func(t *testing.T) {
			t.Parallel()
			f := newFakeExporter(t, leak.Blocks)
			s := f.service(t, 20*time.Microsecond, 2)
			if test.change != nil {
				test.change(f)
			}
			args := f.arguments(t, s, test.flags...)
			if strings.HasPrefix(strings.Join(test.flags, ""), "--report.http-config") {
				args = s.arguments("--report=" + f.URL)
				test.want = "401"
			}
			o := probe(t, args...)
			if o.code != exitError || !strings.Contains(o.stdout+o.stderr, test.want) {
				t.Errorf("exit code %d, want %d and %q:\n%s%s", o.code, exitError, test.want, o.stdout, o.stderr)
			}
		})
	}
}

// Requests of before the run, and of others, count in the exporter's verdict: this is said.
func TestReportNotes(t *testing.T) {
	t.Parallel()
	f := newFakeExporter(t, leak.Blocks)
	coins := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		first := leak.Class(coins.IntN(2))
		f.got(first, time.Millisecond)
		f.got(1-first, time.Millisecond)
	}
	f.number = 0
	s := f.service(t, 0, 2)
	others := s.Config.Handler
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.got(leak.X, time.Millisecond)
		others.ServeHTTP(w, r)
	})
	o := probe(t, f.arguments(t, s, "--requests=100")...)
	for _, want := range []string{"100 pairs of earlier requests", "others send"} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("it does not say %q:\n%s", want, o.stdout)
		}
	}
}

func TestMarkFaults(t *testing.T) {
	state := func(x, y uint64) *assessment {
		var a assessment
		a.Report.Classes[0].Responses, a.Report.Classes[1].Excluded = x, y
		return &a
	}
	for _, test := range []struct {
		x, y          uint64 // more than before
		faults, notes int
	}{
		{1000, 1000, 0, 0},
		{1000, 0, 1, 0},
		{970, 970, 1, 0},
		{990, 990, 0, 0}, // a few are lost everywhere
		{1100, 1000, 0, 1},
	} {
		faults, notes := markFaults(state(7, 8), state(7+test.x, 8+test.y), &counts{Sent: [2]uint64{1000, 1000}})
		if len(faults) != test.faults || len(notes) != test.notes {
			t.Errorf("%d and %d of 1000: %v, %v", test.x, test.y, faults, notes)
		}
	}
	if state(2000, 2000).continues(&assessment{Requests: 10}) || state(1, 9).continues(state(2, 8)) || !state(2, 9).continues(state(2, 8)) {
		t.Error("counts that decrease are those of an exporter that has begun again, and no others")
	}
}

func TestProgress(t *testing.T) {
	p := &progress{o: &options{requests: 1000, rate: 100, duration: time.Minute}}
	line := p.line(&counts{Sent: [2]uint64{125, 125}}, &leak.Report{Verdict: leak.Inconclusive, EvidenceLog10: 2.5}, 2500*time.Millisecond)
	const want = "[=====               ]  25 %  250 requests, 100/s, at most 8s left, inconclusive, evidence 10^2.5"
	if line != want {
		t.Errorf("%q, want %q", line, want)
	}
	if late := p.line(&counts{Sent: [2]uint64{1, 1}}, &leak.Report{}, time.Hour); !strings.Contains(late, "100 %") || !strings.Contains(late, "at most 0s") {
		t.Errorf("%q", late)
	}
	if newProgress(&strings.Builder{}, &options{showsProgress: true}).w != nil {
		t.Error("there is a bar without a terminal")
	}
}

// newReportedRun returns a run of a probe that follows an exporter, before its first look.
func newReportedRun(t *testing.T, report string) *run {
	t.Helper()
	o := &options{report: report, assessment: "login", stops: true, requests: 10, rate: 1}
	e, err := newExporter(o, 80)
	if err != nil {
		t.Fatal(err)
	}
	l, err := newLedger(leak.Config{Classes: [2]string{"X", "Y"}, Alpha: 0.5})
	if err != nil {
		t.Fatal(err)
	}
	return &run{o: o, exporter: e, ledger: l, before: &assessment{}, seen: &assessment{}, seenAt: time.Now(), begin: time.Now()}
}

// A run ends when two looks in a row have a verdict, since the last requests may change one.
func TestVerdictsMustBeSteady(t *testing.T) {
	verdict := leak.Waiting
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"assessments": []assessment{{Name: "login", Report: leak.Report{Verdict: verdict}}}})
	}))
	defer server.Close()
	r := newReportedRun(t, server.URL)
	for i, step := range []struct {
		verdict leak.Verdict
		isOver  bool
	}{
		{leak.Inconclusive, false}, {leak.Leak, false}, {leak.Inconclusive, false}, {leak.Leak, false}, {leak.Leak, true}, {leak.Invalid, true},
	} {
		verdict = step.verdict
		if got := r.look(t.Context(), &progress{}); got != step.isOver {
			t.Errorf("look %d with %v: it is over: %v, want %v", i, step.verdict, got, step.isOver)
		}
	}
}

// What answers instead of an exporter is named, without the password, and a redirect to another
// host gets no password.
func TestOtherAnswersThanThoseOfAnExporter(t *testing.T) {
	t.Parallel()
	var others atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { others.Add(1) }))
	defer other.Close()
	for _, test := range []struct {
		description string
		handle      http.HandlerFunc
		want        string
	}{
		{"a page for people", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, "not the page of an exporter"},
		{"a redirect to another host", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, http.StatusFound) }, "another host"},
		{"a redirect without end", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }, "302"},
		{"no answer", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
	} {
		server := httptest.NewServer(test.handle)
		o := probe(t, "--url=http://127.0.0.1:1", "--report="+strings.Replace(server.URL, "//", "//me:secret@", 1))
		if o.code != exitError || !strings.Contains(o.stderr, test.want) || strings.Contains(o.stderr, "secret") {
			t.Errorf("%s: exit code %d, want %q: %s", test.description, o.code, test.want, o.stderr)
		}
		server.Close()
	}
	if n := others.Load(); n > 0 {
		t.Errorf("%d requests to another host", n)
	}
}

// A verdict of requests before the run is not that of the run.
func TestVerdictsOfEarlierRequests(t *testing.T) {
	t.Parallel()
	f := newFakeExporter(t, leak.Blocks)
	s := f.service(t, 20*time.Microsecond, 2)
	if o := probe(t, f.arguments(t, s)...); o.code != exitLeak {
		t.Fatalf("exit code %d: %s%s", o.code, o.stdout, o.stderr)
	}
	before := len(s.all)
	o := probe(t, f.arguments(t, s)...)
	if want := "already is leak"; o.code != exitError || !strings.Contains(o.stderr, want) || len(s.all) > before {
		t.Errorf("exit code %d after %d requests, want %q: %s%s", o.code, len(s.all)-before, want, o.stdout, o.stderr)
	}
}

// An exporter that begins again, or vanishes, ends the run.
func TestExporterDuringARun(t *testing.T) {
	var state assessment
	status := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"assessments": []assessment{state}})
	}))
	defer server.Close()
	r := newReportedRun(t, server.URL)
	look := func(responses uint64) bool {
		state = assessment{Name: "login", Requests: responses}
		state.Report.Classes[leak.X].Responses = responses
		return r.look(t.Context(), &progress{})
	}
	if look(100) || look(200) {
		t.Fatal("the run is over without a reason")
	}
	status = http.StatusServiceUnavailable
	if look(300) {
		t.Error("the run is over after one answer that is missing")
	}
	r.seenAt = time.Now().Add(-patience)
	if !look(300) {
		t.Error("the run goes on without an exporter")
	}
	status = http.StatusOK
	if look(300) || len(r.faults) > 0 {
		t.Errorf("the exporter is back, and the faults are %v", r.faults)
	}
	if !look(250) || !slices.Contains(r.faults, beganAgain) {
		t.Errorf("the exporter has begun again, and the faults are %v", r.faults)
	}
}
