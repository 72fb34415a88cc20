// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
)

func TestPages(t *testing.T) {
	e := start(t, "--no-collector.flows")
	const unknown = ": use one of packets, flags, timing, events, flows, program, covert, trail, privileges\n"
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
	e := start(t)
	scraping, finish := make(chan struct{}), make(chan struct{})
	e.audit.scrape = func() {
		close(scraping)
		<-finish
	}
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
	e := start(t)
	scraping, finish := make(chan struct{}), make(chan struct{})
	defer close(finish)
	e.audit.scrape = func() {
		close(scraping)
		<-finish
	}
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

// The limit counts filtered and complete scrapes together.
func TestMaxRequests(t *testing.T) {
	e := start(t, "--web.max-requests=2")
	var scraping sync.WaitGroup
	scraping.Add(2)
	finish := make(chan struct{})
	e.audit.scrape = func() {
		scraping.Done()
		<-finish
	}
	var scrapes sync.WaitGroup
	for _, path := range []string{"/metrics", "/metrics?collect[]=packets"} {
		scrapes.Go(func() {
			if code, _ := e.get(t, path); code != 200 {
				t.Errorf("status %d of %s, which was within the limit", code, path)
			}
		})
	}
	scraping.Wait()
	if code, body := e.get(t, "/metrics"); code != 503 || body != "Limit of concurrent requests reached (2), try again later.\n" {
		t.Errorf("status %d with %q beyond the limit", code, body)
	}
	if code, _ := e.get(t, "/-/healthy"); code != 200 {
		t.Errorf("the exporter calls itself unhealthy with status %d", code)
	}
	close(finish)
	scrapes.Wait()
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

// A client that does not read its answer does not take a place among the parallel scrapes.
func TestClientThatDoesNotRead(t *testing.T) {
	handler := limitRequests(1, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Test", "kept")
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprint(w, "answer")
	}))
	blocked := &blockedWriter{header: http.Header{}, isWriting: make(chan struct{}), goOn: make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		handler.ServeHTTP(blocked, nil)
	}()
	<-blocked.isWriting
	second := &blockedWriter{header: http.Header{}, isWriting: make(chan struct{}, 1), goOn: make(chan struct{})}
	close(second.goOn)
	handler.ServeHTTP(second, nil)
	if second.status != http.StatusTeapot || second.body != "answer" || second.header.Get("X-Test") != "kept" {
		t.Errorf("the second got %+v", second)
	}
	close(blocked.goOn)
	<-ended
}

// blockedWriter blocks each write until goOn.
type blockedWriter struct {
	header          http.Header
	status          int
	body            string
	isWriting, goOn chan struct{}
}

func (b *blockedWriter) Header() http.Header { return b.header }

func (b *blockedWriter) WriteHeader(status int) { b.status = status }

func (b *blockedWriter) Write(p []byte) (int, error) {
	b.isWriting <- struct{}{}
	<-b.goOn
	b.body += string(p)
	return len(p), nil
}
