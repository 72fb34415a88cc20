// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leaklab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/assessment"
	"github.com/xdp-audit/xdp_audit_exporter/internal/assessmentfile"
	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// patience is the longest time to wait for anything.
const patience = 20 * time.Second

// server is a server whose response times are measured.
type server struct {
	name    string // of the server and of its assessment
	address netip.AddrPort
	control *http.Client
	capture *capture
}

const (
	netHTTP = "nethttp"
	nginx   = "nginx"
)

var serverNames = []string{netHTTP, nginx}

// lab is a pair of devices. The servers and the audit are on one end, and the client on the other.
type lab struct {
	t              *testing.T
	served, client netlab.End
	servers        map[string]*server
	audit          *bpf.Audit

	mu   sync.Mutex
	read map[string][]bpf.Exchange // by assessment
}

func newLab(t *testing.T) *lab {
	t.Helper()
	require(t, cannotRun())
	require(t, haveNginx())
	l := &lab{t: t, servers: map[string]*server{}, read: map[string][]bpf.Exchange{}}
	var err error
	l.served, l.client, err = netlab.NewPair("served", "calling")
	l.must(err)
	t.Cleanup(l.served.Namespace.Close)
	t.Cleanup(l.client.Namespace.Close)
	l.serve(netHTTP, 8001, nil)
	l.serve(nginx, 8002, l.startNginx)
	l.attach()
	return l
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// serve starts an application in the namespace of the servers, and a proxy if there is one.
func (l *lab) serve(name string, port uint16, proxy func(address, application netip.AddrPort, folder string)) {
	l.t.Helper()
	folder := l.t.TempDir()
	s := &server{name: name, address: netip.AddrPortFrom(l.served.IPv4.Addr(), port)}
	control := filepath.Join(folder, "control")
	s.control = &http.Client{Timeout: patience, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", control)
		},
	}}
	listens := s.address
	if proxy != nil {
		listens = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port+1000)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asApplication+"="+listens.String(), controlledBy+"="+control)
	l.start(cmd)
	if proxy != nil {
		proxy(s.address, listens, folder)
	}
	var err error
	s.capture, err = newCapture(l.served, port)
	l.must(err)
	l.t.Cleanup(func() { _ = s.capture.close() })
	l.poll(func() error {
		_, err := s.take()
		return err
	})
	l.poll(func() error {
		c, err := connect(l.client, s.address)
		if err != nil {
			return err
		}
		defer c.close()
		_, err = c.ask(leak.X, 0, 0)
		return err
	})
	l.servers[name] = s
}

func (l *lab) startNginx(address, application netip.AddrPort, folder string) {
	l.t.Helper()
	config := filepath.Join(folder, "nginx.conf")
	l.must(os.WriteFile(config, fmt.Appendf(nil, nginxConfig, address, application, folder), 0o600))
	l.start(exec.Command("nginx", "-p", folder, "-c", config))
}

// start starts a command that ends with the test.
func (l *lab) start(cmd *exec.Cmd) {
	l.t.Helper()
	cmd.Stderr = os.Stderr
	l.must(l.served.Namespace.Start(cmd))
	l.t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
}

func (l *lab) poll(ready func() error) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	l.must(netlab.Poll(ctx, ready))
}

// attach audits the device of the servers, and reads the response times.
func (l *lab) attach() {
	l.t.Helper()
	config := bpf.DefaultConfig()
	config.Devices = []string{l.served.Device}
	config.ExchangeConnections = 4096
	l.must(l.served.Namespace.Do(func() (err error) {
		l.audit, err = bpf.Open(config, slog.New(slog.DiscardHandler))
		return err
	}))
	var measured []bpf.Assessment
	for _, name := range serverNames {
		file := l.configuration(name, leak.Blocks)
		measured = append(measured, file.Assessments[0].Measured())
	}
	l.must(l.audit.SetAssessments(measured))
	ctx, stop := context.WithCancel(context.Background())
	var reader sync.WaitGroup
	reader.Go(func() {
		_ = l.audit.ReadExchanges(ctx, func(batch []bpf.Exchange) {
			l.mu.Lock()
			defer l.mu.Unlock()
			for _, x := range batch {
				l.read[x.Assessment] = append(l.read[x.Assessment], x)
			}
		})
	})
	l.t.Cleanup(func() {
		stop()
		reader.Wait()
		l.must(l.audit.Close())
	})
}

// configuration returns that of the assessment of a server, as a user writes it.
func (l *lab) configuration(name string, order leak.Order) *assessmentfile.File {
	l.t.Helper()
	file, err := assessmentfile.Parse("leak.yml", fmt.Appendf(nil, `assessments:
  - name: %s
    protocol: tcp
    port: %d
    classes:
      fast: {dscp: %d}
      slow: {dscp: %d}
    order: %v
    target: 100ns
`, name, l.servers[name].address.Port(), dscp[0], dscp[1], order))
	l.must(err)
	return file
}

// take returns the times of the handler since the last call.
func (s *server) take() (took []uint64, err error) {
	answer, err := s.control.Get("http://application/")
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	return took, json.NewDecoder(answer.Body).Decode(&took)
}

// measured has all that was measured of the requests of a run, in their order.
type measured struct {
	order   leak.Order
	classes []leak.Class
	records []bpf.Exchange
	client  []uint64 // ns
	handler []uint64 // ns
	capture []uint64 // ns
}

// kernel returns the times that the kernel measured.
func (m *measured) kernel() (times []uint64) {
	for _, x := range m.records {
		times = append(times, x.ResponseNs)
	}
	return times
}

// run sends the requests of that many pairs over a new connection. It ends after half of them if
// isEnough says so.
func (l *lab) run(name string, r *rand.Rand, order leak.Order, pairs int, planted, jitter time.Duration, isEnough func(*measured) bool) *measured {
	l.t.Helper()
	s := l.servers[name]
	all := classes(r, order, pairs)
	if len(all) > mostRequests {
		l.t.Fatalf("%d requests are more than the %d that a run may have", len(all), mostRequests)
	}
	_, err := s.take()
	l.must(err)
	s.capture.take()
	l.mu.Lock()
	clear(l.read)
	l.mu.Unlock()
	c, err := connect(l.client, s.address)
	l.must(err)
	defer c.close()
	m := &measured{order: order}
	half := len(all) / 4 * 2
	for _, part := range [][]leak.Class{all[:half], all[half:]} {
		times, err := c.send(r, part, planted, jitter)
		l.must(err)
		m.classes, m.client = append(m.classes, part...), append(m.client, times...)
		m.records = l.records(name, len(m.classes))
		if isEnough(m) {
			break
		}
	}
	m.handler, err = s.take()
	l.must(err)
	m.capture = exchanges(s.capture.take(), c.port)
	l.must(m.check())
	return m
}

// records waits for that many records of an assessment.
func (l *lab) records(name string, n int) (records []bpf.Exchange) {
	l.t.Helper()
	l.poll(func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		records = slices.Clone(l.read[name])
		if len(records) != n {
			return fmt.Errorf("%d requests were measured, want %d", len(records), n)
		}
		return nil
	})
	return records
}

// check returns an error if the kernel, the handler and the capture have not seen the same
// requests.
func (m *measured) check() error {
	n := len(m.classes)
	if len(m.handler) != n || len(m.capture) != n {
		return fmt.Errorf("of %d requests, the handler had %d and the capture %d", n, len(m.handler), len(m.capture))
	}
	for i, x := range m.records {
		switch {
		case x.Position != uint32(i) || !x.HasStart || x.Connection != m.records[0].Connection:
			return fmt.Errorf("request %d is %+v", i, x)
		case x.Exclusion != bpf.ExclusionNone:
		case x.Class != int(m.classes[i]):
			return fmt.Errorf("request %d of class %d is %+v", i, m.classes[i], x)
		case x.ResponseNs < m.handler[i]:
			return fmt.Errorf("request %d: the kernel measured %d ns, and the handler needed %d", i, x.ResponseNs, m.handler[i])
		}
	}
	return nil
}

// excluded returns the number of requests without a response time.
func (m *measured) excluded() (n int) {
	for _, x := range m.records {
		if x.Exclusion != bpf.ExclusionNone {
			n++
		}
	}
	return n
}

// judge gives times to a judge, in the order of the requests.
func (l *lab) judge(m *measured, config leak.Config, times []uint64) judged {
	l.t.Helper()
	j, err := leak.New(config)
	l.must(err)
	found := judged{pairs: never}
	for i, x := range m.records {
		r := leak.Request{Class: m.classes[i], TimeNs: x.TimeNs - x.ResponseNs, Number: x.Position, Connection: x.Connection}
		if x.Exclusion != bpf.ExclusionNone {
			j.Exclude(r)
			continue
		}
		j.Response(r, times[i])
		if found.pairs == never && j.EvidenceLog10() >= -math.Log10(config.Alpha) {
			found.pairs = int(j.Pairs())
		}
	}
	r := j.Report()
	found.effect, found.low, found.high, found.verdict = r.EffectNs, r.LowNs, r.HighNs, r.Verdict
	return found
}

// assess gives the records to the package that the exporter uses, and returns its report.
func (l *lab) assess(m *measured, file *assessmentfile.File) leak.Report {
	l.t.Helper()
	set := assessment.New(nil)
	l.must(set.Reload(file, func([]bpf.Assessment) error { return nil }, func() uint64 { return 0 }))
	l.must(errors.Join(set.Add(m.records), set.Flush()))
	return set.Snapshot()[0].Report
}

// medianDifference returns the median of the differences of the pairs that a judge takes.
func medianDifference(m *measured, times []uint64) float64 {
	var differences []int64
	add := func(a, b int) {
		if m.classes[a] == m.classes[b] {
			return
		}
		if m.classes[a] == leak.Y {
			a, b = b, a
		}
		differences = append(differences, int64(times[b])-int64(times[a]))
	}
	half := -1
	for i, x := range m.records {
		isClean := x.Exclusion == bpf.ExclusionNone
		switch {
		case m.order == leak.Blocks:
			if i%2 == 1 && isClean && m.records[i-1].Exclusion == bpf.ExclusionNone {
				add(i-1, i)
			}
		case !isClean:
		case half < 0:
			half = i
		default:
			add(half, i)
			half = -1
		}
	}
	slices.Sort(differences)
	return float64(differences[len(differences)/2]+differences[(len(differences)-1)/2]) / 2
}
