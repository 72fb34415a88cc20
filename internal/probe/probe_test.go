// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

// outcome is what a run of the command leaves.
type outcome struct {
	code           int
	stdout, stderr string
	result         result // with --json
}

// probe runs the command, fast.
func probe(t *testing.T, args ...string) outcome {
	t.Helper()
	return probeUntil(t.Context(), t, args...)
}

func probeUntil(ctx context.Context, t *testing.T, args ...string) (o outcome) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	file := filepath.Join(t.TempDir(), "result.json")
	args = append(slices.Clone(args), "--json="+file)
	// With a seed, chance has no part in the checks of the labels.
	for _, usual := range []string{"--rate=2000", "--warmup=2", "--requests=4000", "--seed=1"} {
		name, _, _ := strings.Cut(usual, "=")
		if !slices.ContainsFunc(args, func(arg string) bool { return strings.HasPrefix(arg, name+"=") }) {
			args = append(args, usual)
		}
	}
	code, err := Run(ctx, args, &stdout, &stderr)
	if err != nil {
		fmt.Fprintf(&stderr, "error: %v", err)
	} else if text, err := os.ReadFile(file); err != nil {
		t.Fatal(err)
	} else if err := json.Unmarshal(text, &o.result); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	o.code, o.stdout, o.stderr = code, stdout.String(), stderr.String()
	return o
}

// service is an HTTP service, which notes the paths that it is asked for on each connection.
type service struct {
	*httptest.Server
	mu    sync.Mutex
	paths map[string][]string // by the address of the client, in order
	all   []string
}

// newService starts a service. Requests to /y are of class Y.
func newService(t *testing.T, handle func(w http.ResponseWriter, r *http.Request, isY bool)) *service {
	t.Helper()
	s := &service{paths: map[string][]string{}}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		s.mu.Lock()
		s.paths[r.RemoteAddr] = append(s.paths[r.RemoteAddr], r.URL.Path)
		s.all = append(s.all, r.URL.Path)
		s.mu.Unlock()
		handle(w, r, strings.HasPrefix(r.URL.Path, "/y"))
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(s.Close)
	return s
}

func (s *service) start() *service { s.Start(); return s }

func (s *service) arguments(more ...string) []string {
	return append([]string{"--url=" + s.URL, "--x.path=/x", "--y.path=/y"}, more...)
}

func same(w http.ResponseWriter, _ *http.Request, _ bool) { _, _ = io.WriteString(w, "OK") }

// slow answers requests of class Y later.
func slow(by time.Duration) func(http.ResponseWriter, *http.Request, bool) {
	return func(w http.ResponseWriter, _ *http.Request, isY bool) {
		if isY {
			time.Sleep(by)
		}
		_, _ = io.WriteString(w, "OK")
	}
}

// A leak is found by the times of the client alone, in every order and with every mark, and an
// equal service is none.
func TestVerdicts(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		description string
		flags       []string
		plant       time.Duration
		want        leak.Verdict
		code        int
	}{
		{"a leak in blocks", []string{"--order=blocks"}, 20 * time.Millisecond, leak.Leak, exitLeak},
		{"a leak by coins", []string{"--order=random"}, 20 * time.Millisecond, leak.Leak, exitLeak},
		{"a leak on two connections", []string{"--connections=2"}, 20 * time.Millisecond, leak.Leak, exitLeak},
		{"a leak on connections of requests", []string{"--label=port"}, 20 * time.Millisecond, leak.Leak, exitLeak},
		{"a difference that nobody assigned", []string{"--order=observed"}, 20 * time.Millisecond, leak.Difference, exitLeak},
		{"nothing above the target", []string{"--target=1s", "--label=none"}, 0, leak.None, exitNone},
		{"too few requests", []string{"--requests=10"}, 0, leak.Waiting, exitInconclusive},
		{"enough requests for an interval", []string{"--requests=100", "--target=0s"}, 0, leak.Inconclusive, exitInconclusive},
	} {
		t.Run(test.description, func(t *testing.T) {
			t.Parallel()
			s := newService(t, slow(test.plant)).start()
			o := probe(t, s.arguments(test.flags...)...)
			if o.code != test.code || o.result.Verdict != test.want || o.result.ExitCode != test.code || o.result.DecidedBy != ofClient {
				t.Errorf("exit code %d and %v, want %d and %v:\n%s%s", o.code, o.result.Verdict, test.code, test.want, o.stdout, o.stderr)
			}
			for _, want := range []string{test.want.String() + " (exit code", "seed"} {
				if !strings.Contains(o.stdout+o.stderr, want) {
					t.Errorf("it does not say %q:\n%s%s", want, o.stdout, o.stderr)
				}
			}
			if n := o.result.Requests.sent(); test.want == leak.Leak && n == 4000 {
				t.Error("it did not end at the verdict")
			}
		})
	}
}

// Requests are in blocks of two in random order, or by a coin, and the seed repeats them.
func TestOrder(t *testing.T) {
	t.Parallel()
	sequence := func(flags ...string) (paths []string) {
		s := newService(t, same).start()
		o := probe(t, s.arguments(append(flags, "--requests=400", "--warmup=4", "--no-stop")...)...)
		if o.code != exitInconclusive {
			t.Fatalf("exit code %d: %s%s", o.code, o.stdout, o.stderr)
		}
		if len(s.paths) != 1 || len(s.all) != 404 {
			t.Fatalf("%d requests on %d connections", len(s.all), len(s.paths))
		}
		return s.all[4:]
	}
	blocks := sequence("--order=blocks", "--seed=7")
	changes := 0
	for i := 0; i < len(blocks); i += 2 {
		if blocks[i] == blocks[i+1] {
			t.Fatalf("block %d has two requests of one class", i/2)
		}
		if blocks[i] != blocks[0] {
			changes++
		}
	}
	if changes < 50 || changes > 150 {
		t.Errorf("%d of 200 blocks begin with another class than the first", changes)
	}
	if !slices.Equal(blocks, sequence("--order=blocks", "--seed=7")) {
		t.Error("the same seed gives another order")
	}
	if slices.Equal(blocks, sequence("--order=blocks", "--seed=8")) {
		t.Error("another seed gives the same order")
	}
	coins := sequence("--order=random", "--seed=7")
	ofX, pairs := 0, 0
	for i, path := range coins {
		if path == "/x" {
			ofX++
		}
		if i%2 == 1 && path == coins[i-1] {
			pairs++
		}
	}
	if ofX < 140 || ofX > 260 || pairs < 50 || pairs > 150 {
		t.Errorf("%d of 400 coins are X, %d of 200 pairs are equal", ofX, pairs)
	}
}

// No more requests are sent than the rate allows, and no more than that number at a time.
func TestRate(t *testing.T) {
	t.Parallel()
	var now, most atomic.Int64
	s := newService(t, func(w http.ResponseWriter, r *http.Request, isY bool) {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		same(w, r, isY)
		now.Add(-1)
	}).start()
	begin := time.Now()
	o := probe(t, s.arguments("--rate=400", "--requests=200", "--connections=3", "--no-stop", "--warmup=0")...)
	if elapsed := time.Since(begin); elapsed < 199*time.Second/400 {
		t.Errorf("200 requests took %v: %s", elapsed, o.stderr)
	}
	if len(s.all) != 200 || most.Load() > 3 {
		t.Errorf("%d requests, %d at a time", len(s.all), most.Load())
	}
}

// What makes a verdict moot, or the requests unanswered, is named, and never is a leak.
func TestFaults(t *testing.T) {
	t.Parallel()
	var ofY atomic.Int64
	reset := func(w http.ResponseWriter) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
	for _, test := range []struct {
		description string
		flags       []string
		handle      func(n int64, w http.ResponseWriter, r *http.Request, isY bool)
		fault, want string
	}{
		{"lengths that differ by class", nil, func(n int64, w http.ResponseWriter, _ *http.Request, isY bool) {
			slow(5*time.Millisecond)(w, nil, isY)
			if isY {
				_, _ = io.WriteString(w, "!")
			}
		}, "length", "length of the answers depends on the class"},
		{"statuses that differ by class", nil, func(n int64, w http.ResponseWriter, _ *http.Request, isY bool) {
			if isY {
				w.WriteHeader(http.StatusForbidden)
			}
		}, "status", "status of the answers depends on the class"},
		{"every second Y is reset", nil, func(n int64, w http.ResponseWriter, _ *http.Request, isY bool) {
			if isY && ofY.Add(1)%2 == 0 {
				reset(w)
				return
			}
			slow(5*time.Millisecond)(w, nil, isY)
		}, "resets", "without an answer more often"},
		{"every third request is reset", nil, func(n int64, w http.ResponseWriter, _ *http.Request, _ bool) {
			if n%3 == 0 {
				reset(w)
			}
		}, "failures", "have no answer"},
		{"a limit of the rate", nil, func(n int64, w http.ResponseWriter, r *http.Request, isY bool) {
			if n > 200 {
				w.WriteHeader(http.StatusTooManyRequests)
				return
			}
			same(w, r, isY)
		}, "rate limit", "limits the rate"},
		{"a limit of the rate from the start", nil, func(n int64, w http.ResponseWriter, _ *http.Request, _ bool) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}, "", "limits the rate"},
		{"no request is answered", []string{"--timeout=100ms"}, func(n int64, w http.ResponseWriter, _ *http.Request, _ bool) {
			reset(w)
		}, "", "warming up"},
		{"connections of one request", nil, func(n int64, w http.ResponseWriter, _ *http.Request, _ bool) {
			w.Header().Set("Connection", "close")
		}, "", "closes a connection after 1 requests"},
	} {
		t.Run(test.description, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int64
			s := newService(t, func(w http.ResponseWriter, r *http.Request, isY bool) { test.handle(n.Add(1), w, r, isY) }).start()
			o := probe(t, s.arguments(test.flags...)...)
			if o.code != exitError || !strings.Contains(o.stdout+o.stderr, test.want) {
				t.Errorf("exit code %d, want %d and %q:\n%s%s", o.code, exitError, test.want, o.stdout, o.stderr)
			}
			if test.fault == "" {
				return
			}
			if o.result.Verdict != leak.Invalid || !slices.ContainsFunc(o.result.Faults, func(f fault) bool { return f.Name == test.fault }) {
				t.Errorf("%v with the faults %v, want %s", o.result.Verdict, o.result.Faults, test.fault)
			}
			if o.result.Requests.sent() == 4000 {
				t.Error("it sent all requests")
			}
		})
	}
}

// Lengths and failures that do not depend on the class may vary.
func TestOtherDifferencesAreNoFault(t *testing.T) {
	t.Parallel()
	var n atomic.Int64
	s := newService(t, func(w http.ResponseWriter, _ *http.Request, _ bool) {
		i := n.Add(1)
		if i%50 == 0 {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_ = conn.Close()
			}
			return
		}
		_, _ = io.WriteString(w, strings.Repeat(".", int(i*i%97)))
	}).start()
	o := probe(t, s.arguments("--target=1s", "--no-stop")...)
	if o.code != exitNone || o.result.Requests.Failed == [2]uint64{} {
		t.Errorf("exit code %d: %s%s%+v", o.code, o.stdout, o.stderr, o.result.Requests)
	}
}

// A signal ends the run with its result so far.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	var n atomic.Int64
	s := newService(t, func(w http.ResponseWriter, r *http.Request, isY bool) {
		if n.Add(1) == 100 {
			cancel()
		}
		same(w, r, isY)
	}).start()
	o := probeUntil(ctx, t, s.arguments("--target=0s")...)
	c := o.result.Requests
	if o.code != exitInconclusive || !o.result.Interrupted || !strings.Contains(o.stdout, "result so far") {
		t.Errorf("exit code %d: %s%s", o.code, o.stdout, o.stderr)
	}
	if c.sent() < 97 || c.sent() > 200 || c.Failed != [2]uint64{} || c.Answered != c.Sent {
		t.Errorf("%+v", c)
	}
	limited := probe(t, s.arguments("--target=0s", "--duration=300ms")...)
	if limited.code != exitInconclusive || limited.result.Interrupted || limited.result.Seconds > 10 {
		t.Errorf("with a duration: exit code %d: %s%s", limited.code, limited.stdout, limited.stderr)
	}
}

// A redirect is an answer: nothing is sent to another host.
func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	var others atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { others.Add(1) }))
	defer other.Close()
	s := newService(t, func(w http.ResponseWriter, r *http.Request, _ bool) {
		http.Redirect(w, r, other.URL, http.StatusFound)
	}).start()
	o := probe(t, s.arguments("--requests=100", "--target=1s")...)
	if o.code != exitNone && o.code != exitInconclusive || o.result.Requests.Answered != o.result.Requests.Sent || others.Load() != 0 {
		t.Errorf("exit code %d, %d requests to another host: %s", o.code, others.Load(), o.stdout)
	}
}

// What is sent is what the flags say.
func TestRequests(t *testing.T) {
	t.Parallel()
	type seen struct{ method, url, host, header, agent, contentType, body string }
	var mu sync.Mutex
	requests := map[seen]int{}
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		requests[seen{r.Method, r.URL.String(), r.Host, r.Header.Get("X-Token"), r.UserAgent(), r.Header.Get("Content-Type"), string(body)}]++
	}))
	defer server.Close()
	o := probe(t, "--url="+server.URL+"/login?a=b", "--x.header=X-Token: x", "--y.header=X-Token:y", "--header=Host: name",
		"--header=User-Agent: me", "--x.data=user=1", "--y.data=user=2", "--requests=40", "--order=blocks")
	if o.code != exitInconclusive {
		t.Fatalf("exit code %d: %s%s", o.code, o.stdout, o.stderr)
	}
	const form = "application/x-www-form-urlencoded"
	for _, want := range []seen{
		{"POST", "/login?a=b", "name", "x", "me", form, "user=1"},
		{"POST", "/login?a=b", "name", "y", "me", form, "user=2"},
	} {
		if n := requests[want]; n != 21 {
			t.Errorf("%d requests %+v, want 21 in\n%v", n, want, requests)
		}
	}

	clear(requests)
	o = probe(t, "--url="+server.URL+"/{{random 8}}", "--x.header=X-Token: {{random 4}}", "--y.header=X-Token: {{random 4}}", "--requests=100", "--method=PUT")
	if o.code != exitInconclusive || len(requests) != 102 {
		t.Errorf("exit code %d, %d different requests: %s%s", o.code, len(requests), o.stdout, o.stderr)
	}
	for r := range requests {
		if r.method != "PUT" || len(r.url) != 9 || len(r.header) != 4 || r.body != "" || r.contentType != "" || !strings.HasPrefix(r.agent, Name) {
			t.Fatalf("%+v", r)
		}
	}
}

func TestNotes(t *testing.T) {
	t.Parallel()
	s := newService(t, same).start()
	for _, test := range []struct{ flag, want string }{
		{"--y.path=/x", "tests the method"},
		{"--y.path=/yyy", "a difference may be that of their length"},
	} {
		o := probe(t, "--url="+s.URL, "--x.path=/x", test.flag, "--requests=10")
		if !strings.Contains(o.stdout, test.want) {
			t.Errorf("%s: %s", test.flag, o.stdout)
		}
	}
}

func TestJUnit(t *testing.T) {
	type junit struct {
		Suites []struct {
			Tests    int `xml:"tests,attr"`
			Failures int `xml:"failures,attr"`
			Errors   int `xml:"errors,attr"`
			Skipped  int `xml:"skipped,attr"`
			Cases    []struct {
				Name    string    `xml:"name,attr"`
				Failure *struct{} `xml:"failure"`
				Error   *struct{} `xml:"error"`
				Skipped *struct{} `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	for _, test := range []struct {
		description string
		result      result
		want        [4]int // tests, failures, errors, skipped
	}{
		{"a leak", result{Client: leak.Report{Verdict: leak.Leak}}, [4]int{1, 1, 0, 0}},
		{"no leak", result{Client: leak.Report{Verdict: leak.None}}, [4]int{1, 0, 0, 0}},
		{"no verdict", result{Client: leak.Report{Verdict: leak.Inconclusive}}, [4]int{1, 0, 0, 1}},
		{"a check that fails", result{Client: leak.Report{Verdict: leak.Invalid}}, [4]int{1, 0, 1, 0}},
		{"a leak that is moot", result{Client: leak.Report{Verdict: leak.Leak}, Faults: []fault{{"length", "text"}}}, [4]int{2, 0, 2, 0}},
		{"a leak in the kernel that is moot", result{
			Kernel: &assessment{Report: leak.Report{Verdict: leak.Leak}}, Faults: []fault{{"resets", "text"}},
		}, [4]int{2, 0, 2, 0}},
		{"a leak in the kernel alone", result{Kernel: &assessment{Report: leak.Report{Verdict: leak.Leak}}}, [4]int{1, 1, 0, 0}},
	} {
		test.result.decide()
		if isMoot := len(test.result.Faults) > 0; isMoot != (test.result.ExitCode == exitError && test.result.Client.Verdict != leak.Invalid) {
			t.Errorf("%s: exit code %d", test.description, test.result.ExitCode)
		}
		var text bytes.Buffer
		if err := test.result.writeJUnit(&text); err != nil {
			t.Fatal(err)
		}
		var got junit
		if err := xml.Unmarshal(text.Bytes(), &got); err != nil || len(got.Suites) != 1 {
			t.Fatalf("%v in\n%s", err, &text)
		}
		s := got.Suites[0]
		if numbers := [4]int{s.Tests, s.Failures, s.Errors, s.Skipped}; numbers != test.want || len(s.Cases) != s.Tests {
			t.Errorf("%s: %v, want %v:\n%s", test.description, numbers, test.want, &text)
		}
	}
}
