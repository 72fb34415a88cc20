// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// The port offers no HTTP/2, in which a handler outlives its connection.
func TestNoHTTP2(t *testing.T) {
	l := newLab(t)
	s := secure(t)
	config, err := os.OpenFile(s.config, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(config, "http_server_config:\n  http2: true\n"); err != nil {
		t.Fatal(err)
	}
	config.Close()
	e := l.startSecured(s, "--audit.device="+device)
	e.expectLog("level=WARN", "http2", "no effect")
	conn, err := l.audited.Namespace.Dial(l.ctx, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: offeredProtocols})
	if err := secure.Handshake(); err != nil {
		t.Fatal(err)
	}
	if got := secure.ConnectionState().NegotiatedProtocol; got != "http/1.1" {
		t.Errorf("the exporter negotiates %q", got)
	}
	conn.Close() // the end waits for a client
	e.expectStopped()
}

// Limits for the exporter with many devices.
const (
	manyDevices         = 400
	manyResident        = 96 << 20
	manySlowdown        = 5  // of a scrape during the attack, in the median
	clientsWithoutReads = 32 // the share of one address
)

// Clients of one address that do not read their answers neither fill the memory nor delay a
// client of another address by more than an answer of theirs, however large the answers are.
func TestManyDevicesAndClientsThatDoNotRead(t *testing.T) {
	l := newLab(t)
	l.connectMany(manyDevices - 1)
	e := l.launch(binaries.exporter, []string{
		"--web.listen-address=" + openPort, "--web.listen-address=" + address, "--audit.mode=skb",
		"--audit.device=" + device, "--audit.device=many*", fmt.Sprintf("--audit.max-devices=%d", manyDevices),
	})
	for deadline := time.Now().Add(10 * patience); ; time.Sleep(100 * time.Millisecond) {
		if _, _, err := e.ask("/-/ready"); err == nil {
			break
		}
		if e.hasEnded() || time.Now().After(deadline) {
			t.Fatalf("the exporter is not ready: %s", &e.stderr)
		}
	}

	const scrapes = 10
	e.expectCheapScrapes(scrapes, scrapeCost{bpfCalls: 2, systemCalls: 16 * manyDevices, allocations: 500 * manyDevices, bytes: 64_000 * manyDevices})
	last := 0.0
	scrape := func(times int) (took []time.Duration) {
		for range times {
			duration, err := e.scrapeUnderLoad(&last)
			if err != nil {
				t.Fatal(err)
			}
			took = append(took, duration)
		}
		return took
	}
	begin := e.usage()
	alone := median(scrape(scrapes))
	cpu := (e.usage().cpu - begin.cpu) / scrapes

	ctx, stop := context.WithCancel(l.ctx)
	defer stop()
	a := &attacker{lab: l, ctx: ctx}
	go a.over(clientsWithoutReads, func() error {
		conn, err := a.dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetReadBuffer(1)
		}
		// Each asks in its own way, so that answers are not shared.
		query := fmt.Sprintf("?name[]=unknown%d&name[]=xdp_audit_delta_seconds", a.done.Add(1))
		if _, err := io.WriteString(conn, strings.Repeat("GET /metrics"+query+" HTTP/1.1\r\nHost: a\r\n\r\n", 20)); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	})
	l.poll(func() error {
		if n := a.done.Load(); n < clientsWithoutReads {
			return fmt.Errorf("%d clients ask", n)
		}
		return nil
	})
	took := scrape(2 * scrapes)
	attacked, slowest := median(took), slices.Max(took)
	if attacked > manySlowdown*alone || slowest > maxScrape {
		t.Errorf("a scrape took %v in the median and %v at most, want %d times the %v without an attack, and %v",
			attacked, slowest, manySlowdown, alone, maxScrape)
	}
	resident := e.usage().peakBytes
	if resident > manyResident {
		t.Errorf("the peak of memory was %.1f MiB, want at most %.1f MiB", mebibytes(resident), mebibytes(manyResident))
	}
	t.Logf("%d devices: %v of CPU for a scrape, which takes %v; under attack %v in the median and %v at most, %.1f MiB",
		manyDevices, cpu, alone.Round(time.Microsecond), attacked.Round(time.Microsecond), slowest.Round(time.Microsecond), mebibytes(resident))
	stop()
	t.Logf("it ended after %v", e.expectEnd(0))
}

// connectMany adds n devices to the audited namespace.
func (l *lab) connectMany(n int) {
	l.t.Helper()
	err := l.audited.Namespace.Do(func() error {
		for i := range n {
			name := fmt.Sprintf("many%d", i)
			veth := netlink.NewVeth(netlink.NewLinkAttrs())
			veth.Name, veth.PeerName = name, "peer"+name
			if err := netlink.LinkAdd(veth); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

// A standard error that nobody reads blocks neither clients nor the end, and clients that make
// the exporter log do not change that.
func TestStandardErrorThatNobodyReads(t *testing.T) {
	l := newLab(t)
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	defer writer.Close()
	limitPipe(t, writer, 4096)
	if _, err := writer.Write(make([]byte, 4096)); err != nil { // full from the start
		t.Fatal(err)
	}
	s := secure(t)
	e := l.launch(binaries.exporter, []string{"--web.listen-address=" + address, "--web.config.file=" + s.config, "--audit.device=" + device},
		func(cmd *exec.Cmd) { cmd.Stderr = writer })
	e.client, e.scheme = s.honest(t, l), "https"
	e.awaitReady("/-/ready")
	for range 200 {
		conn, err := l.audited.Namespace.Dial(l.ctx, "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
		_, _ = io.Copy(io.Discard, conn)
		conn.Close()
	}
	if _, err := e.scrapeUnderLoad(new(float64)); err != nil {
		t.Error(err)
	}
	e.expectStopped()
}

// The exporter serves on a Unix socket, replaces a stale one, and removes its file at the end,
// when it has no privileges any more.
func TestUnixSocket(t *testing.T) {
	l := newLab(t)
	path := filepath.Join(t.TempDir(), "run", "web.sock")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	args := []string{"--audit.device=" + device, "--web.listen-address=unix:" + path}
	launch := func() *exporter {
		e := l.launch(binaries.exporter, args)
		e.client = &http.Client{Timeout: patience, Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", path)
			},
			DisableKeepAlives: true,
		}}
		e.awaitReady("/-/ready")
		return e
	}
	killed := launch()
	killed.signal(syscall.SIGKILL)
	killed.wait()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("a killed exporter leaves no file: %v", err)
	}
	e := launch()
	if len(e.scrape().series("hook_up")) != 1 {
		t.Error("no metrics")
	}
	check := l.start(binaries.exporter, []string{"--healthcheck", args[1]})
	if code := check.wait(); code != 0 {
		t.Errorf("exit code %d of a health check: %s", code, &check.stderr)
	}
	l.start(binaries.exporter, args).expectRefusal("--web.listen-address", path, "address already in use")
	e.expectStopped()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file of the socket is left: %v", err)
	}
}
