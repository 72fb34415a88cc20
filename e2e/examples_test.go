// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The example of another exporter that embeds the audit has its own module.
func TestTheAuditCanBeEmbedded(t *testing.T) {
	l := newLab(t)
	binary := filepath.Join(t.TempDir(), "embed")
	if err := build(binary, "../examples/embed", variant{}); err != nil {
		t.Fatal(err)
	}
	e := l.launch(binary, []string{"-device=" + device, "-listen=" + address})
	e.awaitReady("/metrics")
	l.send(l.newFlow(l.audited.IPv4.Addr()), 1000)
	s := e.atRest()
	if got := s.sum("packets_total", "device="+device, "family=ipv4", "protocol=udp"); got != 1000 {
		t.Errorf("%v packets were counted, want 1000", got)
	}
	e.expectStopped()
}

// startDemo returns the command of the demo, which creates its own network.
func startDemo(t *testing.T, environment ...string) (cmd *exec.Cmd, stdout, stderr *output) {
	t.Helper()
	if err := cannotRun(); err != nil {
		skip(t, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	stdout, stderr = &output{}, &output{}
	cmd = exec.CommandContext(ctx, binaries.demo, binaries.exporter)
	cmd.Env = append(os.Environ(), environment...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, stdout, stderr
}

// demoSummary matches the numbers of packets sent, sent late and flagged.
var demoSummary = regexp.MustCompile(`(\d+) packets\b.*\b(\d+)\b.* late\b.*\b(\d+)\b.* flagged`)

// On Ctrl-C the demo stops the exporter after every flag has been reported.
func TestDemo(t *testing.T) {
	cmd, stdout, stderr := startDemo(t, "DEMO_LISTEN=127.0.0.1:0")
	awaitDemo(t, cmd, stdout)
	l := &lab{t: t, ctx: t.Context()}
	l.poll(func() error {
		if !strings.Contains(stdout.String(), "xdp_audit_last_tscore") {
			return errors.New("there is no report yet")
		}
		return nil
	})
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || stderr.String() != "" {
		t.Fatalf("it ended with %v: %s", err, stderr)
	}
	numbers := demoSummary.FindStringSubmatch(stdout.String())
	if numbers == nil {
		t.Fatalf("there is no summary:\n%s", stdout)
	}
	if found, err := strconv.Atoi(numbers[3]); err != nil || found == 0 {
		t.Errorf("%s packets were sent late, and %s flagged", numbers[2], numbers[3])
	}
	for _, want := range []string{"xdp_audit_events_total", "xdp_audit_leak_flags_total", "direction=late tscore="} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("it does not say %q", want)
		}
	}
	t.Logf("\n%s", stdout)
}

func TestDemoEndsByItself(t *testing.T) {
	cmd, stdout, stderr := startDemo(t, "DEMO_LISTEN=127.0.0.1:0", "DEMO_SECONDS=2")
	if err := cmd.Run(); err != nil || stderr.String() != "" || !demoSummary.MatchString(stdout.String()) {
		t.Errorf("it ended with %v and wrote:\n%s%s", err, stdout, stderr)
	}
}

// The demo of leak assessments finds the server that leaks, and not the other one.
func TestDemoLeak(t *testing.T) {
	if err := cannotRun(); err != nil {
		skip(t, err)
	}
	const perServer = 20 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), 2*perServer+patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binaries.demo, binaries.exporter, binaries.probe)
	cmd.Env = append(os.Environ(), "DEMO_LISTEN=127.0.0.1:0", fmt.Sprintf("DEMO_SECONDS=%.0f", perServer.Seconds()), "DEMO_SEED=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stdout, stderr output
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("it ended with %v and wrote:\n%s%s", err, &stdout, &stderr)
	}
	_, summary, _ := strings.Cut(stdout.String(), "comparison ")
	verdicts := map[string]string{}
	for _, row := range regexp.MustCompile(`(?m)^(byte by byte|constant time) {2,}(\w+) {2,}\S+ \S+ to \S+ \S+ {2,}\S+ \S+ to \S+ \S+$`).FindAllStringSubmatch(summary, -1) {
		verdicts[row[1]] = row[2]
	}
	constant := verdicts["constant time"]
	if verdicts["byte by byte"] != "leak" || constant != "none" && constant != "inconclusive" {
		t.Errorf("verdicts %v, want a leak and none of the other:\n%s%s", verdicts, &stdout, &stderr)
	}
	if !strings.Contains(summary, "`first_byte_wrong`") || strings.Contains(stderr.String(), "error") {
		t.Errorf("it does not say the verdicts in words, or there are errors:\n%s%s", &stdout, &stderr)
	}
	t.Logf("\n%s", summary)
}

func TestDemoLeavesNothingWhenItIsKilled(t *testing.T) {
	cmd, stdout, _ := startDemo(t, "DEMO_LISTEN=127.0.0.1:0")
	url := awaitDemo(t, cmd, stdout)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	l := &lab{t: t, ctx: t.Context()}
	l.poll(func() error {
		response, err := http.Get(url)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return nil
		}
		if err == nil {
			err = response.Body.Close()
		}
		return errors.Join(errors.New("the exporter still answers"), err)
	})
}

// awaitDemo starts the demo, waits until the exporter answers, and returns its URL.
func awaitDemo(t *testing.T, cmd *exec.Cmd, stdout *output) (url string) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, ctx: t.Context()}
	l.poll(func() error {
		url = regexp.MustCompile(`http://\S+`).FindString(stdout.String())
		response, err := http.Get(url)
		if err != nil {
			return err
		}
		return response.Body.Close()
	})
	return url
}

func TestDemoRefusals(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, test := range []struct {
		description, setting, want string
		uid                        uint32
	}{
		{"a duration that is none", "DEMO_SECONDS=soon", "DEMO_SECONDS=soon", 0},
		{"an address that is none", "DEMO_LISTEN=nowhere", "DEMO_LISTEN=nowhere", 0},
		{"an address that is taken", "DEMO_LISTEN=" + taken.Addr().String(), taken.Addr().String(), 0},
		{"not root", "DEMO_SECONDS=5", "requires root", 65534},
	} {
		t.Run(test.description, func(t *testing.T) {
			cmd, stdout, stderr := startDemo(t, test.setting)
			cmd.SysProcAttr.Credential = &syscall.Credential{Uid: test.uid, Gid: test.uid, NoSetGroups: true}
			cmd.Dir = "/"
			_ = cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			if got := stderr.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, test.want) || stdout.String() != "" {
				t.Errorf("want one line with %q, got:\n%s%s", test.want, got, stdout)
			}
		})
	}
}
