// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
)

func TestPages(t *testing.T) {
	e := start(t, "--no-collector.flows")
	const unknown = ": use one of packets, flags, timing, events, flows, program, covert, leak, trail, privileges\n"
	tests := []struct {
		path  string
		code  int
		whole string   // the body, if it is known
		has   []string // parts of the body
		hasNo []string
	}{
		{path: "/-/healthy", code: 200, whole: "OK\n"},
		{path: "/-/ready", code: 200, whole: "OK\n"},
		{path: "/", code: 200, has: []string{"XDP Audit Exporter", `href="/metrics"`}, hasNo: []string{"/debug/pprof"}},
		{path: "/nothing", code: 404},
		{path: "/metrics/", code: 404},
		{
			path: "/metrics", code: 200,
			has: []string{
				"xdp_audit_exporter_build_info{", "go_goroutines ", "process_open_fds ", "promhttp_metric_handler_requests_total{",
				`xdp_audit_outcomes_total{device="eth0",outcome="judged"} 0`, `xdp_audit_scrape_collector_success{collector="packets"} 1`,
			},
			hasNo: []string{"xdp_audit_flow_", "xdp_audit_trail_"},
		},
		{
			path: "/metrics?collect[]=packets", code: 200,
			has:   []string{"xdp_audit_packets_total{", "go_goroutines ", "xdp_audit_exporter_build_info{"},
			hasNo: []string{"xdp_audit_events_total", `collector="flags"`},
		},
		{path: "/metrics?collect[]=packets&collect[]=flags", code: 200, has: []string{"xdp_audit_packets_total{", "xdp_audit_leak_flags_total{"}},
		{path: "/metrics?exclude[]=packets", code: 200, has: []string{"xdp_audit_leak_flags_total{"}, hasNo: []string{"xdp_audit_packets_total"}},
		{path: "/metrics?collect[]=cpu", code: 400, whole: `unknown collector "cpu"` + unknown},
		{path: "/metrics?exclude[]=a%0Ab", code: 400, whole: `unknown collector "a\nb"` + unknown},
		{path: "/metrics?collect[]=flows", code: 400, whole: "collector \"flows\" is disabled\n"},
		{path: "/metrics?collect[]=packets&exclude[]=flags", code: 400, whole: "collect and exclude cannot be combined\n"},
	}
	for _, test := range tests {
		t.Run(test.path, func(t *testing.T) {
			code, body := e.get(t, test.path)
			if code != test.code {
				t.Errorf("status %d, want %d", code, test.code)
			}
			if test.whole != "" && body != test.whole {
				t.Errorf("got %q, want %q", body, test.whole)
			}
			for _, part := range test.has {
				if !strings.Contains(body, part) {
					t.Errorf("%q is missing in %s", part, body)
				}
			}
			for _, part := range test.hasNo {
				if strings.Contains(body, part) {
					t.Errorf("%q is in %s", part, body)
				}
			}
		})
	}
}

// The exporter is not ready while nothing is audited. It is healthy: a restart would not help.
func TestReadiness(t *testing.T) {
	e := start(t)
	e.audit.setReadiness(errors.New("no device is audited\neth0"))
	if code, body := e.get(t, "/-/ready"); code != 503 || body != "no device is audited; eth0\n" {
		t.Errorf("got %d: %q, want 503 and the reason in one line", code, body)
	}
	if code, _ := e.get(t, "/-/healthy"); code != 200 {
		t.Errorf("healthy: got %d, want 200", code)
	}
	e.audit.setReadiness(nil)
	if code, body := e.get(t, "/-/ready"); code != 200 || body != "OK\n" {
		t.Errorf("got %d: %q, want 200", code, body)
	}
}

func TestWithoutExporterMetrics(t *testing.T) {
	e := start(t, "--web.disable-exporter-metrics", "--web.telemetry-path=/")
	_, body := e.get(t, "/")
	for _, prefix := range []string{"go_", "process_", "promhttp_"} {
		if strings.Contains(body, "\n"+prefix) {
			t.Errorf("there are metrics %s*", prefix)
		}
	}
	if !strings.Contains(body, "xdp_audit_exporter_build_info{") {
		t.Error("the exporter does not tell its version")
	}
}

// With the telemetry path / only / answers metrics.
func TestMetricsAtTheRoot(t *testing.T) {
	e := start(t, "--web.telemetry-path=/")
	for path, want := range map[string]int{"/": 200, "/metrics": 404, "/nothing": 404, "/a/b": 404, "/-/healthy": 200} {
		if code, body := e.get(t, path); code != want || (strings.Contains(body, "xdp_audit_") != (path == "/")) {
			t.Errorf("%s answers %d with %d bytes, want %d", path, code, len(body), want)
		}
	}
}

// Only GET and HEAD are answered.
func TestMethods(t *testing.T) {
	e := start(t)
	for _, path := range []string{"/metrics", "/-/healthy", "/-/ready", "/", "/nothing"} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "FOO"} {
			request, err := http.NewRequest(method, "http://"+e.address+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(response.Body)
			response.Body.Close()
			want, allow := http.StatusMethodNotAllowed, "GET, HEAD"
			if method == "GET" || method == "HEAD" {
				want, allow = http.StatusOK, ""
				if path == "/nothing" {
					want = http.StatusNotFound
				}
			}
			if response.StatusCode != want || response.Header.Get("Allow") != allow || err != nil {
				t.Errorf("%s %s: status %d, Allow %q (%v)", method, path, response.StatusCode, response.Header.Get("Allow"), err)
			}
			if isEmpty := len(body) == 0; isEmpty != (method == "HEAD") {
				t.Errorf("%s %s: a body of %d bytes", method, path, len(body))
			}
		}
	}
}

// The server answers nothing outside of the handler, which needs a password if there is one, and
// nothing in HTTP/2, which needs no TLS if a client knows that the server speaks it.
func TestUnusualRequests(t *testing.T) {
	e := start(t)
	for _, test := range []struct{ description, request, want string }{
		{"options of the server", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 405 "},
		{"the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", "HTTP/1.1 405 "},
		{
			"an upgrade to HTTP/2", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n\r\n",
			"HTTP/1.1 200 ",
		},
	} {
		t.Run(test.description, func(t *testing.T) {
			conn, err := net.Dial("tcp", e.address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, test.request); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(conn).ReadString('\n')
			if err != nil || !strings.HasPrefix(line, test.want) {
				t.Errorf("got %q, want %s: %v", line, test.want, err)
			}
		})
	}
}

// TestNativeHistogram asks for protobuf, as a server does that takes native histograms.
func TestNativeHistogram(t *testing.T) {
	e := start(t)
	request, err := http.NewRequest(http.MethodGet, "http://"+e.address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	decoder := expfmt.NewDecoder(response.Body, expfmt.ResponseFormat(response.Header))
	for {
		var family dto.MetricFamily
		if err := decoder.Decode(&family); err != nil {
			t.Fatalf("no histogram: %v", err)
		}
		if family.GetName() != "xdp_audit_delta_seconds" {
			continue
		}
		h := family.Metric[0].Histogram
		if h.Schema == nil || h.GetSchema() != 3 || len(h.Bucket) == 0 {
			t.Errorf("the histogram has schema %v and %d classic buckets", h.Schema, len(h.Bucket))
		}
		return
	}
}

func TestSeveralAddresses(t *testing.T) {
	config := write(t, filepath.Join(t.TempDir(), "web.yml"), "http_server_config:\n  headers:\n    X-Frame-Options: deny\n")
	e := start(t, "--web.listen-address=127.0.0.1:0", "--web.config.file="+config)
	other := *e
	other.address = e.log.await(t, `msg="Listening on" address=(\S+)`)
	for _, x := range []*runningExporter{e, &other} {
		if code, _ := x.get(t, "/-/healthy"); code != 200 {
			t.Errorf("%s answers %d", x.address, code)
		}
	}
}

// A scrape in progress ends before the audit is closed.
func TestShutdown(t *testing.T) {
	// The pages read the counters, too.
	e := start(t, "--web.disable-ui")
	scraping, finish := make(chan struct{}), make(chan struct{})
	scrape := func() {
		close(scraping)
		<-finish
	}
	e.audit.scrape.Store(&scrape)
	scraped := make(chan error, 1)
	go func() {
		response, err := http.Get("http://" + e.address + "/metrics")
		if err == nil {
			_, err = io.Copy(io.Discard, response.Body)
			err = errors.Join(err, response.Body.Close())
		}
		scraped <- err
	}()
	<-scraping
	e.stop()
	e.log.await(t, `msg="Shutting down" reason="context canceled"`)
	select {
	case <-e.audit.closed:
		t.Error("the audit was closed under a scrape")
	default:
	}
	close(finish)
	if err := <-scraped; err != nil {
		t.Errorf("the scrape under way failed: %v", err)
	}
	if err := e.end(t); err != nil {
		t.Errorf("run returned %v", err)
	}
	<-e.audit.closed
}

// A scrape that does not end neither blocks the shutdown nor causes an error.
func TestShutdownCutsOff(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as a shutdown may")
	}
	t.Parallel()
	// The pages read the counters, too.
	e := start(t, "--web.disable-ui")
	scraping, finish := make(chan struct{}), make(chan struct{})
	defer close(finish)
	scrape := func() {
		close(scraping)
		<-finish
	}
	e.audit.scrape.Store(&scrape)
	go func() {
		if response, err := http.Get("http://" + e.address + "/metrics"); err == nil {
			response.Body.Close()
		}
	}()
	<-scraping
	e.stop()
	if err := e.end(t); err != nil {
		t.Errorf("run returned %v", err)
	}
	<-e.audit.closed
}

// The server closes the connection of a client that sends half a request.
func TestSlowClient(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as a header may")
	}
	t.Parallel()
	e := start(t)
	connection, err := net.Dial("tcp", e.address)
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	if _, err := io.WriteString(connection, "GET /metrics HTTP/1.1\r\nHost: "); err != nil {
		t.Fatal(err)
	}
	if err := connection.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, connection); err != nil {
		t.Errorf("the connection stays open: %v", err)
	}
}

func TestLongHeader(t *testing.T) {
	e := start(t)
	if code, _ := e.get(t, "/metrics?collect[]="+strings.Repeat("x", 100<<10)); code != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %d for a header of 100 KiB", code)
	}
}

// The limit counts filtered and complete scrapes together, those that wait and the one in
// progress.
func TestMaxRequests(t *testing.T) {
	// The pages read the counters, too.
	e := start(t, "--web.disable-ui", "--web.max-requests=2", "--web.disable-exporter-metrics")
	scraping, finish := make(chan struct{}, 2), make(chan struct{})
	scrape := func() {
		scraping <- struct{}{}
		<-finish
	}
	e.audit.scrape.Store(&scrape)
	var scrapes sync.WaitGroup
	var refused atomic.Int32
	const filtered = 3 // one of them is within the limit
	get := func(path string) {
		switch code, body := e.get(t, path); {
		case code == 503 && body == "Limit of concurrent requests reached (2), try again later.\n":
			if refused.Add(1) == filtered-1 {
				close(finish)
			}
		case code != 200:
			t.Errorf("status %d of %s: %q", code, path, body)
		}
	}
	scrapes.Go(func() { get("/metrics") })
	<-scraping
	if code, _ := e.get(t, "/-/healthy"); code != 200 {
		t.Errorf("the exporter calls itself unhealthy with status %d", code)
	}
	for range filtered {
		scrapes.Go(func() { get("/metrics?collect[]=packets") })
	}
	scrapes.Wait()
	if n := refused.Load(); n != filtered-1 {
		t.Errorf("%d scrapes were refused, want %d", n, filtered-1)
	}
}

// Silent clients do not block other clients. Without a limit all of them stay connected.
func TestMaxConnections(t *testing.T) {
	for _, test := range []struct {
		limit string
		open  int
	}{{"80", 10}, {"0", 50}} {
		t.Run(test.limit, func(t *testing.T) {
			e := start(t, "--web.max-connections="+test.limit)
			var silent []net.Conn
			for range 50 {
				conn, err := net.Dial("tcp", e.address)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				silent = append(silent, conn)
			}
			if code, _ := e.get(t, "/metrics"); code != http.StatusOK {
				t.Errorf("status %d", code)
			}
			http.DefaultClient.CloseIdleConnections()
			open := 0
			for _, conn := range silent {
				// An open connection answers.
				if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
					t.Fatal(err)
				}
				_, _ = io.WriteString(conn, "GET /-/healthy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
				if line, err := bufio.NewReader(conn).ReadString('\n'); err == nil && strings.Contains(line, "200") {
					open++
				}
			}
			if open < test.open-1 || open > test.open {
				t.Errorf("%d connections were left open, want %d, or one less for the scrape", open, test.open)
			}
		})
	}
}
