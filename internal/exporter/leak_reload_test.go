// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

// value returns the value of a series of the collector leak as text.
func (e *runningExporter) value(t *testing.T, series string) string {
	t.Helper()
	_, metrics := e.get(t, "/metrics?collect[]=leak")
	for line := range strings.Lines(metrics) {
		if value, found := strings.CutPrefix(line, series+" "); found {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("%s is missing in %s", series, metrics)
	return ""
}

// The metrics say whether the last reload succeeded, and when the last one that did.
func TestReloadMetrics(t *testing.T) {
	const success, at = "xdp_audit_config_last_reload_successful", "xdp_audit_config_last_reload_success_timestamp_seconds"
	config := write(t, filepath.Join(t.TempDir(), "leak.yml"), leakFile("1us", "login"))
	e := start(t, "--leak.config.file="+config, "--web.enable-lifecycle")
	started := e.value(t, at)
	if got := e.value(t, success); got != "1" {
		t.Errorf("%s is %s after the start", success, got)
	}
	write(t, config, "assessments: 1\n")
	e.post(t, reloadPath)
	if got, now := e.value(t, success), e.value(t, at); got != "0" || now != started {
		t.Errorf("%s is %s at %s, want 0 at %s", success, got, now, started)
	}
	write(t, config, leakFile("1us", "login"))
	e.post(t, reloadPath)
	if got, now := e.value(t, success), e.value(t, at); got != "1" || now == started {
		t.Errorf("%s is %s at %s, want 1 later than %s", success, got, now, started)
	}
}

// Requests that the kernel has excluded without space for their record are exported too, so that
// the counts add up. Those with a record are counted once, before and after the judge has it.
func TestExcludedWithoutRecord(t *testing.T) {
	const n, spoilt = 40, 7
	config := write(t, filepath.Join(t.TempDir(), "leak.yml"), leakFile("1us", "login"))
	e := start(t, "--leak.config.file="+config)
	batch := requests("login", monotonicNs(), n)
	for i := range spoilt {
		batch[5*i].Exclusion = bpf.ExclusionEvicted
	}
	e.audit.evicted.Store(spoilt + 30) // 30 have no record
	e.audit.exchanges <- batch
	for _, held := range []uint64{n, 0} { // while they wait for others, and when they are judged
		if s := e.awaitRequests(t, "login", n+30, held); s.Excluded["evicted"] != spoilt+30 {
			t.Errorf("%+v", s)
		}
	}
	if got := e.value(t, `xdp_audit_leak_excluded_total{assessment="login",reason="evicted"}`); got != fmt.Sprint(spoilt+30) {
		t.Errorf("%s are evicted", got)
	}
}

// What is not a configuration ends a reload in one line, whatever is at the path, and the
// assessments from before continue.
func TestBrokenReload(t *testing.T) {
	folder := t.TempDir()
	config := filepath.Join(folder, "leak.yml")
	write(t, config, leakFile("1us", "login"))
	e := start(t, "--leak.config.file="+config, "--leak.raw-file="+filepath.Join(folder, "raw-{assessment}.csv"), "--web.enable-lifecycle")
	e.audit.exchanges <- requests("login", monotonicNs(), 50)
	e.awaitRequests(t, "login", 50, 0)

	// A reload may name 32 assessments, and not 33.
	many := make([]string, bpf.MaxAssessments)
	for i := range many {
		many[i] = fmt.Sprintf("a%d", i)
	}
	many[0] = "login"
	text := func(content string) func() error {
		return func() error { return os.WriteFile(config, []byte(content), 0o600) }
	}
	for _, test := range []struct {
		description string
		put         func() error
		want        string
	}{
		{"nothing", func() error { return nil }, "no such file"},
		{"a directory", func() error { return os.Mkdir(config, 0o700) }, "directory"},
		{"a pipe", func() error { return unix.Mkfifo(config, 0o600) }, "named pipe"},
		{"a device", func() error { return os.Symlink("/dev/zero", config) }, "device"},
		{"an empty file", text(""), "empty"},
		{"a huge file", text(strings.Repeat("# 23 bytes of a comment\n", 1<<16)), "larger than"},
		{"zeros", text(strings.Repeat("\x00", 100)), "not YAML"},
		{"control characters", text("assessments: \"\x1b[31m\"\n"), "leak.yml"},
		{"aliases of aliases", text("a: &a [x, x]\nb: &b [*a, *a]\nassessments: [*b, *b]\n"), "leak.yml:1"},
		{"an alias of itself", text("assessments: &a [*a]\n"), "leak.yml"},
		{"deep nesting", text("assessments: " + strings.Repeat("[", 100_000)), "leak.yml"},
		{"33 assessments", text(leakFile("1us", append(many, "one_more")...)), "33 assessments exceed the maximum of 32"},
		{"a device that is not audited", text(strings.Replace(leakFile("1us", "login"), "{name", "{device: eth1, name", 1)), "eth1 is not audited"},
		{"a raw file that is a directory", func() error {
			return errors.Join(os.MkdirAll(filepath.Join(folder, "raw-b.csv"), 0o700), text(leakFile("1us", "login", "b"))())
		}, "is a directory"},
	} {
		if err := errors.Join(os.RemoveAll(config), test.put()); err != nil {
			t.Fatal(err)
		}
		code, body := e.post(t, reloadPath)
		if code != http.StatusInternalServerError || !strings.Contains(body, test.want) || strings.Count(body, "\n") != 1 || strings.Contains(body, "\x1b") {
			t.Errorf("%s: status %d, %.300q, want %q in one line", test.description, code, body, test.want)
		}
		if s := e.awaitRequests(t, "login", 50, 0); s.Name != "login" {
			t.Errorf("%s: %+v", test.description, s)
		}
	}
	e.audit.exchanges <- requests("login", monotonicNs(), 10)
	e.awaitRequests(t, "login", 60, 0)

	write(t, config, leakFile("1us", many...))
	if code, body := e.post(t, reloadPath); code != http.StatusOK {
		t.Errorf("32 assessments: status %d, %s", code, body)
	}
	if states := e.leakStates(t); len(states) != len(many) || states[0].Requests != 60 {
		t.Errorf("%d assessments, of which login has %+v", len(states), states[0])
	}
}

// Reloads without end, while requests come, lose nothing of an assessment that stays, and do not
// fill the log.
func TestReloadStorm(t *testing.T) {
	const clients, reloads, batches, each = 20, 30, 200, 50
	folder := t.TempDir()
	config := write(t, filepath.Join(folder, "leak.yml"), leakFile("1us", "login"))
	e := start(t, "--leak.config.file="+config, "--leak.raw-file="+filepath.Join(folder, "raw-{assessment}.csv"), "--web.enable-lifecycle")
	var group sync.WaitGroup
	for client := range clients {
		group.Go(func() {
			for i := range reloads {
				// A file that is written while it is read may be cut: then the reload fails.
				switch (client + i) % 4 {
				case 0:
					_ = os.WriteFile(config, []byte(leakFile("1us", "login", "search")), 0o600)
				case 1:
					_ = os.WriteFile(config, []byte(strings.Replace(leakFile("1us", "login", "search"), "444", "555", 1)), 0o600)
				case 2:
					_ = os.WriteFile(config, []byte("nonsense"), 0o600)
				}
				response, err := http.Post("http://"+e.address+reloadPath, "", nil)
				if err != nil {
					t.Error(err)
					return
				}
				response.Body.Close()
			}
		})
	}
	for range batches {
		e.audit.exchanges <- requests("login", monotonicNs(), each)
	}
	group.Wait()
	e.awaitRequests(t, "login", batches*each, 0)
	e.stop()
	if err := e.end(t); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(folder, "raw-login.csv"))
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(raw), "\n") - 1; lines != batches*each {
		t.Errorf("the raw file has %d responses, want %d", lines, batches*each)
	}
	if lines := strings.Count(e.all.String(), "level=ERROR"); lines > 100 {
		t.Errorf("%d errors are logged", lines)
	}
}

// A raw file that nobody reads costs its lines. It holds up neither requests, scrapes, rotations
// nor reloads.
func TestStuckRawFile(t *testing.T) {
	const batches, each = 40, 2000
	folder := t.TempDir()
	config := write(t, filepath.Join(folder, "leak.yml"), leakFile("1us", "login"))
	pipe := filepath.Join(folder, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(pipe, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	e := start(t, "--leak.config.file="+config, "--leak.raw-file="+pipe, "--web.enable-lifecycle")
	for range batches {
		e.audit.exchanges <- requests("login", monotonicNs(), each)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	e.log.await(t, "Raw files reopened")
	if code, body := e.post(t, reloadPath); code != http.StatusOK {
		t.Errorf("status %d: %s", code, body)
	}
	e.awaitRequests(t, "login", batches*each, 0)
	// The last lines wait for the reader after their requests have been judged.
	e.poll(t, func() error {
		var lines, lost int
		for series, value := range map[string]*int{"xdp_audit_leak_raw_lines_total": &lines, "xdp_audit_leak_raw_write_errors_total": &lost} {
			var n float64
			if _, err := fmt.Sscan(e.value(t, series), &n); err != nil {
				return err
			}
			*value = int(n)
		}
		// One line may be cut.
		if lines == 0 || lost == 0 || lines+lost > batches*each || lines+lost < batches*each-1 {
			return fmt.Errorf("%d lines and %d lost of %d responses", lines, lost, batches*each)
		}
		return nil
	})
}

// A reload that waits for its file delays no scrape.
func TestScrapesDuringReload(t *testing.T) {
	o := options{leakFile: write(t, filepath.Join(t.TempDir(), "leak.yml"), leakFile("1us", "login"))}
	o.audit.Devices = []string{"eth0"}
	if err := o.readLeak(); err != nil {
		t.Fatal(err)
	}
	l, err := o.openLeak(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.begin(newFakeAudit()); err != nil {
		t.Fatal(err)
	}
	l.reloading.Lock() // as while the file is read
	defer l.reloading.Unlock()
	answered := make(chan int)
	go func() { answered <- len(l.Snapshot()) }()
	select {
	case n := <-answered:
		if n != 1 {
			t.Errorf("%d assessments", n)
		}
	case <-time.After(patience):
		t.Fatal("a scrape waits for the reload")
	}
}

// The page and the reload have the users of the metrics, and the limits of scrapes.
func TestLeakPageHasUsers(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("right"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	e := start(t, "--web.config.file="+write(t, filepath.Join(folder, "web.yml"), fmt.Sprintf("basic_auth_users:\n  user: %s\n", hash)),
		"--leak.config.file="+write(t, filepath.Join(folder, "leak.yml"), leakFile("1us", "login")), "--web.enable-lifecycle")
	for _, test := range []struct {
		method, path, password string
		want                   int
	}{
		{http.MethodGet, leakPath, "", http.StatusUnauthorized},
		{http.MethodGet, leakPath, "wrong", http.StatusUnauthorized},
		{http.MethodGet, leakPath, "right", http.StatusOK},
		{http.MethodHead, leakPath, "", http.StatusUnauthorized},
		{http.MethodPost, leakPath, "right", http.StatusMethodNotAllowed},
		{http.MethodPost, reloadPath, "", http.StatusUnauthorized},
		{http.MethodPost, reloadPath, "wrong", http.StatusUnauthorized},
		{http.MethodPost, reloadPath, "right", http.StatusOK},
	} {
		request, err := http.NewRequestWithContext(t.Context(), test.method, "http://"+e.address+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if test.password != "" {
			request.SetBasicAuth("user", test.password)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != test.want || test.want != http.StatusOK && strings.Contains(string(body), "login") {
			t.Errorf("%s %s with the password %q: status %d, %v, %s, want %d", test.method, test.path, test.password, response.StatusCode, err, body, test.want)
		}
	}
}

// Many clients of the page cost one page at a time, of bounded size, and no requests are lost.
func TestManyClientsOfThePage(t *testing.T) {
	const clients, each, batch = 10, 5, 1000
	names := make([]string, bpf.MaxAssessments)
	for i := range names {
		names[i] = fmt.Sprintf("assessment_%d", i)
	}
	e := start(t, "--leak.config.file="+write(t, filepath.Join(t.TempDir(), "leak.yml"), leakFile("1us", names...)))
	var group sync.WaitGroup
	for range clients {
		group.Go(func() {
			for range each {
				if _, err := fetch(t.Context(), "http://"+e.address+leakPath); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for _, name := range names {
		e.audit.exchanges <- requests(name, monotonicNs(), batch)
	}
	group.Wait()
	for _, name := range names {
		e.awaitRequests(t, name, batch, 0)
	}
	body, err := fetch(t.Context(), "http://"+e.address+leakPath)
	if err != nil {
		t.Fatal(err)
	}
	if bytes := len(body); bytes > 1<<20 {
		t.Errorf("the page has %d bytes", bytes)
	} else {
		t.Logf("the page of %d assessments has %d bytes", len(names), bytes)
	}
}

func fetch(ctx context.Context, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", response.StatusCode, body)
	}
	return string(body), err
}
