// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

var madeUpReport = checkReport{
	Version: "1.2.3", Revision: "abc", Errors: []string{"device lo has no native XDP"},
	Exporter: []checkFinding{{"listen address", "ok", ":9400", "metrics can be exposed", ""}},
	Host:     []checkFinding{{"jit", "warning", "off", "programs are interpreted", "sysctl net.core.bpf_jit_enable=1"}},
	Devices: []checkedDevice{
		{Name: "eth0", Ifindex: 2, Mode: "drv", Findings: []checkFinding{{"hook", "ok", "free", "no XDP program is in the way", ""}}},
		{Name: "lo", Ifindex: 1, Error: "device lo has no native XDP", Findings: []checkFinding{}},
		{Name: "eth1", Ifindex: 3, Findings: []checkFinding{}},
	},
}

func TestCheckReportAsText(t *testing.T) {
	const want = `xdp_audit_exporter 1.2.3, revision abc

exporter
  listen address  ok  :9400  metrics can be exposed

host
  jit  warning  off  programs are interpreted. Remedy: sysctl net.core.bpf_jit_enable=1

device eth0
  hook   ok  free      no XDP program is in the way
  audit  ok  mode drv  the device would be audited

device lo
  audit  failure  no  device lo has no native XDP

device eth1
  audit  unknown  not known  the start would end before

result
  the exporter would not start: device lo has no native XDP
`
	var got bytes.Buffer
	if err := madeUpReport.write(t.Context(), &got, false); err != nil || got.String() != want {
		t.Errorf("%v: got\n%swant\n%s", err, &got, want)
	}
}

func TestCheckReportAsJSON(t *testing.T) {
	const want = `{"version":"1.2.3","revision":"abc","would_start":false,"errors":["device lo has no native XDP"],` +
		`"exporter":[{"check":"listen address","state":"ok","found":":9400","meaning":"metrics can be exposed"}],` +
		`"host":[{"check":"jit","state":"warning","found":"off","meaning":"programs are interpreted","remedy":"sysctl net.core.bpf_jit_enable=1"}],` +
		`"devices":[{"name":"eth0","ifindex":2,"mode":"drv","findings":[{"check":"hook","state":"ok","found":"free","meaning":"no XDP program is in the way"}]},` +
		`{"name":"lo","ifindex":1,"error":"device lo has no native XDP","findings":[]},{"name":"eth1","ifindex":3,"findings":[]}]}` + "\n"
	var got bytes.Buffer
	if err := madeUpReport.write(t.Context(), &got, true); err != nil || got.String() != want {
		t.Errorf("%v: got\n%swant\n%s", err, &got, want)
	}
}

// A check ends although its reader does not read. A reader that has ended is an error.
func TestCheckReportWithoutReader(t *testing.T) {
	reader, writer := io.Pipe()
	defer reader.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := madeUpReport.write(ctx, writer, false); !errors.Is(err, context.Canceled) {
		t.Errorf("a reader that does not read: %v", err)
	}
	reader.Close()
	if err := madeUpReport.write(t.Context(), writer, true); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a reader that has ended: %v", err)
	}
}

// A check goes on after a failure, and reports all.
func TestCheckReportsAllFailures(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	var report bytes.Buffer
	err = run(t.Context(), []string{
		"--check", "--audit.device=absent0", "--audit.threshold=1", "--trail.file=/nonexistent/trail", "--web.config.file=/nonexistent.yml",
		"--web.listen-address=" + taken.Addr().String(), "--log.format=json",
	}, &report, io.Discard, mustNotOpen(t), dropNothing)
	expectError(t, err, "--check", "--audit.threshold", "--trail.file", "--web.config.file", "--web.listen-address")
	var r checkReport
	if err := json.Unmarshal(report.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Errors) != 4 || r.WouldStart || len(r.Devices) != 1 || !strings.Contains(r.Devices[0].Error, "absent0") {
		t.Errorf("got %+v", r)
	}
	for _, f := range r.Exporter {
		if f.State != string(bpf.FindingFailure) {
			t.Errorf("got %+v", f)
		}
	}
}

// A check creates, changes and removes no file.
func TestCheckLeavesFiles(t *testing.T) {
	folder := t.TempDir()
	in := func(name string) string { return filepath.Join(folder, name) }
	leftover := write(t, in(".base.json.tmp"), "a process was killed here")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: in("stale"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	_ = run(t.Context(), []string{
		"--check", "--audit.device=absent0", "--trail.file=" + in("trail"), "--audit.baseline-file=" + in("base.json"),
		"--web.listen-address=unix:" + in("stale"), "--web.listen-address=unix:" + in("new"),
	}, io.Discard, io.Discard, mustNotOpen(t), dropNothing)
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	if want := []string{filepath.Base(leftover), "stale"}; !slices.Equal(names, want) {
		t.Errorf("the files are %v, want %v", names, want)
	}
}

// docs/check.md has every field of the JSON form, and every check.
func TestCheckIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/check.md")
	if err != nil {
		t.Fatal(err)
	}
	var report bytes.Buffer
	_ = run(t.Context(), []string{"--check", "--audit.device=lo", "--bpf.pin-path=/none/pins", "--trail.file=-", "--log.format=json"},
		&report, io.Discard, mustNotOpen(t), dropNothing)
	var r checkReport
	if err := json.Unmarshal(report.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{"privileges": true}
	for _, f := range slices.Concat(r.Exporter, r.Host, r.Devices[0].Findings) {
		names[f.Check] = true
	}
	for _, form := range []any{checkReport{}, checkedDevice{}, checkFinding{}} {
		for field := range reflect.TypeOf(form).Fields() {
			if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); field.IsExported() {
				names[name] = true
			}
		}
	}
	for name := range names {
		if !strings.Contains(string(text), "| `"+name+"` |") {
			t.Errorf("docs/check.md lacks %s", name)
		}
	}
}
