// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package probe

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

// identity is a certificate with its key, in files.
type identity struct {
	pair      tls.Certificate
	cert, key string
}

// newIdentity makes a certificate that is its own authority.
func newIdentity(t *testing.T, name string) identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	i := identity{cert: filepath.Join(t.TempDir(), "cert.pem"), key: filepath.Join(t.TempDir(), "key.pem")}
	for path, block := range map[string]*pem.Block{i.cert: {Type: "CERTIFICATE", Bytes: der}, i.key: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if i.pair, err = tls.LoadX509KeyPair(i.cert, i.key); err != nil {
		t.Fatal(err)
	}
	return i
}

// A service with TLS is checked against its authority, gets the client's certificate and the name,
// and speaks HTTP/1.1.
func TestTLS(t *testing.T) {
	t.Parallel()
	ofService, ofClient := newIdentity(t, "service.test"), newIdentity(t, "client.test")
	clients := x509.NewCertPool()
	clients.AddCert(ofClient.pair.Leaf)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		var mu sync.Mutex
		names, protocols := map[string]bool{}, map[string]bool{}
		s := newService(t, func(w http.ResponseWriter, r *http.Request, isY bool) {
			mu.Lock()
			names[r.TLS.ServerName], protocols[r.Proto] = true, true
			mu.Unlock()
			same(w, r, isY)
		})
		s.EnableHTTP2 = true
		s.TLS = &tls.Config{
			Certificates: []tls.Certificate{ofService.pair}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert, MaxVersion: version,
		}
		s.StartTLS()
		good := []string{"--tls.ca=" + ofService.cert, "--tls.server-name=service.test", "--tls.cert=" + ofClient.cert, "--tls.key=" + ofClient.key}
		o := probe(t, s.arguments(slices.Concat(good, []string{"--requests=100", "--target=0s"})...)...)
		if o.code != exitInconclusive {
			t.Errorf("exit code %d: %s%s", o.code, o.stdout, o.stderr)
		}
		if len(names) != 1 || !names["service.test"] || len(protocols) != 1 || !protocols["HTTP/1.1"] {
			t.Errorf("names %v, protocols %v", names, protocols)
		}
		for description, test := range map[string]struct {
			flags []string
			want  string
		}{
			"without the authority":   {good[1:], "certificate"},
			"without a certificate":   {good[:2], "remote error: tls"},
			"under another name":      {[]string{"--tls.server-name=other.test", good[0], good[2], good[3]}, "other.test"},
			"accepted all the same":   {[]string{"--tls.insecure-skip-verify", good[2], good[3]}, ""},
			"the key of another user": {[]string{"--tls.key=" + ofService.key, good[0], good[1], good[2]}, "key"},
		} {
			o := probe(t, s.arguments(slices.Concat(test.flags, []string{"--requests=10"})...)...)
			if test.want == "" {
				if o.code != exitInconclusive {
					t.Errorf("%s: exit code %d: %s", description, o.code, o.stderr)
				}
				continue
			}
			if o.code != exitError || !strings.Contains(o.stderr, test.want) {
				t.Errorf("%s: exit code %d, want %d and %q: %s", description, o.code, exitError, test.want, o.stderr)
			}
		}
	}
}

// Whatever a handshake needs, the first request that counts is one of an even number of exchanges.
func TestExchangesBeforeTheFirstRequestAreEven(t *testing.T) {
	t.Parallel()
	ofService := newIdentity(t, "service.test")
	for _, version := range []uint16{0, tls.VersionTLS12, tls.VersionTLS13} {
		for _, warmup := range []uint64{0, 1, 2, 5} {
			s := newService(t, same)
			d := dialer{timeout: 10 * time.Second}
			if version == 0 {
				s.Start()
			} else {
				s.TLS = &tls.Config{Certificates: []tls.Certificate{ofService.pair}, MaxVersion: version}
				s.StartTLS()
				d.tls = &tls.Config{InsecureSkipVerify: true}
			}
			d.address = s.Listener.Addr().String()
			o, err := parseFlags(s.arguments(), io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			o.warmup, o.rate = warmup, 1e5
			messages, err := o.messages()
			if err != nil {
				t.Fatal(err)
			}
			ledger, err := newLedger(leak.Config{Classes: [2]string{"X", "Y"}, Alpha: 0.5})
			if err != nil {
				t.Fatal(err)
			}
			w := &worker{session: newSession(o, messages, d, ledger), texts: generator(1, 1), order: generator(1, 2)}
			c, err := w.connect(t.Context(), 0, true)
			if err != nil {
				t.Fatal(err)
			}
			handshakes := map[uint16]uint64{0: 0, tls.VersionTLS12: 2, tls.VersionTLS13: 1}[version]
			if c.tcp.exchanges%2 != 0 || uint64(len(s.all)) < warmup || c.tcp.exchanges != handshakes+uint64(len(s.all)) {
				t.Errorf("version %x, warm-up %d: %d exchanges, %d requests", version, warmup, c.tcp.exchanges, len(s.all))
			}
			c.close()
		}
	}
}

// The mark of a class is set while its requests are sent, and neither before nor after.
func TestMarks(t *testing.T) {
	for network, address := range map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"} {
		listener, err := net.Listen(network, address)
		if err != nil {
			t.Fatalf("%s: %v", network, err)
		}
		defer listener.Close()
		go func() {
			for {
				c, err := listener.Accept()
				if err != nil {
					return
				}
				_ = c.Close()
			}
		}()
		d := dialer{address: listener.Addr().String(), timeout: time.Second}
		c, err := d.open(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		level, option := unix.IPPROTO_IP, unix.IP_TOS
		if network == "tcp6" {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
		}
		for _, dscp := range []int{0, 8, 16, 63, 0} {
			if err := c.tcp.mark(dscp); err != nil {
				t.Fatal(err)
			}
			var got int
			_ = c.tcp.raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), level, option) })
			if err != nil || got>>2 != dscp {
				t.Errorf("%s: %v, the class of traffic is %#x, want DSCP %d", network, err, got, dscp)
			}
		}
		c.close()
	}
}

// Requests of bytes have answers that end with a text, or when the service is quiet.
func TestRaw(t *testing.T) {
	t.Parallel()
	ofService := newIdentity(t, "service.test")
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	secure, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{ofService.pair}})
	if err != nil {
		t.Fatal(err)
	}
	for _, listener := range []net.Listener{plain, secure} {
		t.Cleanup(func() { _ = listener.Close() })
		go serve(listener, answerLines)
	}
	endless, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = endless.Close() })
	go serve(endless, sendWithoutEnd)
	directory := t.TempDir()
	x, y := filepath.Join(directory, "x"), filepath.Join(directory, "y")
	for path, text := range map[string]string{x: "x {{random 4}}\n", y: "y {{random 4}}\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		description string
		flags       []string
		want        int
	}{
		{"an end", []string{"--url=tcp://" + plain.Addr().String(), `--raw.end=.\n`, "--requests=400"}, exitLeak},
		{"an end, with TLS", []string{"--url=tls://" + secure.Addr().String(), `--raw.end=.\n`, "--tls.insecure-skip-verify", "--requests=400"}, exitLeak},
		{"a pause", []string{"--url=tcp://" + plain.Addr().String(), "--raw.quiet=2ms", "--requests=400"}, exitLeak},
		{"a pause, with TLS", []string{"--url=tls://" + secure.Addr().String(), "--raw.quiet=2ms", "--tls.insecure-skip-verify", "--requests=400"}, exitLeak},
		{"an answer without end", []string{"--url=tcp://" + endless.Addr().String(), "--raw.quiet=50ms", "--timeout=200ms"}, exitError},
		{"an end that does not come", []string{"--url=tcp://" + plain.Addr().String(), "--raw.end=!", "--timeout=100ms"}, exitError},
	} {
		t.Run(test.description, func(t *testing.T) {
			t.Parallel()
			o := probe(t, append(test.flags, "--x.raw="+x, "--y.raw="+y)...)
			if o.code != test.want || o.result.Requests.Failed != [2]uint64{} {
				t.Errorf("exit code %d, want %d: %s%s", o.code, test.want, o.stdout, o.stderr)
			}
		})
	}
}

// serve handles each connection of a listener, and closes it, until the listener is closed.
func serve(listener net.Listener, handle func(net.Conn)) {
	for {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			handle(c)
		}()
	}
}

// sendWithoutEnd sends a byte again and again.
func sendWithoutEnd(c net.Conn) {
	for {
		if _, err := io.WriteString(c, "."); err != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// answerLines answers each line with two pieces. It is slower for lines of class Y.
func answerLines(c net.Conn) {
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "y") {
			time.Sleep(10 * time.Millisecond)
		}
		for _, piece := range []string{"answer", ".\n"} {
			if _, err := io.WriteString(c, piece); err != nil {
				return
			}
		}
	}
}

// Each request has a port of its class, and no port is used twice while it is taken.
func TestPorts(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	wrong := 0
	s := newService(t, func(w http.ResponseWriter, r *http.Request, isY bool) {
		_, port, _ := net.SplitHostPort(r.RemoteAddr)
		mu.Lock()
		defer mu.Unlock()
		isOfX, isOfY := strings.HasPrefix(port, "28"), strings.HasPrefix(port, "29")
		if isY && !isOfY || !isY && !isOfX {
			wrong++
		}
		same(w, r, isY)
	}).start()
	o := probe(t, s.arguments("--label=port", "--x.port=28000-28999", "--y.port=29000-29999", "--requests=200", "--warmup=0", "--target=0s", "--connections=2")...)
	if o.code != exitInconclusive || wrong > 0 || len(s.paths) != 200 {
		t.Errorf("exit code %d, %d of %d from other ports, %d connections: %s%s", o.code, wrong, len(s.all), len(s.paths), o.stdout, o.stderr)
	}
	taken := &ports{portRange: portRange{65534, 65535}}
	var tried []uint16
	_, err := taken.open(func(port uint16) (*connection, error) {
		tried = append(tried, port)
		return nil, &net.OpError{Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
	})
	if err == nil || !strings.Contains(err.Error(), "no source port of 65534-65535") || !slices.Equal(tried, []uint16{65534, 65535}) {
		t.Errorf("all ports are taken: %v after %v", err, tried)
	}
	wrong = 0
	o = probe(t, s.arguments("--label=port", "--order=observed", "--x.port=28000-28999", "--y.port=29000-29999", "--requests=200", "--warmup=0", "--target=0s")...)
	if o.code != exitInconclusive || wrong > 0 {
		t.Errorf("with connections of classes: exit code %d, %d wrong: %s%s", o.code, wrong, o.stdout, o.stderr)
	}
}
