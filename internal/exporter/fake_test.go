// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/privilege"
)

// patience bounds each wait for something that must happen.
const patience = 20 * time.Second

// fakeAudit is an audit of nothing, whose events and windows come from channels.
type fakeAudit struct {
	events    chan *bpf.Event
	windows   chan *bpf.Window
	readErr   chan error
	closed    chan struct{}
	closeErr  error
	commitErr error

	readiness atomic.Pointer[error]

	exchanges   chan []bpf.Exchange
	assessments atomic.Pointer[[]bpf.Assessment] // those that are measured
	ringFull    atomic.Uint64                    // of the first of them
	evicted     atomic.Uint64                    // the same

	isAbandoned bool                   // when it is closed
	scrape      atomic.Pointer[func()] // called by every scrape
	isRead      chan struct{}          // closed when the counters are read for the first time
	readOnce    sync.Once
	learnt      map[string]bpf.Learnt
}

func newFakeAudit() *fakeAudit {
	return &fakeAudit{events: make(chan *bpf.Event), windows: make(chan *bpf.Window), readErr: make(chan error, 1), closed: make(chan struct{}), exchanges: make(chan []bpf.Exchange), isRead: make(chan struct{})}
}

func (f *fakeAudit) Counters() []bpf.Counters {
	f.readOnce.Do(func() { close(f.isRead) })
	if scrape := f.scrape.Load(); scrape != nil {
		(*scrape)()
	}
	return []bpf.Counters{{Device: "eth0"}}
}

func (f *fakeAudit) Hooks() []bpf.Hook             { return []bpf.Hook{{Device: "eth0", Up: true, Mode: "drv"}} }
func (f *fakeAudit) Runs() ([]bpf.Runs, error)     { return nil, nil }
func (f *fakeAudit) Slots() int                    { return 8 }
func (f *fakeAudit) DeviceSlots() bpf.DeviceSlots  { return bpf.DeviceSlots{} }
func (f *fakeAudit) Learnt() map[string]bpf.Learnt { return f.learnt }
func (f *fakeAudit) EventCounts() bpf.EventCounts  { return bpf.EventCounts{} }

func (f *fakeAudit) VisitCuts(_ string, visit func(early, late float64)) error {
	visit(4, 9)
	return nil
}

func (f *fakeAudit) WatchCounts() bpf.WatchCounts { return bpf.WatchCounts{} }

func (f *fakeAudit) Watch(ctx context.Context, length int, handle func(*bpf.Window)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case window := <-f.windows:
			if len(window.DeltasNs) != length {
				return fmt.Errorf("windows of %d deltas are asked for", length)
			}
			handle(window)
		}
	}
}

func (f *fakeAudit) ReadEvents(ctx context.Context, handle func(*bpf.Event)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-f.readErr:
			return err
		case event := <-f.events:
			handle(event)
		}
	}
}

func (f *fakeAudit) SetAssessments(assessments []bpf.Assessment) error {
	f.assessments.Store(&assessments)
	return nil
}

func (f *fakeAudit) ReadExchanges(ctx context.Context, handle func([]bpf.Exchange)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case batch := <-f.exchanges:
			handle(batch)
		}
	}
}

func (f *fakeAudit) ExchangesExcluded() map[string][bpf.NumExclusions]uint64 {
	all := map[string][bpf.NumExclusions]uint64{}
	if assessments := f.assessments.Load(); assessments != nil && len(*assessments) > 0 {
		all[(*assessments)[0].Name] = [bpf.NumExclusions]uint64{bpf.ExclusionRingFull: f.ringFull.Load(), bpf.ExclusionEvicted: f.evicted.Load()}
	}
	return all
}

func (f *fakeAudit) OldestOutstanding(uint64) uint64 { return math.MaxUint64 }

func (f *fakeAudit) Follow(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (f *fakeAudit) setReadiness(err error) { f.readiness.Store(&err) }

func (f *fakeAudit) Ready() error {
	if err := f.readiness.Load(); err != nil {
		return *err
	}
	return nil
}

func (f *fakeAudit) Commit(context.Context) error { return f.commitErr }

func (f *fakeAudit) CommitNeedsPrivilege() bool { return false }

func (f *fakeAudit) Abandon() error {
	f.isAbandoned = true
	return f.Close()
}

func (f *fakeAudit) Close() error {
	close(f.closed)
	return f.closeErr
}

// mustNotOpen fails the test when an audit is opened.
func mustNotOpen(t *testing.T) openFunc {
	return func(context.Context, bpf.Config, *slog.Logger) (audit, error) {
		t.Error("an audit was opened")
		return nil, errors.New("opened")
	}
}

// openFake opens an audit of nothing.
func openFake(context.Context, bpf.Config, *slog.Logger) (audit, error) { return newFakeAudit(), nil }

// run runs the exporter in this process.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, open openFunc, drop dropFunc) error {
	return Run(ctx, args, Process{Stdout: stdout, Stderr: stderr, open: open, drop: drop})
}

// dropNothing leaves the process of the tests as it is.
func dropNothing(privilege.Needs, *slog.Logger) (privilege.Held, error) {
	return privilege.Held{}, nil
}

// logLines passes on what is logged, line by line.
type logLines chan string

func (l logLines) Write(line []byte) (int, error) {
	select {
	case l <- string(line):
	default: // no test reads so many
	}
	return len(line), nil
}

// await returns the first submatch of pattern in the lines to come.
func (l logLines) await(t *testing.T, pattern string) string {
	t.Helper()
	var seen []string
	timeout := time.After(patience)
	for {
		select {
		case line := <-l:
			if match := regexp.MustCompile(pattern).FindStringSubmatch(line); match != nil {
				return match[len(match)-1]
			}
			seen = append(seen, line)
		case <-timeout:
			t.Fatalf("no line of the log matches %s: %q", pattern, seen)
		}
	}
}

// runningExporter is an exporter that runs in this process.
type runningExporter struct {
	audit   *fakeAudit
	log     logLines
	all     *bytes.Buffer // the whole log, once it has ended
	address string
	stop    context.CancelFunc
	ended   chan struct{}
	err     error // what run returned, once it ended
}

// start runs the exporter on a free port until the test ends.
func start(t *testing.T, args ...string) *runningExporter {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	e := &runningExporter{audit: newFakeAudit(), all: new(bytes.Buffer), log: make(logLines, 1000), stop: cancel, ended: make(chan struct{})}
	args = append([]string{"--audit.device=eth0", "--web.listen-address=127.0.0.1:0"}, args...)
	open := func(context.Context, bpf.Config, *slog.Logger) (audit, error) { return e.audit, nil }
	go func() {
		defer close(e.ended)
		e.err = run(ctx, args, io.Discard, io.MultiWriter(e.all, e.log), open, dropNothing)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-e.ended:
		case <-time.After(patience):
			t.Error("the exporter does not end")
		}
	})
	e.address = e.log.await(t, `msg="Listening on" address=(\S+)`)
	// A start reads the counters, which is not a scrape.
	select {
	case <-e.audit.isRead:
	case <-time.After(patience):
		t.Fatal("the exporter does not read the counters")
	}
	return e
}

// end returns what run returned.
func (e *runningExporter) end(t *testing.T) error {
	t.Helper()
	select {
	case <-e.ended:
	case <-time.After(patience):
		t.Fatal("the exporter does not end")
	}
	return e.err
}

// get returns the status and the body of a page.
func (e *runningExporter) get(t *testing.T, path string) (int, string) {
	t.Helper()
	response, err := http.Get("http://" + e.address + path)
	return statusAndBody(t, response, err)
}

// statusAndBody reads an answer.
func statusAndBody(t *testing.T, response *http.Response, err error) (int, string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

func write(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// expectError expects an error with every phrase in one line of text.
func expectError(t *testing.T, err error, phrases ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", phrases)
		return
	}
	for _, phrase := range phrases {
		if line := OneLine(err); !strings.Contains(line, phrase) || strings.Contains(line, "\n") {
			t.Errorf("got error %q, want %q in one line", line, phrase)
		}
	}
}
