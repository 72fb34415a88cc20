// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// leakyService is a web server in the audited namespace, which takes longer for /random.
type leakyService struct {
	l       *lab
	address string
	port    int
	asked   atomic.Uint64 // times
}

const plantedLeak = 2 * time.Millisecond

func (l *lab) newLeakyService(at netip.Addr) *leakyService {
	l.t.Helper()
	listener := l.listenTCP(at)
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/random" {
			time.Sleep(plantedLeak)
		}
		fmt.Fprintln(w, "OK")
	})}
	go func() { _ = server.Serve(listener) }()
	l.t.Cleanup(func() { _ = server.Close() })
	address := listener.Addr().String()
	return &leakyService{l: l, address: address, port: int(netip.MustParseAddrPort(address).Port())}
}

// ask sends n requests of random classes on one connection, and returns their number by class. The
// classes are the same in each run of a test, so that its checks do not depend on chance.
func (s *leakyService) ask(n int) (classes [2]float64) {
	s.l.t.Helper()
	classes, err := s.tryAsk(n)
	if err != nil {
		s.l.t.Fatal(err)
	}
	return classes
}

func (s *leakyService) tryAsk(n int) (classes [2]float64, err error) {
	ctx, cancel := context.WithTimeout(s.l.ctx, patience)
	defer cancel()
	to := netip.MustParseAddrPort(s.address)
	var conn *net.TCPConn
	err = s.l.sender.Namespace.Do(func() error {
		conn, err = new(net.Dialer).DialTCP(ctx, "tcp", netip.AddrPort{}, to)
		return err
	})
	if err != nil {
		return classes, err
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return classes, err
	}
	level, option := unix.IPPROTO_IP, unix.IP_TOS
	if to.Addr().Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	reader, coins := bufio.NewReader(conn), rand.New(rand.NewPCG(1, s.asked.Add(1)))
	for range n {
		class := coins.IntN(2)
		classes[class]++
		var failed error
		err := raw.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), level, option, []int{8, 16}[class]<<2)
		})
		if err == nil && failed == nil {
			_, err = fmt.Fprintf(conn, "GET /%s HTTP/1.1\r\nHost: test\r\n\r\n", []string{"fixed", "random"}[class])
		}
		if err = errors.Join(err, failed); err != nil {
			return classes, err
		}
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			return classes, err
		}
		response.Body.Close()
	}
	return classes, nil
}

// A service whose response time depends on the class of the request is found, without any
// privilege, and a reload goes on with what did not change.
func TestLeakIsFound(t *testing.T) {
	const n = 400
	l := newLab(t)
	service := l.newLeakyService(l.audited.IPv4.Addr())
	folder := t.TempDir()
	config := filepath.Join(folder, "leak.yml")
	configure := func(target string) {
		text := fmt.Sprintf("assessments: [{name: login, device: %s, protocol: tcp, port: %d, target: %s, classes: {fixed: {dscp: 8}, random: {dscp: 16}}}]",
			device, service.port, target)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	configure("1us")
	e := l.startExporter("--audit.device="+device, "--leak.config.file="+config, "--leak.raw-file="+filepath.Join(folder, "raw-{assessment}.csv"))
	e.expectThreads(nothing())
	classes := service.ask(n)
	s := e.await(func(s scrape) error {
		if got := s.sum("leak_responses_total"); got != n {
			return fmt.Errorf("%v responses, want %d", got, n)
		}
		return nil
	})
	for i, class := range []string{"fixed", "random"} {
		if got := s.sum("leak_responses_total", "class="+class); got != classes[i] {
			t.Errorf("%v responses to %s, want %v", got, class, classes[i])
		}
	}
	if got := s.sum("leak_excluded_total"); got != 0 {
		t.Errorf("%v requests are excluded", got)
	}
	if s.sum("leak_verdict", "verdict=leak") != 1 || s.sum("leak_verdict") != 1 || s.sum("privileges_capabilities") != 0 {
		t.Errorf("verdicts %v with %v capabilities, want leak and none", s.series("leak_verdict"), s.sum("privileges_capabilities"))
	}
	low, high := s.sum("leak_effect_low_seconds"), s.sum("leak_effect_high_seconds")
	if low < plantedLeak.Seconds() || high > 2*plantedLeak.Seconds() {
		t.Errorf("the effect is between %v and %v s, want a little more than %v", low, high, plantedLeak)
	}
	var page struct {
		Assessments []struct {
			Requests float64
			Report   struct{ Sentence string }
		}
	}
	if err := json.Unmarshal([]byte(e.get("/leak.json", http.StatusOK)), &page); err != nil || len(page.Assessments) != 1 || page.Assessments[0].Requests != n {
		t.Errorf("%v: got %+v, want %d requests", err, page, n)
	}
	t.Log(page.Assessments[0].Report.Sentence)

	// Files were moved, and the assessment changes.
	raw := filepath.Join(folder, "raw-login.csv")
	if err := os.Rename(raw, raw+".1"); err != nil {
		t.Fatal(err)
	}
	configure("2us")
	e.signal(syscall.SIGHUP)
	e.await(func(s scrape) error {
		if got := s.sum("leak_target_seconds"); strconv.FormatFloat(got, 'g', -1, 64) != "2e-06" || s.sum("leak_responses_total") != 0 {
			return fmt.Errorf("the target is %v s after %v responses", got, s.sum("leak_responses_total"))
		}
		return nil
	})
	service.ask(10)
	e.await(func(s scrape) error {
		if got := s.sum("leak_responses_total"); got != 10 {
			return fmt.Errorf("%v responses, want 10", got)
		}
		return nil
	})
	e.endWith(syscall.SIGTERM)
	for path, want := range map[string]int{raw + ".1": n, raw: 10} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := bytes.Count(text, []byte("\n")) - 1; got != want {
			t.Errorf("%s has %d responses, want %d", filepath.Base(path), got, want)
		}
	}
}
