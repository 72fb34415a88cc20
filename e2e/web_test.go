// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

func TestCollectors(t *testing.T) {
	for _, test := range []struct {
		description string
		args        []string
		query       string
		has, hasNot []string
	}{
		{"all by default", nil, "", []string{"packets_total", "leak_flags_total", "delta_seconds", "events_total", "flow_table_slots", "hook_up"}, nil},
		{"one disabled", []string{"--no-collector.flows"}, "", []string{"packets_total", "hook_up"}, []string{"flow_table_slots"}},
		{"one alone", []string{"--collector.disable-defaults", "--collector.packets"}, "", []string{"packets_total"}, []string{"hook_up", "leak_flags_total", "flow_table_slots"}},
		{"none", []string{"--collector.disable-defaults"}, "", nil, []string{"packets_total", "hook_up"}},
		{"one asked for", nil, "?collect[]=packets", []string{"packets_total"}, []string{"hook_up", "leak_flags_total"}},
		{"two asked for", nil, "?collect[]=packets&collect[]=program", []string{"packets_total", "hook_up"}, []string{"leak_flags_total"}},
		{"one left out", nil, "?exclude[]=packets", []string{"hook_up", "leak_flags_total"}, []string{"packets_total"}},
	} {
		t.Run(test.description, func(t *testing.T) {
			l := newLab(t)
			e := l.startExporter(append([]string{"--audit.device=" + device}, test.args...)...)
			s := parse(t, e.get("/metrics"+test.query, http.StatusOK))
			for _, name := range test.has {
				if len(s.series(name)) == 0 {
					t.Errorf("%s is missing", name)
				}
			}
			for _, name := range test.hasNot {
				if len(s.series(name)) > 0 {
					t.Errorf("%s is there", name)
				}
			}
			e.expectStopped()
		})
	}
}

func TestPaths(t *testing.T) {
	l := newLab(t)
	e := l.startExporter("--audit.device="+device, "--no-collector.flows")
	for _, test := range []struct {
		description, path string
		status            int
		want              string // part of the body
	}{
		{"the landing page links to the metrics", "/", http.StatusOK, `href="/metrics"`},
		{"it is healthy", "/-/healthy", http.StatusOK, "OK"},
		{"it is ready", "/-/ready", http.StatusOK, "OK"},
		{"a collector that does not exist", "/metrics?collect[]=nosuch", http.StatusBadRequest, "nosuch"},
		{"a collector that does not exist, left out", "/metrics?exclude[]=nosuch", http.StatusBadRequest, "nosuch"},
		{"a collector that is disabled", "/metrics?collect[]=flows", http.StatusBadRequest, "flows"},
		{"collectors asked for and left out", "/metrics?collect[]=packets&exclude[]=program", http.StatusBadRequest, "combined"},
		{"a path that does not exist", "/nosuch", http.StatusNotFound, ""},
		{"no profiles of the process", "/debug/pprof/", http.StatusNotFound, ""},
	} {
		t.Run(test.description, func(t *testing.T) {
			if body := e.get(test.path, test.status); !strings.Contains(body, test.want) {
				t.Errorf("the answer does not contain %q: %s", test.want, body)
			}
		})
	}
	e.expectStopped()
}

// A connection with an incomplete request is closed, and does not delay other requests.
func TestASlowClientIsCut(t *testing.T) {
	l := newLab(t)
	e := l.startExporter("--audit.device=" + device)
	conn, err := l.audited.Namespace.Dial(l.ctx, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: local"); err != nil {
		t.Fatal(err)
	}
	e.get("/metrics", http.StatusOK)
	if _, err := io.ReadAll(conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection is not cut within %v", patience)
	}
	e.expectStopped()
}

const (
	user     = "prometheus"
	password = "correct horse battery staple"
)

// secured is a web configuration with TLS and a user.
type secured struct {
	certificate string // path
	config      string // path
	roots       *x509.CertPool
}

// secure makes a certificate for the address of the lab, and a configuration with it and a user.
func secure(t *testing.T) secured {
	t.Helper()
	folder := t.TempDir()
	s := secured{filepath.Join(folder, "tls.crt"), filepath.Join(folder, "web.yml"), x509.NewCertPool()}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
	s.roots.AppendCertsFromPEM(public)
	for path, text := range map[string]string{
		s.certificate:                    string(public),
		filepath.Join(folder, "tls.key"): string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})),
		s.config: fmt.Sprintf("tls_server_config:\n  cert_file: tls.crt\n  key_file: tls.key\nbasic_auth_users:\n  %s: %s\n",
			user, hash),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// clientTLS returns the TLS configuration of a trusted client. The client's certificate is that
// of the server.
func (s secured) clientTLS(t *testing.T) *tls.Config {
	t.Helper()
	certificate, err := tls.LoadX509KeyPair(s.certificate, filepath.Join(filepath.Dir(s.certificate), "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{RootCAs: s.roots, Certificates: []tls.Certificate{certificate}, NextProtos: offeredProtocols}
}

// startSecured starts the exporter with TLS and a user, and waits until it answers.
func (l *lab) startSecured(s secured, args ...string) *exporter {
	l.t.Helper()
	args = append([]string{"--web.listen-address=" + address, "--web.config.file=" + s.config}, args...)
	e := l.launch(binaries.exporter, args)
	e.scheme = "https"
	transport := &http.Transport{
		DialContext: l.audited.Namespace.Dial, TLSClientConfig: s.clientTLS(l.t), ForceAttemptHTTP2: true,
	}
	l.t.Cleanup(transport.CloseIdleConnections)
	e.client = &http.Client{Transport: authorized{transport}, Timeout: patience}
	e.awaitReady("/-/ready")
	return e
}

// authorized adds user and password to requests.
type authorized struct{ http.RoundTripper }

func (a authorized) RoundTrip(r *http.Request) (*http.Response, error) {
	r.SetBasicAuth(user, password)
	return a.RoundTripper.RoundTrip(r)
}

func TestTLSAndUsers(t *testing.T) {
	l := newLab(t)
	secured := secure(t)
	config := filepath.Join(t.TempDir(), "leak.yml")
	l.writeConfig(config, oneAssessment)
	e := l.startSecured(secured, "--audit.device="+device, "--leak.config.file="+config)
	if len(e.scrape().series("hook_up")) != 1 {
		t.Error("no metrics for who has the password")
	}
	if body := e.get("/leak.json", http.StatusOK); !strings.Contains(body, "login") {
		t.Errorf("no assessments for who has the password: %s", body)
	}
	a, ok := e.client.Transport.(authorized)
	if !ok {
		t.Fatal("the client has no password")
	}
	e.client = &http.Client{Transport: a.RoundTripper, Timeout: patience}
	if body := e.get("/metrics", http.StatusUnauthorized); strings.Contains(body, "xdp_audit") {
		t.Errorf("metrics for who has no password: %s", body)
	}
	if body := e.get("/leak.json", http.StatusUnauthorized); strings.Contains(body, "login") {
		t.Errorf("assessments for who has no password: %s", body)
	}
	e.client, e.scheme = l.client(), "http"
	if body := e.get("/metrics", http.StatusBadRequest); strings.Contains(body, "xdp_audit") {
		t.Errorf("metrics without TLS: %s", body)
	}
	if body := e.get("/leak.json", http.StatusBadRequest); strings.Contains(body, "login") {
		t.Errorf("assessments without TLS: %s", body)
	}
	e.expectStopped()
}

func TestHealthcheck(t *testing.T) {
	for _, test := range []struct {
		description string
		start       func(*lab) (e *exporter, args []string)
	}{
		{"plain", func(l *lab) (*exporter, []string) {
			return l.startExporter("--audit.device=" + device), nil
		}},
		{"with TLS and a user", func(l *lab) (*exporter, []string) {
			s := secure(l.t)
			return l.startSecured(s, "--audit.device="+device), []string{"--web.config.file=" + s.config}
		}},
	} {
		t.Run(test.description, func(t *testing.T) {
			l := newLab(t)
			e, args := test.start(l)
			args = append(args, "--healthcheck", "--web.listen-address="+address)
			check := l.start(binaries.exporter, args)
			if code := check.wait(); code != 0 || check.stderr.String() != "" {
				t.Errorf("exit code %d of a check of a running exporter, want 0: %s", code, &check.stderr)
			}
			e.expectStopped()
			l.start(binaries.exporter, args).expectRefusal(address, "connection refused")
		})
	}
}

func TestHealthcheckOfSomethingElse(t *testing.T) {
	l := newLab(t)
	listener := l.occupyAddress()
	server := &http.Server{Handler: http.NotFoundHandler()}
	defer server.Close()
	go func() { _ = server.Serve(listener) }()
	l.start(binaries.exporter, []string{"--healthcheck", "--web.listen-address=" + address}).expectRefusal(address, "404")
}

// Help and version are printed to standard output with exit code 0, and need no privilege.
func TestHelp(t *testing.T) {
	l := newLab(t)
	for flag, want := range map[string][]string{
		"--help":    {"--audit.device", "XDP_INTERFACE", "--audit.mode", "XDP_MODE", "--trail.file", "--[no-]collector.flows", "--web.listen-address"},
		"--version": {"xdp_audit_exporter, version"},
	} {
		p := l.start(binaries.exporter, []string{flag})
		if code := p.wait(); code != 0 || p.stderr.String() != "" {
			t.Errorf("%s: exit code %d, want 0: %s", flag, code, &p.stderr)
		}
		if i := slices.IndexFunc(want, func(s string) bool { return !strings.Contains(p.stdout.String(), s) }); i >= 0 {
			t.Errorf("%s does not say %s:\n%s", flag, want[i], &p.stdout)
		}
	}
}
