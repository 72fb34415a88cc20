// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package pages

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

const device = "audited0"

var folder string // of the binaries

// binaries builds the exporter and the demo once.
var binaries = sync.OnceValue(func() error {
	version, err := os.ReadFile("../../VERSION")
	if err != nil {
		return err
	}
	setVersion := "-X github.com/prometheus/common/version.Version=" + strings.TrimSpace(string(version))
	for name, pkg := range map[string]string{"xdp_audit_exporter": ".", "demo": "./examples/demo"} {
		build := exec.Command("go", "build", "-ldflags", setVersion, "-o", filepath.Join(folder, name), pkg)
		build.Dir = "../.."
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w: %s", pkg, err, out)
		}
	}
	return nil
})

func TestMain(m *testing.M) {
	var err error
	if folder, err = os.MkdirTemp("", "pages"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(folder)
	os.Exit(code)
}

func binary(t *testing.T, name string) string {
	t.Helper()
	if err := binaries(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(folder, name)
}

// lab is a network of two namespaces.
type lab struct {
	t               *testing.T
	audited, sender netlab.End
	receiver        net.PacketConn
	conn            net.Conn
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "the tests do not run as root")
	}
	l := &lab{
		t:       t,
		audited: netlab.End{Device: device, IPv4: netip.MustParsePrefix("192.0.2.1/24")},
		sender:  netlab.End{Device: "sender0", IPv4: netip.MustParsePrefix("192.0.2.2/24")},
	}
	for _, end := range []*netlab.End{&l.audited, &l.sender} {
		namespace, err := netlab.NewNamespace()
		if err != nil {
			skip(t, err.Error())
		}
		t.Cleanup(namespace.Close)
		end.Namespace = namespace
	}
	if err := netlab.Connect(l.audited, l.sender, 0); err != nil {
		t.Fatal(err)
	}
	var err error
	l.receiver, err = l.audited.Namespace.ListenPacket("192.0.2.1:0")
	if err == nil {
		l.conn, err = l.sender.Namespace.Dial(t.Context(), "udp", l.receiver.LocalAddr().String())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.conn.Close(); l.receiver.Close() })
	return l
}

// addDevices adds veth devices audited1 and so on to the audited namespace, up to a number of
// devices.
func (l *lab) addDevices(n int) {
	l.t.Helper()
	err := l.audited.Namespace.Do(func() error {
		for i := 1; i < n; i++ {
			attributes := netlink.NewLinkAttrs()
			attributes.Name = fmt.Sprintf("audited%d", i)
			link := &netlink.Veth{LinkAttrs: attributes, PeerName: fmt.Sprintf("peer%d", i)}
			if err := netlink.LinkAdd(link); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

// removeDevice removes the pair of veth devices.
func (l *lab) removeDevice() {
	l.t.Helper()
	err := l.audited.Namespace.Do(func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

// send sends packets at intervals of a millisecond, the last but one of which is late.
func (l *lab) send(n int) {
	l.t.Helper()
	gap := func(i int) time.Duration {
		if i == n-2 {
			return 50 * time.Millisecond
		}
		return time.Millisecond
	}
	ctx, cancel := context.WithCancel(l.t.Context())
	defer cancel()
	err := netlab.Pace(ctx, gap, func(i int) error {
		if i >= n {
			cancel()
			return nil
		}
		_, err := l.conn.Write([]byte("steady as she goes"))
		return err
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		l.t.Fatal(err)
	}
}

// exporter is an exporter that runs in the audited namespace. Its port is outside.
type exporter struct {
	t       *testing.T
	cmd     *exec.Cmd
	address string
	log     *bytes.Buffer
	ended   chan struct{}
}

// start starts an exporter.
func (l *lab) start(args ...string) *exporter {
	l.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	defer listener.Close()
	tcp, ok := listener.(*net.TCPListener)
	if !ok {
		l.t.Fatalf("%v is not a TCP listener", listener)
	}
	socket, err := tcp.File()
	if err != nil {
		l.t.Fatal(err)
	}
	defer socket.Close()
	e := &exporter{t: l.t, address: listener.Addr().String(), log: new(bytes.Buffer), ended: make(chan struct{})}
	args = append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, binary(l.t, "xdp_audit_exporter"), "--web.systemd-socket"}, args...)
	e.cmd = exec.Command("/bin/sh", args...)
	e.cmd.Env = append(os.Environ(), "LISTEN_FDS=1")
	e.cmd.ExtraFiles = []*os.File{socket}
	e.cmd.Stderr = e.log
	if err := l.audited.Namespace.Start(e.cmd); err != nil {
		l.t.Fatal(err)
	}
	go func() {
		defer close(e.ended)
		_ = e.cmd.Wait()
	}()
	l.t.Cleanup(func() {
		_ = e.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-e.ended:
		case <-time.After(patience):
			l.t.Error("the exporter does not end")
		}
		if l.t.Failed() {
			l.t.Log(e.log)
		}
	})
	return e
}

// ready waits until the exporter answers.
func (e *exporter) ready() *exporter {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), patience)
	defer cancel()
	err := netlab.Poll(ctx, func() error {
		_, err := e.scrape()
		return err
	})
	if err != nil {
		e.t.Fatal(err, e.log)
	}
	return e
}

func (e *exporter) url(path string) string { return "http://" + e.address + path }

// scrape returns the metrics.
func (e *exporter) scrape() (string, error) {
	response, err := http.Get(e.url("/metrics"))
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	return string(text), err
}

// sum returns the sum of the series of a metric with a device, and a part of the other labels.
func sum(t *testing.T, metrics, name, device, labels string) (total uint64) {
	t.Helper()
	for line := range strings.Lines(metrics) {
		if !strings.HasPrefix(line, name+"{") || !strings.Contains(line, `device="`+device+`"`) || !strings.Contains(line, labels) {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' ')+1:]), 64)
		if err != nil {
			t.Fatal(err)
		}
		total += uint64(v)
	}
	return total
}
