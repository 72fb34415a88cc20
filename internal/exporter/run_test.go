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
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/collector"
	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// An invalid flag or file is a one-line error before an audit is opened.
func TestBadInput(t *testing.T) {
	dir := t.TempDir()
	unknownKey := write(t, filepath.Join(dir, "unknown.yml"), "tls_config: {}\n")
	noKey := write(t, filepath.Join(dir, "nokey.yml"), "tls_server_config:\n  cert_file: missing.pem\n")
	noFile := filepath.Join(dir, "missing.yml")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()

	const device = "--audit.device=eth0"
	tests := []struct {
		args []string
		want []string // phrases: the flag or its subject, the value, and the remedy or the limits
	}{
		{[]string{"--audit.device="}, []string{"no device", "--audit.device", "XDP_INTERFACE", "default route"}},
		{[]string{"--audit.device= , "}, []string{"no device", "--audit.device", "XDP_INTERFACE", "default route"}},
		{[]string{"--audit.device=eth0,eth0"}, []string{"--audit.device (XDP_INTERFACE): ", "eth0", "twice"}},
		{[]string{"--audit.device=" + strings.Repeat("a", 128)}, []string{"--audit.device (XDP_INTERFACE): ", `aaa"`, "1 to 127 bytes"}},
		{[]string{"--audit.device=a%2fb"}, []string{"--audit.device (XDP_INTERFACE): ", `"a%2fb"`, "slashes"}},
		{[]string{"--audit.device=100%"}, []string{"--audit.device (XDP_INTERFACE): ", `"100%"`, "%25"}},
		{[]string{"--audit.device=eth["}, []string{"--audit.device (XDP_INTERFACE): ", `"eth["`, "glob", "bracket"}},
		{[]string{device, "--audit.max-devices=0"}, []string{"--audit.max-devices (XDP_AUDIT_MAX_DEVICES): ", "maximum number of devices 0", "between 1 and 4096"}},
		{[]string{device, "--audit.mode=native"}, []string{"--audit.mode (XDP_MODE): ", `mode "native"`, "drv, hw, skb and auto"}},
		{[]string{device, "--audit.threshold=four"}, []string{"--audit.threshold (XDP_AUDIT_THRESHOLD)", `"four"`, "number", "--help"}},
		{[]string{device, "--audit.threshold=NaN"}, []string{"--audit.threshold (XDP_AUDIT_THRESHOLD): ", "threshold NaN", "between 2 and 1e6"}},
		{[]string{device, "--audit.threshold=+Inf"}, []string{"--audit.threshold (XDP_AUDIT_THRESHOLD): ", "threshold +Inf", "between 2 and 1e6"}},
		{[]string{device, "--audit.threshold=1.9"}, []string{"--audit.threshold (XDP_AUDIT_THRESHOLD): ", "threshold 1.9", "between 2 and 1e6", "4"}},
		{[]string{device, "--audit.min-samples=1"}, []string{"--audit.min-samples (XDP_AUDIT_MIN_SAMPLES): ", "1 samples", "between 2 and 16777216"}},
		{[]string{device, "--audit.min-samples=-1"}, []string{"--audit.min-samples (XDP_AUDIT_MIN_SAMPLES)", `"-1"`, "0 to 4294967295", "--help"}},
		{[]string{device, "--audit.window=99"}, []string{"--audit.window (XDP_AUDIT_WINDOW): ", "window of 99", "(100)", "16777216"}},
		{[]string{device, "--audit.calibrate=often"}, []string{"--audit.calibrate (XDP_AUDIT_CALIBRATE)", `"often"`, "number", "--help"}},
		{[]string{device, "--audit.calibrate=1"}, []string{"--audit.calibrate (XDP_AUDIT_CALIBRATE): ", "calibration 1 ", "between 1e-06 and 0.1"}},
		{[]string{device, "--audit.baseline=host"}, []string{"--audit.baseline (XDP_AUDIT_BASELINE): ", `baseline "host"`, "flow and device"}},
		{[]string{device, "--audit.domain=log"}, []string{"--audit.domain (XDP_AUDIT_DOMAIN): ", `domain "log"`, "linear and log2"}},
		{[]string{device, "--audit.clock=hw"}, []string{"--audit.clock (XDP_AUDIT_CLOCK): ", "clock hw", "use ktime"}},
		{[]string{device, "--audit.clock=tsc"}, []string{"--audit.clock (XDP_AUDIT_CLOCK): ", `clock "tsc"`, "ktime, hw and metadata"}},
		{[]string{device, "--audit.idle-timeout=1"}, []string{"--audit.idle-timeout (XDP_AUDIT_IDLE_TIMEOUT)", `"1"`, "1s or 250us", "--help"}},
		{[]string{device, "--audit.idle-timeout=3s"}, []string{"--audit.idle-timeout (XDP_AUDIT_IDLE_TIMEOUT): ", "idle timeout 3s", "between 1ns and 2.147483648s"}},
		{[]string{device, "--audit.flows=many"}, []string{"--audit.flows (XDP_AUDIT_FLOWS)", `"many"`, "0 to 4294967295", "--help"}},
		{[]string{device, "--audit.flows=1e6"}, []string{"--audit.flows (XDP_AUDIT_FLOWS)", `"1e6"`, "0 to 4294967295", "--help"}},
		{[]string{device, "--audit.flows=7"}, []string{"--audit.flows (XDP_AUDIT_FLOWS): ", "7 slots", "between 8 and 67108864"}},
		{[]string{device, "--audit.event-rate=2000000000"}, []string{"--audit.event-rate (XDP_AUDIT_EVENT_RATE): ", "event rate 2000000000", "1000000000"}},
		{[]string{device, "--audit.colour=red"}, []string{"--audit.colour", "--help"}},
		{[]string{device, "--collector.cpu"}, []string{"--collector.cpu", "--help"}},
		{[]string{device, "eth1"}, []string{"eth1", "--help"}},
		{[]string{device, "--web.max-requests=-1"}, []string{"--web.max-requests", `"-1"`, "0 to 4294967295", "--help"}},
		{[]string{device, "--web.telemetry-path=metrics"}, []string{"--web.telemetry-path", `"metrics"`, "such as /metrics"}},
		{[]string{device, "--web.telemetry-path=/{x"}, []string{"--web.telemetry-path", `"/{x"`, "such as /metrics"}},
		{[]string{device, "--web.telemetry-path=/-/healthy"}, []string{"--web.telemetry-path", `"/-/healthy"`, "such as /metrics"}},
		{[]string{device, "--web.config.file=" + noFile}, []string{"--web.config.file: " + noFile, "no such file"}},
		{[]string{device, "--web.config.file=" + unknownKey}, []string{"--web.config.file: " + unknownKey, "tls_config not found"}},
		{[]string{device, "--web.config.file=" + noKey}, []string{"--web.config.file: " + noKey, "key_file"}},
		{[]string{device, "--web.listen-address=" + taken.Addr().String()}, []string{"--web.listen-address", taken.Addr().String(), "already in use"}},
		{[]string{device, "--web.listen-address=9400"}, []string{"--web.listen-address", `"9400"`, "use :9400"}},
		{[]string{device, "--web.listen-address=vsock://:x"}, []string{"--web.listen-address", "vsock://:x", "no port", "vsock://:9400"}},
		{[]string{device, "--web.systemd-socket"}, []string{"--web.systemd-socket", "no socket"}},
		{[]string{device, "--trail.file=" + dir}, []string{"--trail.file", "open " + dir, "is a directory"}},
		{[]string{device, "--log.level=loud"}, []string{"--log.level", `"loud"`, "debug, info, warn and error", "--help"}},
	}
	for _, test := range tests {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			args := append([]string{"--web.listen-address=127.0.0.1:0"}, test.args...)
			err := run(context.Background(), args, &stdout, &stderr, mustNotOpen(t), dropNothing)
			expectError(t, err, test.want...)
			if stdout.Len() > 0 || stderr.Len() > 0 {
				t.Errorf("printed %q and %q", &stdout, &stderr)
			}
		})
	}
}

func TestOneLine(t *testing.T) {
	err := fmt.Errorf("yaml:\n  line 1: bad\n  line 2: worse: %w", errors.Join(errors.New("one"), errors.New("two")))
	if got, want := OneLine(err), "yaml: line 1: bad; line 2: worse: one; two"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := OneLine(errors.New("device \x1b[31mred\xff\r")), `device \u001b[31mred\xff\u000d`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestFailureToOpen leaves nothing open.
func TestFailureToOpen(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	failure := errors.New("device eth0 does not exist")
	open := func(context.Context, bpf.Config, *slog.Logger) (audit, error) { return (*fakeAudit)(nil), failure }
	var stderr bytes.Buffer
	err = run(context.Background(), []string{"--audit.device=eth0", "--web.listen-address=" + address}, io.Discard, &stderr, open, dropNothing)
	if !errors.Is(err, failure) || OneLine(err) != failure.Error() {
		t.Errorf("got %v, want %v", err, failure)
	}
	if stderr.Len() > 0 {
		t.Errorf("the log says %q", &stderr)
	}
	again, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatalf("the listener stays open: %v", err)
	}
	again.Close()
}

func TestFailures(t *testing.T) {
	failure := errors.New("reading audit_events: gone")
	e := start(t)
	e.audit.readErr <- failure
	if err := e.end(t); !errors.Is(err, failure) {
		t.Errorf("got %v when events could not be read, want %v", err, failure)
	}
	<-e.audit.closed
	if e.audit.isAbandoned {
		t.Error("an audit that ran is not left to the exporter after this one")
	}

	e = start(t)
	e.audit.closeErr = failure
	e.stop()
	if err := e.end(t); !errors.Is(err, failure) {
		t.Errorf("got %v when the audit could not be closed, want %v", err, failure)
	}
}

// TestTrail rotates the trail by SIGHUP.
func TestTrail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trail")
	e := start(t, "--trail.file="+path)
	event := &bpf.Event{Device: "eth0", Source: netip.MustParseAddrPort("192.0.2.1:1"), Destination: netip.MustParseAddrPort("192.0.2.2:2")}
	e.audit.events <- event
	e.audit.events <- event
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := netlab.Poll(ctx, func() error {
		if content, err := os.ReadFile(path); bytes.Count(content, []byte("\n")) != 2 {
			return fmt.Errorf("not two records: %q (%w)", content, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	e.log.await(t, `reopened`)
	e.audit.events <- event
	e.stop()
	if err := e.end(t); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{path + ".1": 2, path: 1} {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(content, []byte("device=eth0")); n != want {
			t.Errorf("%d records in %s, want %d", n, filepath.Base(name), want)
		}
	}
}

// TestCovertWindows judges windows, and writes the first that alarms to the trail.
func TestCovertWindows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trail")
	e := start(t, "--trail.file="+path, "--collector.covert")
	symbols := &bpf.Window{
		Flow: bpf.Flow{Device: "eth0", Source: netip.MustParseAddrPort("192.0.2.1:1"), Destination: netip.MustParseAddrPort("192.0.2.2:2")},
		Time: time.Now(),
	}
	for i := range collector.CovertWindow {
		symbols.DeltasNs = append(symbols.DeltasNs, 1_000_000*(1+rand.New(rand.NewPCG(1, uint64(i))).Uint32N(2)))
	}
	for range 3 {
		e.audit.windows <- symbols
	}
	e.audit.events <- &bpf.Event{Device: "eth0"}
	e.audit.events <- &bpf.Event{Device: "eth0"}
	code, body := e.get(t, "/metrics?collect[]=covert")
	if code != 200 || !strings.Contains(body, "xdp_audit_covert_score{device=\"eth0\",test=\"symbols\"} ") {
		t.Errorf("status %d: %s", code, body)
	}
	e.stop()
	if err := e.end(t); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const record = `covert=symbols meaning="symbols, as a channel or an application with few delays has"`
	if n := bytes.Count(content, []byte(record)); n != 1 {
		t.Errorf("%d records of windows, want 1:\n%s", n, content)
	}
}

// Lost records are logged once, and the exporter continues.
func TestFullTrail(t *testing.T) {
	e := start(t, "--trail.file=/dev/full")
	event := &bpf.Event{Device: "eth0"}
	for range 4 {
		e.audit.events <- event
	}
	e.log.await(t, `level=ERROR .*lost.*/dev/full: no space left on device`)
	_, body := e.get(t, "/metrics?collect[]=trail")
	if !strings.Contains(body, "xdp_audit_trail_records_total 0\n") || !regexp.MustCompile(`xdp_audit_trail_write_errors_total [34]\n`).MatchString(body) {
		t.Errorf("the records that were lost are not counted: %s", body)
	}
	for len(e.log) > 0 {
		if line := <-e.log; strings.Contains(line, "lost") {
			t.Errorf("it is said again: %s", line)
		}
	}
}

// A signal during the start ends it in order: without an error, and with what is open closed.
func TestRunIsCancelledDuringTheStart(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var log bytes.Buffer
	open := func(ctx context.Context, _ bpf.Config, _ *slog.Logger) (audit, error) {
		cancel()
		return nil, fmt.Errorf("attaching: %w", ctx.Err())
	}
	address := freeAddress(t)
	args := []string{"--audit.device=eth0", "--web.listen-address=" + address}
	if err := run(ctx, args, io.Discard, &log, open, dropNothing); err != nil {
		t.Errorf("got error %v", err)
	}
	if !strings.Contains(log.String(), "before the start is complete") {
		t.Errorf("the log does not say that the start was ended:\n%s", &log)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatalf("the address is still in use: %v", err)
	}
	listener.Close()
}

// A start that fails at its commit is abandoned.
func TestAFailedCommitIsAbandoned(t *testing.T) {
	fake := newFakeAudit()
	fake.commitErr = errors.New("no pins")
	open := func(context.Context, bpf.Config, *slog.Logger) (audit, error) { return fake, nil }
	args := []string{"--audit.device=eth0", "--web.listen-address=" + freeAddress(t)}
	expectError(t, run(t.Context(), args, io.Discard, io.Discard, open, dropNothing), "no pins")
	if !fake.isAbandoned {
		t.Error("the audit was not abandoned")
	}
}
