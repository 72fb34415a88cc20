// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
	"github.com/xdp-audit/xdp_audit_exporter/internal/privilege"
)

// leakFile returns the text of a configuration with assessments of these names.
func leakFile(target string, names ...string) string {
	text := "assessments:\n"
	for i, name := range names {
		text += fmt.Sprintf("- {name: %s, protocol: tcp, port: %d, target: %s, classes: {fixed: {dscp: 8}, random: {dscp: 16}}}\n", name, 443+i, target)
	}
	return text
}

func TestLeakFlags(t *testing.T) {
	folder := t.TempDir()
	at := func(name string) string { return filepath.Join(folder, name) }
	config := "--leak.config.file=" + write(t, at("leak.yml"), leakFile("1us", "login"))
	two := "--leak.config.file=" + write(t, at("two.yml"), leakFile("1us", "login", "search"))
	elsewhere := "--leak.config.file=" + write(t, at("device.yml"), strings.Replace(leakFile("1us", "login"), "{name", "{device: eth1, name", 1))
	for _, test := range []struct {
		description string
		args        []string
		want        []string
	}{
		{"no file", []string{"--leak.config.file=" + at("none.yml")}, []string{"--leak.config.file", "none.yml", "no such file"}},
		{"an unknown key", []string{"--leak.config.file=" + write(t, at("key.yml"), "assessments: []\nport: 443\n")}, []string{"--leak.config.file", "key.yml:2", `"port"`}},
		{"another device", []string{elsewhere}, []string{"device.yml", "login", "eth1 is not audited", "--audit.device"}},
		{"a raw file alone", []string{"--leak.raw-file=" + at("raw.csv")}, []string{"--leak.raw-file", "--leak.config.file"}},
		{"a raw file of two", []string{two, "--leak.raw-file=" + at("raw.csv")}, []string{"--leak.raw-file", "2 assessments", "{assessment}"}},
		{"a raw file in no directory", []string{config, "--leak.raw-file=" + at("none/raw.csv")}, []string{"--leak.raw-file", "no such file"}},
		{"a directory of each assessment", []string{config, "--leak.raw-file=" + at("{assessment}/raw.csv")}, []string{"--leak.raw-file", "directory"}},
		{"standard output twice", []string{config, "--leak.raw-file=-", "--trail.file=-"}, []string{"--leak.raw-file", "--trail.file", "standard output"}},
		{"another format", []string{config, "--leak.raw-format=xml"}, []string{"--leak.raw-format", `"xml"`, "csv or tlsfuzzer"}},
		{"the configuration as raw file", []string{config, "--leak.raw-file=" + at("leak.yml")}, []string{"--leak.raw-file", "the file of --leak.config.file", "another"}},
		{"the trail as raw file", []string{config, "--leak.raw-file=" + at("new"), "--trail.file=" + at("./new")}, []string{"--leak.raw-file", "the file of --trail.file"}},
		{"another clock", []string{config, "--audit.clock=metadata"}, []string{"--leak.config.file", "metadata", "--audit.clock=ktime"}},
		{"few connections", []string{config, "--leak.connections=4"}, []string{"--leak.connections", "between 8 and"}},
		{"no connections", []string{config, "--leak.connections=0"}, []string{"--leak.connections", "at least 8"}},
		{"the path of the metrics", []string{config, "--web.telemetry-path=/leak.json"}, []string{"--web.telemetry-path", "/leak.json"}},
	} {
		t.Run(test.description, func(t *testing.T) {
			args := append([]string{"--audit.device=eth0", "--web.listen-address=127.0.0.1:0"}, test.args...)
			expectError(t, run(t.Context(), args, io.Discard, io.Discard, mustNotOpen(t), dropNothing), test.want...)
		})
	}
}

// A check names what a start would end with, and creates no raw file.
func TestLeakCheck(t *testing.T) {
	folder := t.TempDir()
	config := write(t, filepath.Join(folder, "leak.yml"), strings.Replace(leakFile("1us", "login", "search"), "{name", "{device: eth1, name", 1))
	args := []string{"--check", "--audit.device=eth0", "--web.listen-address=127.0.0.1:0", "--leak.config.file=" + config}
	expectError(t, run(t.Context(), args, io.Discard, io.Discard, mustNotOpen(t), dropNothing), "--leak.config.file", "eth1 is not audited")

	o := options{leakFile: write(t, config, leakFile("1us", "login", "search"))}
	for raw, want := range map[string]string{"raw.csv": "2 assessments", "none/{assessment}.csv": "no such file", "{assessment}.csv": ""} {
		o.rawFile = filepath.Join(folder, raw)
		if err := o.readLeak(); err != nil {
			t.Fatal(err)
		}
		if err := o.checkRaw(); want != "" {
			expectError(t, err, "--leak.raw-file", want)
		} else if err != nil {
			t.Error(err)
		}
	}
	if files, err := os.ReadDir(folder); err != nil || len(files) != 1 {
		t.Errorf("the check has left %v: %v", files, err)
	}
}

// A glob may match the device of an assessment later.
func TestDevicesOfAssessments(t *testing.T) {
	config := bpf.Config{Devices: []string{"eth0"}, Globs: []string{"ens*"}}
	for name, want := range map[string]bool{"eth0": true, "ens5": true, "eth1": false, "lo": false} {
		if got := audits(&config, name, nil); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

func TestLeakPrivileges(t *testing.T) {
	folder := t.TempDir()
	config := write(t, filepath.Join(folder, "leak.yml"), leakFile("1us", "login"))
	shared, err := os.CreateTemp("/tmp", "raw-*.csv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(shared.Name()) })
	shared.Close()
	for _, test := range []struct {
		raw  string
		want privilege.Needs
	}{
		{"", privilege.Needs{Read: []string{config}}},
		{"-", privilege.Needs{Read: []string{config}}},
		{filepath.Join(folder, "raw-{assessment}.csv"), privilege.Needs{Read: []string{config}, Create: []string{folder}}},
		{shared.Name(), privilege.Needs{Read: []string{config}, Append: []string{shared.Name()}}},
	} {
		var got privilege.Needs
		drop := func(needs privilege.Needs, _ *slog.Logger) (privilege.Held, error) {
			got = needs
			return privilege.Held{}, errors.New("far enough")
		}
		args := []string{"--audit.device=eth0", "--web.listen-address=127.0.0.1:0", "--leak.config.file=" + config, "--leak.raw-file=" + test.raw}
		expectError(t, run(t.Context(), args, io.Discard, io.Discard, openFake, drop), "far enough")
		if !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: got %+v, want %+v", test.raw, got, test.want)
		}
	}
}

// requests returns n requests of an assessment, of which those of the class random take 5 µs
// longer.
func requests(name string, from uint64, n int) (batch []bpf.Exchange) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		x := bpf.Exchange{Assessment: name, Class: r.IntN(2), Position: uint32(i), HasStart: true}
		x.ResponseNs = 5_000 * uint64(1+x.Class)
		x.TimeNs = from + 20_000*uint64(i) + x.ResponseNs
		batch = append(batch, x)
	}
	return batch
}

// seenState is an assessment in leakPath.
type seenState struct {
	Name           string
	Requests, Held uint64
	Excluded       map[string]uint64
	Report         struct {
		Sentence string
		Classes  [2]struct{ Responses uint64 }
	}
}

// leakStates returns the assessments in leakPath.
func (e *runningExporter) leakStates(t *testing.T) []seenState {
	t.Helper()
	code, body := e.get(t, leakPath)
	var page struct{ Assessments []seenState }
	if err := json.Unmarshal([]byte(body), &page); code != http.StatusOK || err != nil {
		t.Fatalf("status %d, %v: %s", code, err, body)
	}
	return page.Assessments
}

// awaitRequests waits until an assessment has got that many requests, of which so many wait for
// others at most.
func (e *runningExporter) awaitRequests(t *testing.T, name string, want, held uint64) (found seenState) {
	t.Helper()
	e.poll(t, func() error {
		states := e.leakStates(t)
		for _, s := range states {
			if found = s; s.Name == name && s.Requests == want && s.Held <= held {
				return nil
			}
		}
		return fmt.Errorf("want %d requests of %s: %+v", want, name, states)
	})
	return found
}

func (e *runningExporter) poll(t *testing.T, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := netlab.Poll(ctx, f); err != nil {
		t.Fatal(err)
	}
}

// post sends a POST and returns the status and the body.
func (e *runningExporter) post(t *testing.T, path string) (int, string) {
	t.Helper()
	response, err := http.Post("http://"+e.address+path, "text/plain", nil)
	return statusAndBody(t, response, err)
}

// Requests reach their judge, the metrics, the page and the raw file, and a reload keeps what did
// not change.
func TestLeakAssessments(t *testing.T) {
	const n = 400
	folder := t.TempDir()
	config := write(t, filepath.Join(folder, "leak.yml"), leakFile("1us", "login"))
	raw := filepath.Join(folder, "raw-{assessment}.csv")
	e := start(t, "--leak.config.file="+config, "--leak.raw-file="+raw, "--web.enable-lifecycle")
	if got := *e.audit.assessments.Load(); len(got) != 1 || got[0].Name != "login" || got[0].Port != 443 {
		t.Fatalf("%+v is measured", got)
	}
	e.audit.ringFull.Store(5)
	e.audit.exchanges <- requests("login", monotonicNs(), n)
	s := e.awaitRequests(t, "login", n+5, 0)
	if got := s.Report.Classes[0].Responses + s.Report.Classes[1].Responses; got != n || s.Excluded["ring_full"] != 5 {
		t.Errorf("%d responses and %v, want %d and 5 without space", got, s.Excluded, n)
	}
	if !strings.Contains(s.Report.Sentence, "Responses to `fixed` are 5.0") {
		t.Errorf("the sentence is %q", s.Report.Sentence)
	}
	_, metrics := e.get(t, "/metrics?collect[]=leak")
	for _, line := range []string{
		`xdp_audit_leak_verdict{assessment="login",verdict="leak"} 1`, `xdp_audit_leak_excluded_total{assessment="login",reason="ring_full"} 5`,
		`xdp_audit_leak_effect_seconds{assessment="login"} 5.0`,
	} {
		if !strings.Contains(metrics, line) {
			t.Errorf("%s is missing in %s", line, metrics)
		}
	}

	// Another assessment is added. The first one continues.
	write(t, config, leakFile("1us", "login", "search"))
	if code, body := e.post(t, reloadPath); code != http.StatusOK || body != "OK\n" {
		t.Fatalf("status %d: %s", code, body)
	}
	e.awaitRequests(t, "login", n+5, 0)
	e.audit.exchanges <- requests("search", monotonicNs(), 10)
	e.awaitRequests(t, "search", 10, 0)

	// With an error everything continues.
	write(t, config, "assessments: 1\n")
	if code, body := e.post(t, reloadPath); code != http.StatusInternalServerError || !strings.Contains(body, "leak.yml:1: ") || strings.Count(body, "\n") != 1 {
		t.Errorf("status %d: %q", code, body)
	}
	e.log.await(t, `Cannot reload .* err=.*leak.yml`)
	e.awaitRequests(t, "search", 10, 10)

	// Another target begins again, also where the kernel counts on. Files that were moved away are
	// no longer written.
	first := filepath.Join(folder, "raw-login.csv")
	if err := os.Rename(first, first+".1"); err != nil {
		t.Fatal(err)
	}
	write(t, config, leakFile("2us", "login"))
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	e.log.await(t, `begins again.* assessment=login because="target is 2µs and was 1µs"`)
	if s := e.awaitRequests(t, "login", 0, 0); s.Excluded["ring_full"] != 0 {
		t.Errorf("a new judge has %v", s.Excluded)
	}
	e.audit.ringFull.Store(7)
	e.audit.exchanges <- requests("login", monotonicNs(), 20)
	e.awaitRequests(t, "login", 22, 20)
	e.audit.exchanges <- requests("login", monotonicNs(), 3) // held at the end
	e.stop()
	if err := e.end(t); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"raw-login.csv.1": n, "raw-login.csv": 23, "raw-search.csv": 10} {
		content, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			t.Fatal(err)
		}
		if lines := bytes.Count(content, []byte("\n")) - 1; lines != want || !bytes.HasPrefix(content, []byte("V1,V2\n")) {
			t.Errorf("%s has %d responses, want %d", name, lines, want)
		}
	}
}

// Reloading by HTTP has to be enabled, and takes POST only.
func TestReloadPath(t *testing.T) {
	for _, test := range []struct {
		args          []string
		get, post     int
		postToMetrics int
	}{
		{nil, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusMethodNotAllowed},
		{[]string{"--web.enable-lifecycle"}, http.StatusMethodNotAllowed, http.StatusOK, http.StatusMethodNotAllowed},
	} {
		e := start(t, test.args...)
		if code, _ := e.get(t, reloadPath); code != test.get {
			t.Errorf("%q: GET has the status %d, want %d", test.args, code, test.get)
		}
		if code, _ := e.post(t, reloadPath); code != test.post {
			t.Errorf("%q: POST has the status %d, want %d", test.args, code, test.post)
		}
		if code, _ := e.post(t, "/metrics"); code != test.postToMetrics {
			t.Errorf("%q: POST to the metrics has the status %d, want %d", test.args, code, test.postToMetrics)
		}
		if code, _ := e.get(t, leakPath); code != http.StatusNotFound {
			t.Errorf("%q: %s has the status %d without assessments", test.args, leakPath, code)
		}
	}
}

// Lost lines are logged once, and the assessment continues.
func TestFullRawFile(t *testing.T) {
	config := write(t, filepath.Join(t.TempDir(), "leak.yml"), leakFile("1us", "login"))
	e := start(t, "--leak.config.file="+config, "--leak.raw-file=/dev/full")
	e.audit.exchanges <- requests("login", monotonicNs(), 50)
	e.log.await(t, `Raw response times are lost`)
	e.awaitRequests(t, "login", 50, 0)
}
