// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/collector"
	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
	"github.com/xdp-audit/xdp_audit_exporter/internal/privilege"
)

// TestMain is the exporter itself in the processes that TestExit starts.
func TestMain(m *testing.M) {
	if os.Getenv("XDP_AUDIT_TEST_MAIN") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// fakeAudit is an audit of nothing, whose events and windows come from channels.
type fakeAudit struct {
	events   chan *bpf.Event
	windows  chan *bpf.Window
	readErr  chan error
	closed   chan struct{}
	closeErr error

	isAbandoned bool   // when it is closed
	scrape      func() // called by every scrape
	learnt      map[string]bpf.Learnt
}

func newFakeAudit() *fakeAudit {
	return &fakeAudit{events: make(chan *bpf.Event), windows: make(chan *bpf.Window), readErr: make(chan error, 1), closed: make(chan struct{}), scrape: func() {}}
}

func (f *fakeAudit) Counters() []bpf.Counters {
	f.scrape()
	return []bpf.Counters{{Device: "eth0"}}
}

func (f *fakeAudit) Hooks() []bpf.Hook             { return []bpf.Hook{{Device: "eth0", Up: true, Mode: "drv"}} }
func (f *fakeAudit) Runs() ([]bpf.Runs, error)     { return nil, nil }
func (f *fakeAudit) Slots() int                    { return 8 }
func (f *fakeAudit) DeviceSlots() bpf.DeviceSlots  { return bpf.DeviceSlots{} }
func (f *fakeAudit) Learnt() map[string]bpf.Learnt { return f.learnt }
func (f *fakeAudit) EventCounts() bpf.EventCounts  { return bpf.EventCounts{} }

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

func (f *fakeAudit) Follow(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

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
	return func(bpf.Config, *slog.Logger) (audit, error) {
		t.Error("an audit was opened")
		return nil, errors.New("opened")
	}
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
	default: // nobody needs so many
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

// exporter is an exporter that runs in this process.
type exporter struct {
	audit   *fakeAudit
	log     logLines
	address string
	stop    context.CancelFunc
	ended   chan struct{}
	err     error // what run returned, once it ended
}

// start runs the exporter on a free port until the test ends.
func start(t *testing.T, args ...string) *exporter {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	e := &exporter{audit: newFakeAudit(), log: make(logLines, 1000), stop: cancel, ended: make(chan struct{})}
	args = append([]string{"--audit.device=eth0", "--web.listen-address=127.0.0.1:0"}, args...)
	open := func(bpf.Config, *slog.Logger) (audit, error) { return e.audit, nil }
	go func() {
		defer close(e.ended)
		e.err = run(ctx, args, io.Discard, e.log, open, dropNothing)
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
	return e
}

// end returns what run returned.
func (e *exporter) end(t *testing.T) error {
	t.Helper()
	select {
	case <-e.ended:
	case <-time.After(patience):
		t.Fatal("the exporter does not end")
	}
	return e.err
}

// get returns the status and the body of a page.
func (e *exporter) get(t *testing.T, path string) (int, string) {
	t.Helper()
	response, err := http.Get("http://" + e.address + path)
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

// TestBadInput has one line for whatever is wrong, before an audit is opened.
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
		{[]string{"--audit.device=an-interface-of-20"}, `device "an-interface-of-20" is no name of a network device: 1 to 15 characters without space or slash`},
		{[]string{"--audit.device=eth["}, `device "eth[" is no valid glob: a bracket needs its end`},
		{[]string{device, "--audit.mode=native"}, `mode "native" is not one of drv, hw, skb and auto`},
		{[]string{device, "--audit.threshold=four"}, `--audit.threshold (XDP_AUDIT_THRESHOLD): "four" is not a number, try --help`},
		{[]string{device, "--audit.threshold=NaN"}, "threshold NaN is not between 2 and 1e6: below 2 ordinary traffic is flagged; 4 is the usual mark"},
		{[]string{device, "--audit.threshold=+Inf"}, "threshold +Inf is not between 2 and 1e6: below 2 ordinary traffic is flagged; 4 is the usual mark"},
		{[]string{device, "--audit.threshold=1.9"}, "threshold 1.9 is not between 2 and 1e6: below 2 ordinary traffic is flagged; 4 is the usual mark"},
		{[]string{device, "--audit.min-samples=1"}, "minimum of 1 samples is not between 2 and 16777216"},
		{[]string{device, "--audit.min-samples=-1"}, `--audit.min-samples (XDP_AUDIT_MIN_SAMPLES): "-1" is not a whole number from 0 to 4294967295, try --help`},
		{[]string{device, "--audit.window=99"}, "window of 99 samples is not between the minimum of samples (100) and 16777216"},
		{[]string{device, "--audit.calibrate=often"}, `--audit.calibrate (XDP_AUDIT_CALIBRATE): "often" is not a number, try --help`},
		{[]string{device, "--audit.calibrate=1"}, "calibration 1 is neither 0 (off) nor between 1e-06 and 0.1"},
		{[]string{device, "--audit.baseline=host"}, `baseline "host" is not one of flow and device`},
		{[]string{device, "--audit.domain=log"}, `domain "log" is not one of linear and log2`},
		{[]string{device, "--audit.clock=hw"}, "clock hw is not built yet: use ktime"},
		{[]string{device, "--audit.clock=tsc"}, `clock "tsc" is not one of ktime, hw and metadata`},
		{[]string{device, "--audit.idle-timeout=1"}, `--audit.idle-timeout (XDP_AUDIT_IDLE_TIMEOUT): "1" is not a duration such as 1s or 250ms, try --help`},
		{[]string{device, "--audit.idle-timeout=3s"}, "idle timeout 3s is not between 1ns and 2.147483648s, the longest delta that the arithmetic holds"},
		{[]string{device, "--audit.flows=many"}, `--audit.flows (XDP_AUDIT_FLOWS): "many" is not a whole number from 0 to 4294967295, try --help`},
		{[]string{device, "--audit.flows=1e6"}, `--audit.flows (XDP_AUDIT_FLOWS): "1e6" is not a whole number from 0 to 4294967295, try --help`},
		{[]string{device, "--audit.flows=7"}, "flow table of 7 slots is not between 8 and 67108864"},
		{[]string{device, "--audit.event-rate=2000000000"}, "event rate 2000000000 is above 1000000000 a second"},
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
		{[]string{device, "--web.listen-address=vsock://:x"}, "--web.listen-address: vsock://:x has no port"},
		{[]string{device, "--web.systemd-socket"}, "--web.systemd-socket: systemd passed no socket"},
		{[]string{device, "--trail.file=" + dir}, "--trail.file: cannot open the audit trail: open " + dir + ": is a directory"},
		{[]string{device, "--log.level=loud"}, "unrecognized log level loud, try --help"},
	}
	for _, test := range tests {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			args := append([]string{"--web.listen-address=127.0.0.1:0"}, test.args...)
			err := run(context.Background(), args, &stdout, &stderr, mustNotOpen(t), dropNothing)
			if err == nil || oneLine(err) != test.want {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
			if stdout.Len() > 0 || stderr.Len() > 0 {
				t.Errorf("printed %q and %q", &stdout, &stderr)
			}
		})
	}
}

func TestExit(t *testing.T) {
	tests := []struct {
		args           []string
		code           int
		stdout, stderr string // patterns
	}{
		{[]string{"--audit.flows=x"}, 1, `^$`, `^xdp_audit_exporter: error: --audit\.flows \(XDP_AUDIT_FLOWS\): "x" is not .*\n$`},
		{[]string{"--healthcheck", "--web.listen-address=127.0.0.1:1"}, 1, `^$`, `^xdp_audit_exporter: error: no healthy exporter on 127\.0\.0\.1:1: .*\n$`},
		{[]string{"--version"}, 0, `^xdp_audit_exporter, version `, `^$`},
		{[]string{"--help"}, 0, `(?s)^usage: xdp_audit_exporter .*\(\$XDP_INTERFACE\).*\(\$XDP_AUDIT_THRESHOLD\)`, `^$`},
	}
	for _, test := range tests {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			command := exec.Command(os.Args[0], test.args...)
			command.Env = append(os.Environ(), "XDP_AUDIT_TEST_MAIN=1")
			var stdout, stderr bytes.Buffer
			command.Stdout, command.Stderr = &stdout, &stderr
			_ = command.Run()
			if code := command.ProcessState.ExitCode(); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			if !regexp.MustCompile(test.stdout).Match(stdout.Bytes()) || !regexp.MustCompile(test.stderr).Match(stderr.Bytes()) {
				t.Errorf("printed %q and %q, want %s and %s", &stdout, &stderr, test.stdout, test.stderr)
			}
		})
	}
}

func TestOneLine(t *testing.T) {
	err := fmt.Errorf("yaml:\n  line 1: bad\n  line 2: worse: %w", errors.Join(errors.New("one"), errors.New("two")))
	if got, want := oneLine(err), "yaml: line 1: bad; line 2: worse: one; two"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestConfig says which configuration the flags and the environment make.
func TestConfig(t *testing.T) {
	config := func(edit func(c *bpf.Config)) bpf.Config {
		c := bpf.DefaultConfig()
		c.Devices = []string{"eth0"}
		edit(&c)
		return c
	}
	tests := []struct {
		description string
		env         map[string]string
		args        []string
		want        bpf.Config
	}{
		{"defaults", nil, []string{"--audit.device=eth0"}, config(func(*bpf.Config) {})},
		{
			"every flag", nil,
			[]string{
				"--audit.device=eth0", "--audit.device=eth1,eth2", "--audit.mode=auto", "--audit.threshold=4.5", "--audit.min-samples=30",
				"--audit.window=1000", "--audit.idle-timeout=250ms", "--audit.flows=1024", "--audit.event-rate=0", "--audit.clock=metadata",
				"--audit.baseline=device", "--audit.domain=log2", "--audit.calibrate=0.001",
				"--audit.follow", "--audit.max-devices=8", "--bpf.pin-path=/sys/fs/bpf/a",
			},
			bpf.Config{
				Devices: []string{"eth0", "eth1", "eth2"}, Mode: bpf.ModeAuto, Clock: bpf.ClockMetadata, Threshold: 4.5, MinSamples: 30,
				Window: 1000, IdleTimeout: 250 * time.Millisecond, Flows: 1024, EventRate: 0, Domain: bpf.DomainLog2, Baseline: bpf.BaselineDevice,
				Calibrate: 0.001, Follow: true, AllowNone: true, MaxDevices: 8, PinPath: "/sys/fs/bpf/a",
			},
		},
		{
			"every variable",
			map[string]string{
				"XDP_INTERFACE": "eth0, eth1,", "XDP_MODE": "skb", "XDP_AUDIT_THRESHOLD": "5", "XDP_AUDIT_MIN_SAMPLES": "50",
				"XDP_AUDIT_WINDOW": "2000", "XDP_AUDIT_IDLE_TIMEOUT": "2s", "XDP_AUDIT_FLOWS": "64", "XDP_AUDIT_EVENT_RATE": "7",
				"XDP_AUDIT_CLOCK": "metadata", "XDP_AUDIT_BASELINE": "device", "XDP_AUDIT_DOMAIN": "log2", "XDP_AUDIT_CALIBRATE": "0",
				"XDP_AUDIT_FOLLOW": "false", "XDP_AUDIT_MAX_DEVICES": "9", "XDP_AUDIT_PIN_PATH": "/sys/fs/bpf/b",
			},
			nil,
			bpf.Config{
				Devices: []string{"eth0", "eth1"}, Mode: bpf.ModeGeneric, Clock: bpf.ClockMetadata, Threshold: 5, MinSamples: 50,
				Window: 2000, IdleTimeout: 2 * time.Second, Flows: 64, EventRate: 7, Domain: bpf.DomainLog2, Baseline: bpf.BaselineDevice,
				MaxDevices: 9, PinPath: "/sys/fs/bpf/b",
			},
		},
		{
			"a flag wins over its variable", map[string]string{"XDP_INTERFACE": "eth1", "XDP_MODE": "skb"},
			[]string{"--audit.device=eth0", "--audit.mode=drv"}, config(func(*bpf.Config) {}),
		},
		{
			"an empty variable is none", map[string]string{"XDP_INTERFACE": "eth0", "XDP_MODE": "", "XDP_AUDIT_FLOWS": ""},
			nil, config(func(*bpf.Config) {}),
		},
		{
			"a glob is followed", nil, []string{"--audit.device=eth0,l[o]"},
			config(func(c *bpf.Config) { c.Globs, c.Follow = []string{"l[o]"}, true }),
		},
	}
	for _, test := range tests {
		t.Run(test.description, func(t *testing.T) {
			for name, value := range test.env {
				t.Setenv(name, value)
			}
			var got bpf.Config
			open := func(c bpf.Config, _ *slog.Logger) (audit, error) {
				got = c
				return nil, errors.New("far enough")
			}
			args := append([]string{"--web.listen-address=127.0.0.1:0"}, test.args...)
			if err := run(context.Background(), args, io.Discard, io.Discard, open, dropNothing); err == nil || err.Error() != "far enough" {
				t.Fatal(err)
			}
			if fmt.Sprint(got) != fmt.Sprint(test.want) {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

func TestBadEnvironment(t *testing.T) {
	t.Setenv("XDP_AUDIT_FLOWS", "many")
	err := run(context.Background(), []string{"--audit.device=eth0"}, io.Discard, io.Discard, mustNotOpen(t), dropNothing)
	if want := `--audit.flows (XDP_AUDIT_FLOWS): "many" is not a whole number from 0 to 4294967295, try --help`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestSplitDevices(t *testing.T) {
	tests := []struct {
		description  string
		values       []string
		names, globs []string
	}{
		{"names in their order", []string{"tap0", "eth1,eth0"}, []string{"tap0", "eth1", "eth0"}, nil},
		{"globs apart from names", []string{"eth?,lo", "eth[1-9]*"}, []string{"lo"}, []string{"eth?", "eth[1-9]*"}},
		{"spaces and empty values", []string{" lo , ", ""}, []string{"lo"}, nil},
		{"a name given twice is left to be refused", []string{"lo", "lo"}, []string{"lo", "lo"}, nil},
	}
	for _, test := range tests {
		t.Run(test.description, func(t *testing.T) {
			names, globs := splitDevices(test.values)
			if !slices.Equal(names, test.names) || !slices.Equal(globs, test.globs) {
				t.Errorf("got %v and %v, want %v and %v", names, globs, test.names, test.globs)
			}
		})
	}
}

func TestFollowing(t *testing.T) {
	for _, test := range []struct {
		description       string
		args              []string
		follow, allowNone bool
	}{
		{"names are not followed", []string{"--audit.device=eth0"}, false, false},
		{"globs are followed, but one device has to be there", []string{"--audit.device=eth*"}, true, false},
		{"names are followed on demand, and waited for", []string{"--audit.device=eth0", "--audit.follow"}, true, true},
		{"globs are only expanded on demand", []string{"--audit.device=eth*", "--no-audit.follow"}, false, false},
	} {
		t.Run(test.description, func(t *testing.T) {
			o, err := parseFlags(test.args, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			config, err := o.auditConfig()
			if err != nil || config.Follow != test.follow || config.AllowNone != test.allowNone {
				t.Errorf("got %+v and error %v", config, err)
			}
		})
	}
}

func TestWatchedFlows(t *testing.T) {
	for _, test := range []struct {
		args []string
		want uint32
		err  string
	}{
		{nil, 0, ""},
		{[]string{"--collector.covert.flows=8"}, 0, ""},
		{[]string{"--collector.covert"}, 64, ""},
		{[]string{"--collector.covert", "--collector.covert.flows=8"}, 8, ""},
		{[]string{"--collector.covert", "--collector.covert.flows=0"}, 0,
			"--collector.covert.flows: 0 flows cannot be judged: leave the covert collector out instead"},
		{[]string{"--collector.covert", "--collector.covert.flows=256"}, 0, "256 flows to be watched are more than 255"},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			o, err := parseFlags(append(test.args, "--audit.device=eth0"), io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			config, err := o.auditConfig()
			if test.err != "" {
				if err == nil || err.Error() != test.err {
					t.Fatalf("got error %v, want %s", err, test.err)
				}
				return
			}
			if err != nil || config.Watches != test.want {
				t.Errorf("%d watches and error %v, want %d", config.Watches, err, test.want)
			}
		})
	}
}

func TestCollectorFlags(t *testing.T) {
	tests := []struct {
		args []string
		want []string
	}{
		{nil, collector.Defaults()},
		{[]string{"--no-collector.timing", "--no-collector.trail"}, []string{"packets", "flags", "events", "flows", "program", "privileges"}},
		{[]string{"--collector.disable-defaults"}, []string{}},
		{[]string{"--collector.disable-defaults", "--collector.flags", "--collector.packets"}, []string{"packets", "flags"}},
		{[]string{"--collector.packets", "--collector.disable-defaults"}, []string{"packets"}},
	}
	for _, test := range tests {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			o, err := parseFlags(test.args, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			if o.collectors == nil || !slices.Equal(o.collectors, test.want) {
				t.Errorf("got %q, want %q", o.collectors, test.want)
			}
		})
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
	if !errors.Is(err, failure) || oneLine(err) != failure.Error() {
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

func TestPages(t *testing.T) {
	e := start(t, "--no-collector.flows")
	const unknown = ": there are packets, flags, timing, events, flows, program, covert, trail, privileges\n"
	tests := []struct {
		path  string
		code  int
		whole string   // the body, if it is known
		has   []string // parts of the body
		hasNo []string
	}{
		{path: "/-/healthy", code: 200, whole: "OK\n"},
		{path: "/-/ready", code: 200, whole: "OK\n"},
		{path: "/", code: 200, has: []string{"XDP Audit Exporter", `href="/metrics"`}, hasNo: []string{"/debug/pprof"}},
		{path: "/nothing", code: 404},
		{
			path: "/metrics", code: 200,
			has: []string{
				"xdp_audit_exporter_build_info{", "go_goroutines ", "process_open_fds ", "promhttp_metric_handler_requests_total{",
				`xdp_audit_outcomes_total{device="eth0",outcome="judged"} 0`, `xdp_audit_scrape_collector_success{collector="packets"} 1`,
			},
			hasNo: []string{"xdp_audit_flow_", "xdp_audit_trail_"},
		},
		{
			path: "/metrics?collect[]=packets", code: 200,
			has:   []string{"xdp_audit_packets_total{", "go_goroutines ", "xdp_audit_exporter_build_info{"},
			hasNo: []string{"xdp_audit_events_total", `collector="flags"`},
		},
		{path: "/metrics?collect[]=packets&collect[]=flags", code: 200, has: []string{"xdp_audit_packets_total{", "xdp_audit_leak_flags_total{"}},
		{path: "/metrics?exclude[]=packets", code: 200, has: []string{"xdp_audit_leak_flags_total{"}, hasNo: []string{"xdp_audit_packets_total"}},
		{path: "/metrics?collect[]=cpu", code: 400, whole: `unknown collector "cpu"` + unknown},
		{path: "/metrics?exclude[]=a%0Ab", code: 400, whole: `unknown collector "a\nb"` + unknown},
		{path: "/metrics?collect[]=flows", code: 400, whole: "collector \"flows\" is disabled\n"},
		{path: "/metrics?collect[]=packets&exclude[]=flags", code: 400, whole: "collect and exclude cannot be combined\n"},
	}
	for _, test := range tests {
		t.Run(test.path, func(t *testing.T) {
			code, body := e.get(t, test.path)
			if code != test.code {
				t.Errorf("status %d, want %d", code, test.code)
			}
			if test.whole != "" && body != test.whole {
				t.Errorf("got %q, want %q", body, test.whole)
			}
			for _, part := range test.has {
				if !strings.Contains(body, part) {
					t.Errorf("%q is missing in %s", part, body)
				}
			}
			for _, part := range test.hasNo {
				if strings.Contains(body, part) {
					t.Errorf("%q is in %s", part, body)
				}
			}
		})
	}
}

func TestWithoutExporterMetrics(t *testing.T) {
	e := start(t, "--web.disable-exporter-metrics", "--web.telemetry-path=/")
	_, body := e.get(t, "/")
	for _, prefix := range []string{"go_", "process_", "promhttp_"} {
		if strings.Contains(body, "\n"+prefix) {
			t.Errorf("there are metrics %s*", prefix)
		}
	}
	if !strings.Contains(body, "xdp_audit_exporter_build_info{") {
		t.Error("the exporter does not tell its version")
	}
}

// TestNativeHistogram asks for protobuf, as a server does that takes native histograms.
func TestNativeHistogram(t *testing.T) {
	e := start(t)
	request, err := http.NewRequest(http.MethodGet, "http://"+e.address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	decoder := expfmt.NewDecoder(response.Body, expfmt.ResponseFormat(response.Header))
	for {
		var family dto.MetricFamily
		if err := decoder.Decode(&family); err != nil {
			t.Fatalf("no histogram: %v", err)
		}
		if family.GetName() != "xdp_audit_delta_seconds" {
			continue
		}
		h := family.Metric[0].Histogram
		if h.Schema == nil || h.GetSchema() != 3 || len(h.Bucket) == 0 {
			t.Errorf("the histogram has schema %v and %d classic buckets", h.Schema, len(h.Bucket))
		}
		return
	}
}

func TestSeveralAddresses(t *testing.T) {
	config := write(t, filepath.Join(t.TempDir(), "web.yml"), "http_server_config:\n  headers:\n    X-Frame-Options: deny\n")
	e := start(t, "--web.listen-address=127.0.0.1:0", "--web.config.file="+config)
	other := *e
	other.address = e.log.await(t, `msg="Listening on" address=(\S+)`)
	for _, x := range []*exporter{e, &other} {
		if code, _ := x.get(t, "/-/healthy"); code != 200 {
			t.Errorf("%s answers %d", x.address, code)
		}
	}
}

// TestShutdown has a scrape under way: it ends before the audit does.
func TestShutdown(t *testing.T) {
	e := start(t)
	scraping, finish := make(chan struct{}), make(chan struct{})
	e.audit.scrape = func() {
		close(scraping)
		<-finish
	}
	scraped := make(chan error, 1)
	go func() {
		response, err := http.Get("http://" + e.address + "/metrics")
		if err == nil {
			_, err = io.Copy(io.Discard, response.Body)
			err = errors.Join(err, response.Body.Close())
		}
		scraped <- err
	}()
	<-scraping
	e.stop()
	e.log.await(t, `msg="Shutting down" reason="context canceled"`)
	select {
	case <-e.audit.closed:
		t.Error("the audit was closed under a scrape")
	default:
	}
	close(finish)
	if err := <-scraped; err != nil {
		t.Errorf("the scrape under way failed: %v", err)
	}
	if err := e.end(t); err != nil {
		t.Errorf("run returned %v", err)
	}
	<-e.audit.closed
}

// TestShutdownCutsOff has a scrape that does not end, and neither holds up the end nor is an error.
func TestShutdownCutsOff(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as a shutdown may")
	}
	t.Parallel()
	e := start(t)
	scraping, finish := make(chan struct{}), make(chan struct{})
	defer close(finish)
	e.audit.scrape = func() {
		close(scraping)
		<-finish
	}
	go func() {
		if response, err := http.Get("http://" + e.address + "/metrics"); err == nil {
			response.Body.Close()
		}
	}()
	<-scraping
	e.stop()
	if err := e.end(t); err != nil {
		t.Errorf("run returned %v", err)
	}
	<-e.audit.closed
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

// TestSlowClient sends half a request: the connection is closed on it.
func TestSlowClient(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as a header may")
	}
	t.Parallel()
	e := start(t)
	connection, err := net.Dial("tcp", e.address)
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	if _, err := io.WriteString(connection, "GET /metrics HTTP/1.1\r\nHost: "); err != nil {
		t.Fatal(err)
	}
	if err := connection.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, connection); err != nil {
		t.Errorf("the connection stays open: %v", err)
	}
}

func TestLongHeader(t *testing.T) {
	e := start(t)
	if code, _ := e.get(t, "/metrics?collect[]="+strings.Repeat("x", 100<<10)); code != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %d for a header of 100 KiB", code)
	}
}

// TestMaxRequests counts filtered and whole scrapes together.
func TestMaxRequests(t *testing.T) {
	e := start(t, "--web.max-requests=2")
	var scraping sync.WaitGroup
	scraping.Add(2)
	finish := make(chan struct{})
	e.audit.scrape = func() {
		scraping.Done()
		<-finish
	}
	var scrapes sync.WaitGroup
	for _, path := range []string{"/metrics", "/metrics?collect[]=packets"} {
		scrapes.Go(func() {
			if code, _ := e.get(t, path); code != 200 {
				t.Errorf("status %d of %s, which was within the limit", code, path)
			}
		})
	}
	scraping.Wait()
	if code, body := e.get(t, "/metrics"); code != 503 || body != "Limit of concurrent requests reached (2), try again later.\n" {
		t.Errorf("status %d with %q beyond the limit", code, body)
	}
	if code, _ := e.get(t, "/-/healthy"); code != 200 {
		t.Errorf("the exporter calls itself unhealthy with status %d", code)
	}
	close(finish)
	scrapes.Wait()
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

// TestFullTrail loses records, says so once, and goes on.
func TestFullTrail(t *testing.T) {
	e := start(t, "--trail.file=/dev/full")
	event := &bpf.Event{Device: "eth0"}
	for range 4 {
		e.audit.events <- event
	}
	e.log.await(t, `msg="Records are being lost" err="cannot write to the audit trail: write /dev/full: no space left on device"`)
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

// TestHealthcheck asks exporters of all kinds.
func TestHealthcheck(t *testing.T) {
	dir := t.TempDir()
	writeCertificate(t, dir)
	const tlsConfig = "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n"
	configs := map[string]string{
		"tls":    tlsConfig,
		"client": tlsConfig + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: cert.pem\n",
		"tls1.2": tlsConfig + "  max_version: TLS12\n  client_auth_type: RequireAnyClientCert\n",
		"users":  "basic_auth_users:\n  alice: $2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi\n",
	}
	ask := func(args ...string) error {
		return run(context.Background(), append([]string{"--healthcheck"}, args...), io.Discard, io.Discard, mustNotOpen(t), dropNothing)
	}

	t.Run("plain", func(t *testing.T) {
		if err := ask("--web.listen-address=" + start(t).address); err != nil {
			t.Error(err)
		}
	})
	for name, content := range configs {
		t.Run(name, func(t *testing.T) {
			file := "--web.config.file=" + write(t, filepath.Join(dir, name+".yml"), content)
			if err := ask("--web.listen-address="+start(t, file).address, file); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("all addresses of the host", func(t *testing.T) {
		e := start(t, "--web.listen-address=:0")
		_, port, err := net.SplitHostPort(e.log.await(t, `msg="Listening on" address=(\S+)`))
		if err != nil {
			t.Fatal(err)
		}
		if err := ask("--web.listen-address=:" + port); err != nil {
			t.Error(err)
		}
	})
	t.Run("another server", func(t *testing.T) {
		server := httptest.NewServer(http.NotFoundHandler())
		defer server.Close()
		address := server.Listener.Addr().String()
		want := "no healthy exporter on " + address + ": it answered 404 Not Found"
		if err := ask("--web.listen-address=" + address); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	})
	t.Run("nobody", func(t *testing.T) {
		want := "no healthy exporter on 127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused"
		if err := ask("--web.listen-address=127.0.0.1:1"); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	})
	t.Run("an address that cannot be asked", func(t *testing.T) {
		want := "--healthcheck: cannot ask on vsock://:9400: use an address with a TCP port"
		if err := ask("--web.listen-address=vsock://:9400"); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	})
	t.Run("somebody who does not answer", func(t *testing.T) {
		if testing.Short() {
			t.Skip("takes as long as an answer may")
		}
		t.Parallel()
		silent, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		want := "no healthy exporter on " + silent.Addr().String() + ": context deadline exceeded"
		if err := ask("--web.listen-address=" + silent.Addr().String()); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	})
}

// writeCertificate writes a self-signed cert.pem, and its key.pem.
func writeCertificate(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"elsewhere"}}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "cert.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})))
	write(t, filepath.Join(dir, "key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
}
