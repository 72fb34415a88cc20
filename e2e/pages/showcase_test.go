// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package pages

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
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

// pin is what the service of the showcase compares.
const pin = "48151623"

// newShowcase starts an exporter that audits four devices. Flows of several kinds arrive, some
// packets of which are late on purpose, and requests to a service that compares a number digit by
// digit.
func newShowcase(t *testing.T) *exporter {
	t.Helper()
	l := newLab(t)
	addresses := map[string]netip.Addr{}
	for i, name := range []string{"eth0", "eth1", "enp65s0f0np0", "enp65s0f1np1"} {
		prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(16*i + 1)}), 28)
		addresses[name] = prefix.Addr()
		audited := netlab.End{Namespace: l.audited.Namespace, Device: name, IPv4: prefix}
		sender := netlab.End{Namespace: l.sender.Namespace, Device: fmt.Sprintf("peer%d", i), IPv4: netip.PrefixFrom(prefix.Addr().Next(), 28)}
		if err := netlab.Connect(audited, sender, 0); err != nil {
			t.Fatal(err)
		}
	}
	port := l.serve(addresses["eth1"])
	config := filepath.Join(t.TempDir(), "leak.yml")
	text := fmt.Sprintf("assessments:\n  - {name: pin, device: eth1, protocol: tcp, port: %d, order: blocks, target: 10us, "+
		"classes: {first_digit_wrong: {dscp: 8}, last_digit_wrong: {dscp: 16}}}\n", port)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	e := l.start("--audit.device=eth*", "--audit.device=enp*", "--collector.covert", "--leak.config.file="+config).ready()
	l.ask(netip.AddrPortFrom(addresses["eth1"], port))

	for k := range 3 { // calls
		l.flow(addresses["eth0"], 160, func(r *rand.Rand, i int, _ time.Duration) time.Duration {
			gap := 20e-3 + 0.4e-3*r.NormFloat64()
			if i > 500 && (i+150*k)%700 == 0 {
				gap += 15e-3
			}
			return inSeconds(gap)
		})
	}
	// A camera.
	l.flow(addresses["eth0"], 1200, func(r *rand.Rand, i int, _ time.Duration) time.Duration {
		gap := 4e-3 + 0.15e-3*r.NormFloat64()
		if i > 500 && r.IntN(9000) == 0 {
			gap += 12e-3
		}
		return inSeconds(gap)
	})
	// Many users.
	l.flow(addresses["eth1"], 400, func(r *rand.Rand, _ int, now time.Duration) time.Duration {
		return inSeconds(r.ExpFloat64() * 8e-3 / (1.3 + math.Sin(now.Seconds()/70)))
	})
	for k := range 2 { // copies, with pauses between
		l.flow(addresses["enp65s0f0np0"], 1400, func(r *rand.Rand, _ int, now time.Duration) time.Duration {
			gap := 2e-3 * math.Exp(0.5*r.NormFloat64())
			if period := 150 * time.Second; (now+time.Duration(k)*60*time.Second)%period > 70*time.Second {
				gap *= 12
			}
			return inSeconds(gap)
		})
	}
	// Sensors.
	l.flow(addresses["enp65s0f1np1"], 90, func(r *rand.Rand, _ int, _ time.Duration) time.Duration {
		return inSeconds(50e-3 + 2e-3*r.NormFloat64())
	})
	return e
}

func inSeconds(s float64) time.Duration { return time.Duration(max(s, 0) * float64(time.Second)) }

// flow sends packets to an address until the test ends. The gap is that before packet i at a time
// since the start.
func (l *lab) flow(to netip.Addr, length int, gap func(r *rand.Rand, i int, now time.Duration) time.Duration) {
	l.t.Helper()
	receiver, err := l.audited.Namespace.ListenPacket(netip.AddrPortFrom(to, 0).String())
	if err != nil {
		l.t.Fatal(err)
	}
	conn, err := l.sender.Namespace.Dial(l.t.Context(), "udp", receiver.LocalAddr().String())
	if err != nil {
		l.t.Fatal(err)
	}
	payload, begin := make([]byte, length), time.Now()
	random := rand.New(rand.NewPCG(1, uint64(begin.UnixNano())))
	go func() {
		_ = netlab.Pace(l.t.Context(), func(i int) time.Duration { return gap(random, i, time.Since(begin)) }, func(int) error {
			_, err := conn.Write(payload)
			return err
		})
		_ = errors.Join(conn.Close(), receiver.Close())
	}()
}

// serve starts the service, and returns its port.
func (l *lab) serve(at netip.Addr) uint16 {
	l.t.Helper()
	listener, err := l.audited.Namespace.Listen(netip.AddrPortFrom(at, 0).String())
	if err != nil {
		l.t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given, err := io.ReadAll(io.LimitReader(r.Body, 64))
		if err != nil || !isPIN(given) {
			http.Error(w, "wrong", http.StatusForbidden)
		}
	})}
	go func() { _ = server.Serve(listener) }()
	l.t.Cleanup(func() { _ = server.Close() })
	return netip.MustParseAddrPort(listener.Addr().String()).Port()
}

// isPIN compares the hash of each digit, until one is wrong.
func isPIN(given []byte) bool {
	if len(given) != len(pin) {
		return false
	}
	for i, digit := range given {
		sum, want := sha256.Sum256([]byte{digit}), sha256.Sum256([]byte{pin[i]})
		for range 200 {
			sum, want = sha256.Sum256(sum[:]), sha256.Sum256(want[:])
		}
		if sum != want {
			return false
		}
	}
	return true
}

// ask lets the probe ask the service until the test ends.
func (l *lab) ask(at netip.AddrPort) {
	l.t.Helper()
	program := filepath.Join(l.t.TempDir(), "xdp_audit_probe")
	build := exec.Command("go", "build", "-o", program, "./cmd/xdp_audit_probe")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		l.t.Fatalf("building the probe: %v: %s", err, out)
	}
	probe := exec.Command(program, fmt.Sprintf("--url=http://%s/door", at), "--x.data=x"+pin[1:], "--y.data="+strings.TrimSuffix(pin, pin[len(pin)-1:])+"x",
		"--order=blocks", "--x.dscp=8", "--y.dscp=16", "--target=10us", "--rate=50", "--duration=0s", "--requests=1000000", "--no-stop")
	probe.Stdout, probe.Stderr = io.Discard, os.Stderr
	if err := l.sender.Namespace.Start(probe); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		_ = probe.Process.Signal(syscall.SIGTERM)
		_ = probe.Wait()
	})
}
