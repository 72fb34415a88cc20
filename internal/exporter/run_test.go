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
		want string
	}{
		{nil, "no device to audit: name at least one with --audit.device or XDP_INTERFACE"},
		{[]string{"--audit.device="}, "no device to audit: name at least one with --audit.device or XDP_INTERFACE"},
		{[]string{"--audit.device= , "}, "no device to audit: name at least one with --audit.device or XDP_INTERFACE"},
		{[]string{"--audit.device=eth0,eth0"}, "device eth0 is named twice"},
		{[]string{"--audit.device=an-interface-of-20"}, `invalid device name "an-interface-of-20": use 1 to 15 characters without spaces or slashes`},
		{[]string{"--audit.device=eth["}, `device "eth[" is not a valid glob: close the bracket`},
		{[]string{device, "--audit.mode=native"}, `mode "native" is not one of drv, hw, skb and auto`},
		{[]string{device, "--audit.threshold=four"}, `--audit.threshold (XDP_AUDIT_THRESHOLD): "four" is not a number, try --help`},
		{[]string{device, "--audit.threshold=NaN"}, "threshold NaN is not between 2 and 1e6: below 2 ordinary traffic is flagged; the usual value is 4"},
		{[]string{device, "--audit.threshold=+Inf"}, "threshold +Inf is not between 2 and 1e6: below 2 ordinary traffic is flagged; the usual value is 4"},
		{[]string{device, "--audit.threshold=1.9"}, "threshold 1.9 is not between 2 and 1e6: below 2 ordinary traffic is flagged; the usual value is 4"},
		{[]string{device, "--audit.min-samples=1"}, "minimum of 1 samples is not between 2 and 16777216"},
		{[]string{device, "--audit.min-samples=-1"}, `--audit.min-samples (XDP_AUDIT_MIN_SAMPLES): "-1" is not a whole number from 0 to 4294967295, try --help`},
		{[]string{device, "--audit.window=99"}, "window of 99 samples is not between the minimum of samples (100) and 16777216"},
		{[]string{device, "--audit.calibrate=often"}, `--audit.calibrate (XDP_AUDIT_CALIBRATE): "often" is not a number, try --help`},
		{[]string{device, "--audit.calibrate=1"}, "calibration 1 is neither 0 (off) nor between 1e-06 and 0.1"},
		{[]string{device, "--audit.baseline=host"}, `baseline "host" is not one of flow and device`},
		{[]string{device, "--audit.domain=log"}, `domain "log" is not one of linear and log2`},
		{[]string{device, "--audit.clock=hw"}, "clock hw is not implemented: use ktime"},
		{[]string{device, "--audit.clock=tsc"}, `clock "tsc" is not one of ktime, hw and metadata`},
		{[]string{device, "--audit.idle-timeout=1"}, `--audit.idle-timeout (XDP_AUDIT_IDLE_TIMEOUT): "1" is not a duration such as 1s or 250ms, try --help`},
		{[]string{device, "--audit.idle-timeout=3s"}, "idle timeout 3s is not between 1ns and 2.147483648s, the longest inter-arrival time that can be scored"},
		{[]string{device, "--audit.flows=many"}, `--audit.flows (XDP_AUDIT_FLOWS): "many" is not a whole number from 0 to 4294967295, try --help`},
		{[]string{device, "--audit.flows=1e6"}, `--audit.flows (XDP_AUDIT_FLOWS): "1e6" is not a whole number from 0 to 4294967295, try --help`},
		{[]string{device, "--audit.flows=7"}, "flow table of 7 slots is not between 8 and 67108864"},
		{[]string{device, "--audit.event-rate=2000000000"}, "event rate 2000000000 exceeds 1000000000 per second"},
		{[]string{device, "--audit.colour=red"}, "unknown long flag '--audit.colour', try --help"},
		{[]string{device, "--collector.cpu"}, "unknown long flag '--collector.cpu', try --help"},
		{[]string{device, "eth1"}, "unexpected eth1, try --help"},
		{[]string{device, "--web.max-requests=-1"}, `--web.max-requests: "-1" is not a whole number from 0 to 4294967295, try --help`},
		{[]string{device, "--web.telemetry-path=metrics"}, `--web.telemetry-path: "metrics" is not a plain path such as /metrics`},
		{[]string{device, "--web.telemetry-path=/{x"}, `--web.telemetry-path: "/{x" is not a plain path such as /metrics`},
		{[]string{device, "--web.telemetry-path=/-/healthy"}, `--web.telemetry-path: "/-/healthy" is not a plain path such as /metrics`},
		{[]string{device, "--web.config.file=" + noFile}, "--web.config.file: " + noFile + ": open " + noFile + ": no such file or directory"},
		{[]string{device, "--web.config.file=" + unknownKey}, "--web.config.file: " + unknownKey + ": yaml: unmarshal errors: line 1: field tls_config not found in type web.Config"},
		{[]string{device, "--web.config.file=" + noKey}, "--web.config.file: " + noKey + ": missing one of key or key_file"},
		{[]string{device, "--web.listen-address=" + taken.Addr().String()}, "--web.listen-address: listen tcp " + taken.Addr().String() + ": bind: address already in use"},
		{[]string{device, "--web.listen-address=9400"}, "--web.listen-address: listen tcp: address 9400: missing port in address"},
		{[]string{device, "--web.listen-address=vsock://:x"}, "--web.listen-address: vsock://:x has no port; use an address such as vsock://:9400"},
		{[]string{device, "--web.systemd-socket"}, "--web.systemd-socket: systemd passed no socket; start the exporter from a socket unit"},
		{[]string{device, "--trail.file=" + dir}, "--trail.file: cannot open the audit trail: open " + dir + ": is a directory"},
		{[]string{device, "--log.level=loud"}, "unrecognized log level loud, try --help"},
	}
	for _, test := range tests {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			args := append([]string{"--web.listen-address=127.0.0.1:0"}, test.args...)
			err := run(context.Background(), args, &stdout, &stderr, mustNotOpen(t), dropNothing)
			if err == nil || OneLine(err) != test.want {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
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
	open := func(bpf.Config, *slog.Logger) (audit, error) { return nil, failure }
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
	e.log.await(t, `msg="Audit trail reopened"`)
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
		symbols.DeltasNs = append(symbols.DeltasNs, 1_000_000*uint32(1+i*i%3))
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
	if n := bytes.Count(content, []byte("covert=symbols,phase")); n != 1 {
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
	e.log.await(t, `msg="Audit trail records are lost" err="cannot write to the audit trail: write /dev/full: no space left on device"`)
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
