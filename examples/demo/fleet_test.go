// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/livebuffer"
	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// asDemo is the environment variable that turns the test binary into the demo.
const asDemo = "DEMO_TEST"

const (
	rulesFolder = "../../deploy/rules"
	runbooks    = "../../docs/runbooks.md"
)

func TestMain(m *testing.M) {
	if os.Getenv(asDemo) != "" {
		main()
	}
	os.Exit(m.Run())
}

// fleetDemo is a demo of a fleet that was started.
type fleetDemo struct {
	*exec.Cmd
	stdout, stderr livebuffer.Buffer
}

func startFleet(t *testing.T, exporter, server string) *fleetDemo {
	t.Helper()
	// It takes up to alertTime after the plant.
	ctx, cancel := context.WithTimeout(t.Context(), ordinaryTime+alertTime+settleTime+3*patience)
	t.Cleanup(cancel)
	d := &fleetDemo{Cmd: exec.CommandContext(ctx, "/proc/self/exe", exporter, server, rulesFolder, runbooks)}
	d.Env = append(os.Environ(), asDemo+"=1", "DEMO_LISTEN=127.0.0.1:0")
	d.Stdout, d.Stderr = &d.stdout, &d.stderr
	d.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	return d
}

// await waits until the demo has written a text.
func (d *fleetDemo) await(t *testing.T, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	err := netlab.Poll(ctx, func() error {
		if !strings.Contains(d.stdout.String(), text) {
			return errors.New("it has not written " + text)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v:\n%s%s", err, &d.stdout, &d.stderr)
	}
}

// expectNothingLeft expects that no page of the demo answers any more.
func (d *fleetDemo) expectNothingLeft(t *testing.T) {
	t.Helper()
	pages := regexp.MustCompile(`(?m)^  \S+ +http://([^/]+)/`).FindAllStringSubmatch(d.stdout.String(), -1)
	if len(pages) != len(hosts)+1 {
		t.Fatalf("it has %d pages:\n%s", len(pages), &d.stdout)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, page := range pages {
		err := netlab.Poll(ctx, func() error {
			conn, err := net.Dial("tcp", page[1])
			if err == nil {
				conn.Close()
				return errors.New(page[1] + " still answers")
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestDemoFleet(t *testing.T) {
	server, err := exec.LookPath("prometheus")
	switch isRequired := os.Getenv("REQUIRE_BPF") == "1"; {
	case testing.Short():
		t.Skip("it takes more than a minute")
	case (err != nil || os.Geteuid() != 0) && isRequired:
		t.Fatalf("REQUIRE_BPF=1, but root and prometheus are needed: %v", err)
	case err != nil || os.Geteuid() != 0:
		t.Skipf("root and prometheus are needed: %v", err)
	}
	exporter := filepath.Join(t.TempDir(), "xdp_audit_exporter")
	build := exec.Command("go", "build", "-o", exporter, ".")
	build.Dir = "../.."
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	const scraped = "has scraped"

	// The alert fires on the host with late packets alone, and the demo says what to do.
	t.Run("to the end", func(t *testing.T) {
		t.Parallel()
		begin := time.Now()
		d := startFleet(t, exporter, server)
		if err := d.Wait(); err != nil || d.stderr.String() != "" {
			t.Fatalf("it ended with %v:\n%s%s", err, &d.stdout, &d.stderr)
		}
		got := d.stdout.String()
		text, err := os.ReadFile(runbooks)
		if err != nil {
			t.Fatal(err)
		}
		_, section, _ := strings.Cut(string(text), "\n## "+plantedAlert+"\n\n")
		firstLine, _, _ := strings.Cut(section, "\n")
		for _, want := range []string{
			`alertname="` + plantedAlert + `"`, `device="audited0"`, `instance="host2"`, `job="xdp_audit"`, `severity="warning"`,
			"summary: audited0 on host2 ", "description: ", "runbook_url: https://", firstLine,
		} {
			if !strings.Contains(got, want) {
				t.Errorf("it does not say %q", want)
			}
		}
		if !regexp.MustCompile(plantedAlert + ` of host2 fired \d+ seconds .*no alert of the other hosts did\.\n$`).MatchString(got) {
			t.Error("it has no closing line")
		}
		if addresses, alert := strings.Index(got, "http://"), strings.Index(got, " fires, "); addresses < 0 || addresses > alert {
			t.Error("it does not name the pages first")
		}
		d.expectNothingLeft(t)
		t.Logf("in %.0f s:\n%s", time.Since(begin).Seconds(), got)
	})

	t.Run("until Ctrl-C", func(t *testing.T) {
		t.Parallel()
		d := startFleet(t, exporter, server)
		d.await(t, scraped)
		if err := d.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		err := d.Wait()
		if text := d.stderr.String(); d.ProcessState.ExitCode() != 1 || strings.Count(text, "\n") != 1 || !strings.Contains(text, "interrupted before "+plantedAlert) {
			t.Errorf("it ended with %v, and one line is wanted: %s", err, text)
		}
		d.expectNothingLeft(t)
	})

	t.Run("until it is killed", func(t *testing.T) {
		t.Parallel()
		d := startFleet(t, exporter, server)
		d.await(t, scraped)
		if err := d.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = d.Wait()
		d.expectNothingLeft(t)
	})
	t.Run("without Prometheus", func(t *testing.T) {
		t.Parallel()
		d := startFleet(t, exporter, "false")
		err := d.Wait()
		if text := d.stderr.String(); d.ProcessState.ExitCode() != 1 || strings.Count(text, "\n") != 1 || !strings.Contains(text, "Prometheus ended") {
			t.Errorf("it ended with %v, and one line is wanted: %s", err, text)
		}
		d.expectNothingLeft(t)
	})
}

// What is not seen in time is an error of one line, which says it.
func TestNotSeen(t *testing.T) {
	c := &crew{failed: make(chan error, 1)}
	err := c.await(t.Context(), time.Millisecond, "the alert was not seen", func(context.Context) error { return errors.New("none") })
	if err == nil || err.Error() != "the alert was not seen within 1ms: none" {
		t.Errorf("got %v", err)
	}
	c.failed <- errors.New("host1: it ended")
	err = c.await(t.Context(), time.Minute, "the alert was not seen", func(context.Context) error { return errors.New("none") })
	if err == nil || err.Error() != "host1: it ended" {
		t.Errorf("after a part has ended: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = c.await(ctx, time.Minute, "the alert was not seen", func(context.Context) error { return errors.New("none") })
	if err == nil || !strings.HasPrefix(err.Error(), "interrupted") {
		t.Errorf("after Ctrl-C: %v", err)
	}
}

func TestRunbook(t *testing.T) {
	text, err := runbook(runbooks, "xdpauditflagburst")
	if err != nil || !strings.HasPrefix(text, "A device flagged") || !strings.HasSuffix(text, "...") || strings.Contains(text, "##") {
		t.Errorf("got %v:\n%s", err, text)
	}
	if text, err := runbook(runbooks, "absent"); err == nil {
		t.Errorf("a runbook that does not exist is %s", text)
	}
}
