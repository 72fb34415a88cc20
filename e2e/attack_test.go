// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	attackTime = 4 * time.Second
	openPort   = "192.0.2.1:9400" // the address of the exporter on the network
	mostLogged = 16 << 10         // bytes of the log after an attack

	// scrapeTimeout is the default scrape timeout of Prometheus.
	scrapeTimeout = 10 * time.Second
)

// attacker is a host on the network that can reach the exporter.
type attacker struct {
	lab  *lab
	ctx  context.Context
	stop func()        // ends the attack
	done atomic.Uint64 // repetitions of the attack
}

// dial connects, and ends the connection with the attack.
func (a *attacker) dial() (net.Conn, error) {
	conn, err := a.lab.sender.Namespace.Dial(a.ctx, "tcp", openPort)
	if err == nil {
		context.AfterFunc(a.ctx, func() { conn.Close() })
	}
	return conn, err
}

// over calls f repeatedly in n goroutines until the attack ends. Errors of f are ignored.
func (a *attacker) over(n int, f func() error) {
	var running sync.WaitGroup
	for range n {
		running.Go(func() {
			for a.ctx.Err() == nil {
				if f() == nil {
					a.done.Add(1)
					continue
				}
				select { // refused: try again a little later
				case <-a.ctx.Done():
				case <-time.After(time.Millisecond):
				}
			}
		})
	}
	running.Wait()
}

// say sends a text over a new connection, and reads until the connection is closed.
func (a *attacker) say(text string) error {
	conn, err := a.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, conn)
	return err
}

// secret sends a request over TLS with a password and, if it is not nil, a certificate.
func (a *attacker) secret(password string, certificate *tls.Certificate) error {
	conn, err := a.dial()
	if err != nil {
		return err
	}
	config := &tls.Config{InsecureSkipVerify: true, NextProtos: offeredProtocols}
	if certificate != nil {
		config.Certificates = []tls.Certificate{*certificate}
	}
	secure := tls.Client(conn, config)
	defer secure.Close()
	user := base64.StdEncoding.EncodeToString([]byte("nobody:" + password))
	if _, err := io.WriteString(secure, "GET /metrics HTTP/1.1\r\nHost: a\r\nAuthorization: Basic "+user+"\r\n\r\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(secure).ReadString('\n')
	if err == nil && !strings.Contains(line, "401") {
		err = fmt.Errorf("the answer is %s", line)
	}
	return err
}

// offeredProtocols are what clients offer in ALPN, as Prometheus does.
var offeredProtocols = []string{"h2", "http/1.1"}

// abandon sends a request with a wrong password, in HTTP/2 if the exporter takes it, and closes
// the connection while the password is compared.
func (a *attacker) abandon(password string) error {
	conn, err := a.dial()
	if err != nil {
		return err
	}
	secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: offeredProtocols})
	defer conn.Close() // at once
	if err := secure.HandshakeContext(a.ctx); err != nil {
		return err
	}
	user := "Basic " + base64.StdEncoding.EncodeToString([]byte("nobody:"+password))
	request := "GET /metrics HTTP/1.1\r\nHost: a\r\nAuthorization: " + user + "\r\n\r\n"
	if secure.ConnectionState().NegotiatedProtocol == "h2" {
		request = http2Request(user)
	}
	if _, err := io.WriteString(secure, request); err != nil {
		return err
	}
	select {
	case <-a.ctx.Done():
	case <-time.After(3 * time.Millisecond):
	}
	return nil
}

// http2Request returns a connection preface, empty settings, and a request of /metrics, see RFC
// 9113 and RFC 7541.
func http2Request(authorization string) string {
	const (
		preface  = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
		settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
		// GET, https, the path, the authority "a", and the name of the field authorization.
		fields = "\x82\x87\x04\x08/metrics\x01\x01a\x0f\x08"
	)
	headers := fields + string(rune(len(authorization))) + authorization
	// A frame of type 1, headers, with the flags for the end of headers and stream, in stream 1.
	return preface + settings + "\x00\x00" + string(rune(len(headers))) + "\x01\x05\x00\x00\x00\x01" + headers
}

// attacks are what an attacker with access to the port may do.
var attacks = []struct {
	name    string
	secured bool
	isLong  bool // ends by itself
	run     func(t *testing.T, a *attacker)
}{
	{"a header byte by byte", false, false, func(_ *testing.T, a *attacker) {
		a.over(200, func() error {
			conn, err := a.dial()
			if err != nil {
				return err
			}
			defer conn.Close()
			for _, b := range []byte("GET /metrics HTTP/1.1\r\nHost: " + strings.Repeat("a", 1000)) {
				if _, err := conn.Write([]byte{b}); err != nil {
					return err
				}
				select {
				case <-a.ctx.Done():
				case <-time.After(50 * time.Millisecond):
				}
			}
			return nil
		})
	}},
	{"ten thousand connections that say nothing", false, true, func(t *testing.T, a *attacker) {
		const all = 10_000
		var silent atomic.Int64
		a.over(16, func() error {
			if silent.Load() >= all {
				a.stop()
				return nil
			}
			_, err := a.dial()
			silent.Add(1)
			return err
		})
		if silent.Load() < all {
			t.Errorf("only %d connections were made", silent.Load())
		}
	}},
	{"bodies that never come", false, false, func(_ *testing.T, a *attacker) {
		a.over(100, func() error {
			return a.say("POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n")
		})
	}},
	{"headers of a mebibyte", false, false, func(_ *testing.T, a *attacker) {
		header := "GET /metrics HTTP/1.1\r\nHost: a\r\nX-Long: " + strings.Repeat("a", 1<<20) + "\r\n\r\n"
		a.over(20, func() error { return a.say(header) })
	}},
	{"thousands of collectors", false, false, func(_ *testing.T, a *attacker) {
		many := strings.Repeat("collect[]=packets&", 3000)
		unknown := strings.Repeat("exclude[]=nosuch&", 3000)
		a.over(20, func() error {
			for _, query := range []string{many, unknown, "collect[]=" + strings.Repeat("%00", 10_000)} {
				if err := a.say("GET /metrics?" + query + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); err != nil {
					return err
				}
			}
			return nil
		})
	}},
	{"answers that nobody reads", false, false, func(_ *testing.T, a *attacker) {
		a.over(200, func() error {
			conn, err := a.dial()
			if err != nil {
				return err
			}
			defer conn.Close()
			if tcp, ok := conn.(*net.TCPConn); ok {
				_ = tcp.SetReadBuffer(1)
			}
			if _, err := io.WriteString(conn, strings.Repeat("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", 20)); err != nil {
				return err
			}
			<-a.ctx.Done()
			return nil
		})
	}},
	{"requests as fast as can be", false, false, func(_ *testing.T, a *attacker) {
		a.over(100, func() error { return a.say("GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n") })
	}},
	{"pages as fast as can be", false, false, func(_ *testing.T, a *attacker) {
		var n atomic.Int64
		long := strings.Repeat("x", 50_000)
		a.over(100, func() error {
			// None of these answers is kept for the next request.
			path := []string{"/?page=%d", "/device/" + device + "?page=%d", "/flags?device=" + device + "&page=%d", "/nothing/%d", "/flags?device=" + long + "%d"}[n.Add(1)%5]
			return a.say("GET " + fmt.Sprintf(path, n.Load()) + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		})
	}},
	{"wrong passwords", true, false, func(_ *testing.T, a *attacker) {
		var n atomic.Int64
		a.over(200, func() error { return a.secret(fmt.Sprint(n.Add(1)), nil) })
	}},
	{"wrong passwords over connections that are closed at once", true, false, func(_ *testing.T, a *attacker) {
		var n atomic.Int64
		a.over(55, func() error { return a.abandon(fmt.Sprint(n.Add(1))) })
	}},
	{"plain HTTP on the port of TLS", true, false, func(_ *testing.T, a *attacker) {
		a.over(50, func() error { return a.say("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n") })
	}},
	{"handshakes that are none, and certificates of nobody", true, false, func(t *testing.T, a *attacker) {
		certificate := strangersCertificate(t)
		a.over(50, func() error {
			_ = a.say("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("a", 200))
			_ = a.secret("none", certificate)
			return nil
		})
	}},
}

// During an attack on the port, authorized clients are answered in time and the audit stays
// exact. After it, descriptors and memory are released.
func TestAttacksOnThePort(t *testing.T) {
	for _, attack := range attacks {
		t.Run(attack.name, func(t *testing.T) {
			l := newLab(t)
			args := []string{"--audit.device=" + device, "--web.listen-address=" + openPort}
			var e *exporter
			var s secured
			if attack.secured {
				s = secure(t)
				if strings.Contains(attack.name, "certificates") {
					s.askForCertificates(t)
				}
				e = l.startSecured(s, args...)
			} else {
				e = l.startExporter(args...)
			}
			e.client = s.honest(t, l)
			traffic := l.startStream(l.newFlow(l.audited.IPv4.Addr()))
			before := e.usage()

			limit := attackTime
			if attack.isLong {
				limit = patience
			}
			ctx, cancel := context.WithTimeout(l.ctx, limit)
			defer cancel()
			a := &attacker{lab: l, ctx: ctx, stop: cancel}
			var attacking sync.WaitGroup
			attacking.Go(func() { attack.run(t, a) })
			var took []time.Duration
			last := 0.0
			for ctx.Err() == nil {
				duration, err := e.scrapeUnderLoad(&last)
				if err != nil {
					t.Fatalf("after %d scrapes: %v", len(took), err)
				}
				took = append(took, duration)
			}
			attacking.Wait()
			slices.Sort(took)
			slowest := took[len(took)-1]
			if slowest > scrapeTimeout {
				t.Errorf("a scrape took %v", slowest)
			}
			if log := len(e.stderr.String()); log > mostLogged {
				t.Errorf("the log has %d bytes, want at most %d", log, mostLogged)
			}
			during := e.usage()
			const mostBytes = 64 << 20
			if during.peakBytes > mostBytes {
				t.Errorf("the peak of memory was %.1f MiB", mebibytes(during.peakBytes))
			}
			l.poll(func() error {
				if now := e.usage().descriptors; now > before.descriptors+2 {
					return fmt.Errorf("%d descriptors, %d before", now, before.descriptors)
				}
				return nil
			})
			sent, err := traffic.end()
			if err != nil {
				t.Error(err)
			}
			// Connections may still be closing: the counts agree once they have ended.
			udp := 0.0
			l.poll(func() error {
				s := e.atRest()
				udp = s.sum("packets_total", "device="+device, "family=ipv4", "protocol=udp")
				if counted, received := s.sum("packets_total", "device="+device), l.pair().frames().received; counted != float64(received) {
					return fmt.Errorf("%v packets were counted, and the driver received %d", counted, received)
				}
				return nil
			})
			if written := traffic.flow.written.Load(); udp > float64(written) || udp < float64(written-sent.dropped) {
				t.Errorf("%v packets of UDP were counted, want %d, minus at most %d that the driver dropped", udp, written, sent.dropped)
			}
			t.Logf("%d times; %d scrapes took %v in the median and %v at most; memory %.1f MiB at most; %.1f s of CPU; %d packets",
				a.done.Load(), len(took), median(took).Round(time.Microsecond), slowest.Round(time.Microsecond), mebibytes(during.peakBytes),
				(during.cpu - before.cpu).Seconds(), sent.received)
			e.expectStopped()
		})
	}
}

// honest returns a client with valid credentials that opens a new connection for each request.
func (s secured) honest(t *testing.T, l *lab) *http.Client {
	t.Helper()
	transport := &http.Transport{DialContext: l.audited.Namespace.Dial, DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: patience}
	if s.roots == nil {
		return client
	}
	transport.TLSClientConfig, transport.ForceAttemptHTTP2 = s.clientTLS(t), true
	client.Transport = authorized{transport}
	return client
}

// askForCertificates makes the configuration require a client certificate. The certificate of
// the server is accepted.
func (s secured) askForCertificates(t *testing.T) {
	t.Helper()
	config, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	const key = "  key_file: tls.key\n"
	changed := strings.Replace(string(config), key, key+"  client_ca_file: tls.crt\n  client_auth_type: RequireAndVerifyClientCert\n", 1)
	if err := os.WriteFile(s.config, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
}

// strangersCertificate returns an expired certificate of an unknown issuer.
func strangersCertificate(t *testing.T) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{certificate}, PrivateKey: key}
}
