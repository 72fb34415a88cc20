// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Only HTTP/1.1 is served, whatever the web configuration and the client ask for.
func TestOnlyHTTP1(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, config string
		isNoted      bool
	}{
		{"by default", "", false},
		{"enabled", "http_server_config:\n  http2: true\n", true},
		{"disabled", "http_server_config:\n  http2: false\n", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			writeCertificate(t, dir)
			config := write(t, filepath.Join(dir, "web.yml"), "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n"+test.config)
			e := start(t, "--web.config.file="+config)
			e.log.await(t, `msg="TLS is enabled." http2=false`)
			conn, err := tls.Dial("tcp", e.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if got := conn.ConnectionState().NegotiatedProtocol; got != "http/1.1" {
				t.Errorf("the protocol is %q", got)
			}
			if h2, err := tls.Dial("tcp", e.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}); err == nil {
				t.Errorf("a client of h2 only is accepted with %q", h2.ConnectionState().NegotiatedProtocol)
				h2.Close()
			}
			conn.Close() // the end waits for a client
			e.stop()
			if err := e.end(t); err != nil {
				t.Error(err)
			}
			if noted := strings.Count(e.all.String(), "no effect"); (noted == 1) != test.isNoted {
				t.Errorf("the log says %d times that http2 has no effect:\n%s", noted, e.all)
			}
		})
	}
}

// What clients do wrong is logged a few times, and then counted.
func TestClientsCannotFillTheLog(t *testing.T) {
	dir := t.TempDir()
	writeCertificate(t, dir)
	config := write(t, filepath.Join(dir, "web.yml"), "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n")
	e := start(t, "--web.config.file="+config)
	for range 200 {
		if response, err := http.Get("http://" + e.address + "/metrics"); err == nil {
			response.Body.Close()
		}
	}
	// The configuration is read for each request.
	if err := os.WriteFile(config, []byte("no: configuration"), 0o600); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	for range 50 {
		if response, err := client.Get("https://" + e.address + "/metrics"); err == nil {
			response.Body.Close()
		}
	}
	e.stop()
	if err := e.end(t); err != nil {
		t.Error(err)
	}
	if lines := strings.Count(e.all.String(), "TLS handshake error"); lines == 0 || lines > 20 {
		t.Errorf("%d lines of the log are about handshakes", lines)
	}
}

// stuckLog is a standard error that nobody reads.
type stuckLog struct{ goOn chan struct{} }

func (s stuckLog) Write(line []byte) (int, error) {
	<-s.goOn
	return len(line), nil
}

// A log that nobody reads neither blocks requests nor the end.
func TestStuckLog(t *testing.T) {
	t.Parallel()
	stuck := stuckLog{make(chan struct{})}
	defer close(stuck.goOn)
	socket := filepath.Join(t.TempDir(), "web.sock")
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"--audit.device=eth0", "--web.listen-address=unix:" + socket}, io.Discard, stuck, openFake, dropNothing)
	}()
	check := func() error {
		return run(ctx, []string{"--healthcheck", "--web.listen-address=unix:" + socket}, io.Discard, io.Discard, openFake, dropNothing)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := check()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took > shutdownTimeout {
			t.Errorf("the end took %v", took)
		}
	case <-time.After(patience):
		t.Error("the exporter does not end")
	}
}

// The soft memory limit follows the largest answer.
func TestMemoryLimit(t *testing.T) {
	var got []int64
	limiter := newMemoryLimiter(func(bytes int64) { got = append(got, bytes) }, false)
	for _, bytes := range []int{1000, 500, 1000, 2 << 20} {
		limiter.grow(bytes)
	}
	want := []int64{baseMemory, baseMemory + memoryPerByte*1000, baseMemory + memoryPerByte*2<<20}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the limits are %v, want %v", got, want)
	}
	newMemoryLimiter(nil, false).grow(1000) // GOMEMLIMIT is set
}
