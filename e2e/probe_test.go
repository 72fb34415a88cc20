// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// probed is a service in the audited namespace, measured by an exporter, with a probe in the
// sender's namespace.
type probed struct {
	l        *lab
	e        *exporter
	folder   string
	url      string
	netns    *netlab.Namespace
	reported string // URL of the exporter
}

// spin keeps a CPU busy. A sleep of microseconds takes tens of microseconds more.
func spin(d time.Duration) {
	for begin := time.Now(); time.Since(begin) < d; {
	}
}

// planting answers requests to /y later.
func planting(plant time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if strings.HasPrefix(r.URL.Path, "/y") {
			spin(plant)
		}
		_, _ = io.WriteString(w, "OK\n")
	})
}

// listenTCP listens in the audited namespace.
func (l *lab) listenTCP(address netip.Addr) net.Listener {
	l.t.Helper()
	listener, err := l.audited.Namespace.Listen(netip.AddrPortFrom(address, 0).String())
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = listener.Close() })
	return listener
}

// portOf returns the port of a listener.
func portOf(t *testing.T, listener net.Listener) int {
	t.Helper()
	address, ok := listener.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatalf("%v is not an address of TCP", listener.Addr())
	}
	return address.Port
}

// serveHTTP serves on a listener until the test ends.
func (l *lab) serveHTTP(listener net.Listener, handler http.Handler) {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { _ = server.Serve(listener) }()
	l.t.Cleanup(func() { _ = server.Close() })
}

// measure starts an exporter that measures a port, and returns a probe of it.
func (l *lab) measure(url string, port int, assessment string, flags ...string) *probed {
	l.t.Helper()
	p := &probed{l: l, folder: l.t.TempDir(), url: url, netns: l.sender.Namespace}
	config := filepath.Join(p.folder, "leak.yml")
	text := fmt.Sprintf("assessments: [{name: login, device: %s, protocol: tcp, port: %d, %s}]", device, port, assessment)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
	reported := netip.AddrPortFrom(l.audited.IPv4.Addr(), 9400).String()
	p.reported = "http://" + reported
	p.e = l.startExporter(append([]string{"--audit.device=" + device, "--leak.config.file=" + config, "--web.listen-address=" + reported}, flags...)...)
	return p
}

// probeResult is what the tests read of the JSON of the probe.
type probeResult struct {
	Verdict  string
	ExitCode int `json:"exit_code"`
	Sentence string
	Requests struct{ Sent, Answered, Failed [2]uint64 }
	Faults   []struct{ Name, Text string }
	Notes    []string
	Client   probeReport
	Kernel   struct {
		Requests uint64
		Excluded map[string]uint64
		Report   probeReport
	}
}

type probeReport struct {
	Verdict string
	Pairs   uint64
	Low     float64 `json:"effect_low_ns"`
	High    float64 `json:"effect_high_ns"`
	Floor   float64 `json:"floor_ns"`
	Classes [2]struct{ Responses, Excluded uint64 }
	Checks  []struct {
		Name   string
		Passes bool
		Log10  float64 `json:"evidence_log10"`
	}
}

// probe runs the probe without any privilege and returns its result.
func (p *probed) probe(flags ...string) (result probeResult) {
	p.l.t.Helper()
	args := append([]string{"--url=" + p.url, "--x.path=/x", "--y.path=/y", "--report=" + p.reported, "--json=-"}, flags...)
	cmd := exec.CommandContext(p.l.ctx, binaries.probe, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody, NoSetGroups: true}}
	var stdout, stderr output
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := p.netns.Start(cmd); err != nil {
		p.l.t.Fatal(err)
	}
	_ = cmd.Wait() // see its code
	err := json.Unmarshal([]byte(stdout.String()), &result)
	if err != nil || result.ExitCode != cmd.ProcessState.ExitCode() {
		p.l.t.Fatalf("%v, exit code %d:\n%s%s", err, cmd.ProcessState.ExitCode(), &stdout, &stderr)
	}
	k, c := &result.Kernel.Report, &result.Client
	p.l.t.Logf("%skernel: %s after %d pairs, %.0f to %.0f ns; client: %s after %d pairs, %.0f to %.0f ns",
		&stderr, k.Verdict, k.Pairs, k.Low, k.High, c.Verdict, c.Pairs, c.Low, c.High)
	return result
}

// nobody is a user without a privilege.
const nobody = 65534

const byDSCP = "classes: {fixed: {dscp: 8}, random: {dscp: 16}}"

// Each request reaches the exporter with the mark of its class, in blocks that it finds at once.
func TestProbeMarks(t *testing.T) {
	for _, test := range []struct {
		description, assessment string
		isIPv6                  bool
		tls                     uint16
		flags                   []string
		handshakes              uint64 // of a connection
	}{
		{"blocks", "order: blocks, " + byDSCP, false, 0, nil, 0},
		{"blocks over IPv6", "order: blocks, " + byDSCP, true, 0, nil, 0},
		{"blocks over TLS 1.3", "order: blocks, " + byDSCP, false, tls.VersionTLS13, nil, 1},
		{"blocks over TLS 1.2", "order: blocks, " + byDSCP, false, tls.VersionTLS12, nil, 2},
		{"blocks on several connections over TLS", "order: blocks, " + byDSCP, true, tls.VersionTLS13, []string{"--connections=3"}, 3},
		{"coins", "order: random, " + byDSCP, false, 0, []string{"--connections=2"}, 0},
		{"source ports", "order: random, classes: {fixed: {source_port: 10000-10999}, random: {source_port: 11000-11999}}", false, 0, []string{"--label=port"}, 0},
		{"source ports over TLS", "order: observed, classes: {fixed: {source_port: 10000-10999}, random: {source_port: 11000-11999}}", false, tls.VersionTLS13, []string{"--label=port"}, 0},
	} {
		t.Run(test.description, func(t *testing.T) {
			l := newLab(t)
			address := l.audited.IPv4.Addr()
			if test.isIPv6 {
				address = l.audited.IPv6.Addr()
			}
			listener, scheme := l.listenTCP(address), "http"
			port := portOf(t, listener)
			if test.tls != 0 {
				listener = tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{*strangersCertificate(t)}, MinVersion: test.tls, MaxVersion: test.tls})
				scheme = "https"
				test.flags = append(test.flags, "--tls.insecure-skip-verify")
			}
			l.serveHTTP(listener, planting(0))
			const n = 1000
			p := l.measure(fmt.Sprintf("%s://%s", scheme, netip.AddrPortFrom(address, uint16(port))), port, test.assessment)
			result := p.probe(append(test.flags, "--seed=1", "--rate=1000", "--warmup=3", "--target=0s", fmt.Sprint("--requests=", n), "--no-stop")...)
			if result.ExitCode == 2 {
				t.Errorf("exit code 2: %s", result.Sentence)
			}
			for i, class := range result.Kernel.Report.Classes {
				got := class.Responses + class.Excluded
				// The first and the last message of TLS have the port of the class, too.
				if strings.HasPrefix(test.description, "source ports over TLS") {
					got -= min(got, 2)
				}
				if sent := result.Requests.Sent[i]; got != sent {
					t.Errorf("class %d: the exporter has %d of %d requests", i, got, sent)
				}
			}
			for _, check := range result.Kernel.Report.Checks {
				if check.Name == "order" && (!check.Passes || strings.Contains(test.description, "blocks") && check.Log10 > 0.5) {
					t.Errorf("the check of order: passes %v, evidence 10^%v", check.Passes, check.Log10)
				}
			}
			if strings.HasPrefix(test.description, "blocks") && result.Kernel.Report.Pairs < n/2-10 {
				t.Errorf("%d pairs of %d requests", result.Kernel.Report.Pairs, n)
			}
			p.e.expectStopped()
		})
	}
}
