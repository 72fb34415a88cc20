// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package pages

import (
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/assessment"
	"github.com/xdp-audit/xdp_audit_exporter/internal/assessmentfile"
	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
	"github.com/xdp-audit/xdp_audit_exporter/internal/history"
	"github.com/xdp-audit/xdp_audit_exporter/internal/pages"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// fakeAudit is an audit of devices with made up counters.
type fakeAudit struct {
	mu      sync.Mutex
	names   []string
	packets uint64   // of each device
	own     []uint64 // packets of each device in addition
	cuts    int      // flows with cuts
	gone    map[string]bool
	ready   error
	deltas  bpf.Histogram
}

func newFakeAudit(names ...string) *fakeAudit {
	f := &fakeAudit{names: names, gone: map[string]bool{}, packets: 100_000, own: make([]uint64, len(names)), cuts: 2000}
	cuts := timing.Cuts()
	for range 2000 {
		f.deltas[timing.Cell(uint64(1e6+1e5*rand.NormFloat64()), cuts)]++
	}
	for range 20 {
		f.deltas[timing.Cell(uint64(11e6+1e6*rand.NormFloat64()), cuts)]++
	}
	return f
}

func (f *fakeAudit) Counters() (counters []bpf.Counters) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, name := range f.names {
		if f.gone[name] {
			continue
		}
		c := bpf.Counters{Device: name}
		n := f.packets/uint64(1+i%4) + f.own[i]
		c.Packets[bpf.FamilyIPv4][bpf.ProtocolUDP][bpf.OutcomeJudged] = n - n/100
		c.Packets[bpf.FamilyIPv6][bpf.ProtocolTCP][bpf.OutcomeFlaggedLate] = n / 200
		c.Packets[bpf.FamilyIPv4][bpf.ProtocolUDP][bpf.OutcomeFlaggedEarly] = n / 400
		c.Packets[bpf.FamilyIPv4][bpf.ProtocolUDP][bpf.OutcomeMinSamples] = 100
		c.Packets[bpf.FamilyOther][bpf.ProtocolOther][bpf.OutcomeUnparsed] = n / 1000
		c.Bytes[bpf.FamilyIPv4][bpf.ProtocolUDP] = 800 * n
		c.Fates[bpf.FateSent], c.Fates[bpf.FateSuppressed] = n/400, n/200
		c.Decisions = [bpf.NumDecisions]uint64{n / 2000, n / 2000, n/200 - 10, 10}
		c.Inserts, c.Restarts = 1000, 1
		for cell, count := range f.deltas {
			c.Histogram[cell] = count * n / 2020
		}
		c.Sums = bpf.DeltaSums{ReferenceNs: 1e6, TotalNs: bpf.Uint128{Lo: 1_100_000 * (n - n/100)}, SquaredNs2: bpf.Uint128{Lo: n * 1e12 >> 4}}
		flag := fakeFlag(time.Duration(3+7*i) * time.Second)
		c.LastFlag = &flag
		counters = append(counters, c)
	}
	return counters
}

// fakeFlag returns a flag of some time ago.
func fakeFlag(ago time.Duration) bpf.Flag {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // the clock exists
	return bpf.Flag{
		KtimeNs: uint64(now.Nano()) - uint64(ago),
		DeltaNs: 11_100_000, Domain: bpf.DomainLinear, Samples: 998, MeanQ16: 1_010_000 << 16, Clip: 1.8,
		M2: bpf.Uint128{Lo: 997 * 130_000 * 130_000 / 2}, LenBytes: 120, Late: true,
	}
}

func (f *fakeAudit) Hooks() (hooks []bpf.Hook) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, name := range f.names {
		if f.gone[name] {
			continue
		}
		hook := bpf.Hook{Device: name, Up: true, Mode: "drv", Driver: "mlx5_core", Clock: "ktime", ProgramID: uint32(i)}
		if i%8 == 7 {
			hook = bpf.Hook{Device: name, Reason: "the driver has no native XDP: use --audit.mode=skb, or another device"}
		}
		hooks = append(hooks, hook)
	}
	return hooks
}

func (f *fakeAudit) Slots() int { return 65536 }
func (f *fakeAudit) DeviceSlots() bpf.DeviceSlots {
	return bpf.DeviceSlots{Total: 16, Used: 16, Refused: max(0, len(f.names)-10)}
}
func (f *fakeAudit) WatchCounts() bpf.WatchCounts { return bpf.WatchCounts{Flows: 12, Skipped: 4000} }
func (f *fakeAudit) VisitCuts(_ string, visit func(early, late float64)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	random := rand.New(rand.NewPCG(3, 4))
	for range f.cuts {
		visit(4+math.Abs(random.NormFloat64()), 4+4*random.ExpFloat64())
	}
	return nil
}

func (f *fakeAudit) EventCounts() bpf.EventCounts {
	counts := bpf.EventCounts{Received: map[string]uint64{}}
	for _, c := range f.Counters() {
		counts.Received[c.Device] = c.Fates[bpf.FateSent]
	}
	return counts
}

func (f *fakeAudit) Ready() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ready
}

// site is a site with a fake audit.
type site struct {
	audit   *fakeAudit
	history *history.History
	flags   *history.Flags
	url     string

	between atomic.Pointer[func(next http.Handler, w http.ResponseWriter, r *http.Request)]
}

// answer has all requests answered by a function.
func (s *site) answer(f func(next http.Handler, w http.ResponseWriter, r *http.Request)) {
	s.between.Store(&f)
}

// newSite serves pages of devices whose past is full.
func newSite(t *testing.T, change func(*pages.Options), names ...string) *site {
	t.Helper()
	s := &site{audit: newFakeAudit(names...), history: history.New(), flags: history.NewFlags()}
	judge, random := covert.NewJudge(), rand.New(rand.NewPCG(1, 2))
	now := time.Now()
	for i := range history.Points {
		s.audit.packets += 1000 + uint64(random.IntN(100))
		for k := range s.audit.own {
			s.audit.own[k] += 4000/uint64(1+k%4) + uint64(1200*(1+math.Sin(float64(i)/float64(20+15*k)+float64(k)))) + uint64(random.IntN(200))
			if i/12%(7+2*k) == k {
				s.audit.own[k] += 6000
			}
		}
		at := now.Add(time.Duration(i-history.Points) * history.Interval)
		s.history.Add(at, s.audit.Counters())
		for _, name := range names {
			s.history.AddScores(at, name, covert.Scores{0.2, 0.4, float64(i) / 200, 0.1, 0.3})
		}
	}
	for i := range history.MaxFlags {
		ago := time.Duration(history.MaxFlags-i) * 2900 * time.Millisecond
		event := &bpf.Event{
			Flag: fakeFlag(ago), Time: now.Add(-ago), Protocol: bpf.ProtocolUDP, Device: "eth0",
			Source: netip.MustParseAddrPort("192.0.2.1:1234"), Destination: netip.MustParseAddrPort("198.51.100.7:443"),
		}
		event.Late = random.IntN(4) > 0
		event.Samples += uint64(30 * i)
		event.M2 = bpf.Uint128{Lo: event.Samples * uint64(random.IntN(60_000)+90_000) * 70_000}
		if event.DeltaNs += uint64(1_500_000 * random.ExpFloat64()); !event.Late {
			event.DeltaNs = uint64(random.IntN(200_000))
		}
		if len(names) > 0 {
			event.Device = names[i%len(names)]
		}
		s.flags.Add(event)
	}
	options := pages.Options{
		Source: s.audit, History: s.history, Flags: s.flags, Covert: judge, Leak: fakeAssessments(t),
		Audit: bpf.DefaultConfig(), MetricsPath: "/metrics", Version: "1.2.3", Revision: "abcdef",
		Privileges: &pages.Privileges{NoNewPrivileges: true, LandlockABI: 7},
		Settings: []pages.Setting{
			{Name: "audit.device", Value: "eth0,<b>\"'&", Source: "environment", Variable: "XDP_INTERFACE", Help: "Devices <i>."},
			{Name: "audit.threshold", Value: "4", Source: "default", Variable: "XDP_AUDIT_THRESHOLD", Help: "Threshold."},
			{Name: "web.config.file", Value: "/etc/web.yml", Source: "flag", Help: "File."},
		},
	}
	if change != nil {
		change(&options)
	}
	handler, err := pages.New(options)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := s.between.Load(); f != nil {
			(*f)(handler, w, r)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

// fakeAssessments returns the states of an assessment with a leak and of one without responses.
func fakeAssessments(t *testing.T) func() []assessment.Status {
	t.Helper()
	dscp := func(v uint8) bpf.ClassMatch { return bpf.ClassMatch{DSCP: &v} }
	set := assessment.New(nil)
	file := &assessmentfile.File{}
	for i, name := range []string{"login", "idle"} {
		file.Assessments = append(file.Assessments, assessmentfile.Assessment{
			Name: name, Protocol: bpf.ProtocolTCP, Port: uint16(443 + i), Order: assessmentfile.DefaultOrder, Target: 20 * time.Microsecond, Alpha: assessmentfile.DefaultAlpha,
			Classes: [2]assessmentfile.Class{{Name: "fixed", Match: dscp(8)}, {Name: "random", Match: dscp(16)}},
		})
	}
	if err := set.Reload(file, func([]bpf.Assessment) error { return nil }, func() uint64 { return 0 }); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 6000 {
		class := random.IntN(2)
		at := uint64(1e9 + i*2e6)
		x := bpf.Exchange{
			Assessment: "login", Class: class, TimeNs: at, ResponseNs: uint64(400_000 + 50_000*class + int(30_000*random.ExpFloat64())),
			Connection: uint64(i), HasStart: true,
		}
		if i%500 == 0 {
			x.Exclusion = bpf.ExclusionRetransmitted
		}
		if err := set.Add([]bpf.Exchange{x}); err != nil {
			t.Fatal(err)
		}
	}
	if err := set.Flush(); err != nil {
		t.Fatal(err)
	}
	return set.Snapshot
}

// get returns an answer.
func get(t *testing.T, address string) *http.Response {
	t.Helper()
	response, err := http.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { response.Body.Close() })
	return response
}

// read returns the text of an answer.
func read(t *testing.T, address string) string {
	t.Helper()
	text, err := io.ReadAll(get(t, address).Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var errNotReady = errors.New("no device is audited: <eth0> has vanished")

func deviceNames(n int) (names []string) {
	for i := range n {
		names = append(names, fmt.Sprintf("enp%ds0f1np1", i))
	}
	return names
}
