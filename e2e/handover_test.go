// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// versionBefore is the last commit before the sources were rearranged. It stands for the
// version that users run.
const versionBefore = "b9b112fe4b191a47c4e75f49bd8862390443de92"

// buildBefore returns the exporter of that commit, built from the history of this repository.
func buildBefore(t *testing.T) string {
	t.Helper()
	if err := cannotRun(); err != nil {
		skip(t, err)
	}
	binary := filepath.Join(binaries.folder, "before")
	if _, err := os.Stat(binary); err == nil {
		return binary
	}
	git := func(args ...string) *exec.Cmd {
		// Root may run the test in a repository of another user.
		return exec.CommandContext(t.Context(), "git", append([]string{"-C", "..", "-c", "safe.directory=*"}, args...)...)
	}
	if output, err := git("cat-file", "-e", versionBefore+"^{commit}").CombinedOutput(); err != nil {
		skip(t, fmt.Errorf("commit %s is not in the history (%w: %s): "+
			"use a git clone, and complete a shallow one with git fetch --unshallow", versionBefore, err, strings.TrimSpace(string(output))))
	}
	sources := t.TempDir()
	archive := filepath.Join(sources, "archive.tar")
	for _, cmd := range []*exec.Cmd{
		git("archive", "--output="+archive, versionBefore), exec.CommandContext(t.Context(), "tar", "-xf", archive, "-C", sources),
	} {
		if output, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, output)
		}
	}
	if err := build(binary, sources, variant{arguments: []string{"-buildvcs=false"}}); err != nil {
		t.Fatal(err)
	}
	return binary
}

// Another version that starts with the pins of one either continues, so that packets received
// are packets counted, or says in one line that it begins again. It continues if the maps have
// the same layout.
func TestHandOverBetweenVersions(t *testing.T) {
	older := buildBefore(t)
	for _, versions := range []struct{ description, first, second string }{
		{"to this version", older, binaries.exporter},
		{"back to the version before", binaries.exporter, older},
	} {
		for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			t.Run(fmt.Sprintf("%s, after %v", versions.description, signal), func(t *testing.T) {
				testHandOver(t, versions.first, versions.second, signal)
			})
		}
	}
}

func testHandOver(t *testing.T, first, second string, signal syscall.Signal) {
	l := newLab(t)
	folder := l.mountBPF(0)
	args := serving(append([]string{"--audit.device=" + device, "--bpf.pin-path=" + folder}, flagMuch...))
	start := func(binary string) *exporter {
		t.Helper()
		e := l.launch(binary, args)
		e.awaitReady("/-/ready")
		return e
	}
	f := l.newFlow(l.audited.IPv4.Addr())

	e := start(first)
	traffic := l.startStream(f)
	awaitPackets := func() scrape {
		t.Helper()
		return e.await(func(s scrape) error {
			if got := s.sum("packets_total"); got < 1000 {
				return fmt.Errorf("%v packets were counted", got)
			}
			return nil
		})
	}
	last := awaitPackets()
	e.endWith(signal)
	if modes := l.attached(); modes[device] != attachedDriver {
		t.Fatalf("attached are %v after %v", modes, signal)
	}
	e = start(second)
	awaitPackets()
	sent, err := traffic.end()
	if err != nil {
		t.Fatal(err)
	}
	s := e.atRest()
	continued, replaced := e.logged(takenOver), e.logged("level=WARN", mapsReplaced)
	complaints := e.logged("level=WARN") + e.logged("level=ERROR")
	switch counted := s.sum("packets_total"); {
	case continued == 1 && complaints == 0:
		last.expectNoFall(t, s)
		l.pair().expectPackets(s, sent)
		if got := s.sum("outcomes_total", "outcome=new_flow"); got != 1 {
			t.Errorf("%v flows were new, want 1: the baselines were not kept", got)
		}
		t.Logf("it continued: %v packets were counted", counted)
	case continued == 0 && replaced == 1 && complaints == 1:
		if counted >= float64(sent.received) {
			t.Errorf("%v of %d packets were counted, want those since the maps were replaced", counted, sent.received)
		}
		t.Logf("it began again: %v of %d packets were counted since", counted, sent.received)
	default:
		t.Errorf("it neither continued nor said that it begins again:\n%s", &e.stderr)
	}

	// In either case, packets that arrive while no exporter runs are counted from then on.
	e.endWith(signal)
	l.send(f, 300)
	e = start(second)
	e.expectLog(takenOver)
	if got, want := e.atRest().sum("packets_total"), s.sum("packets_total")+300; got != want {
		t.Errorf("%v packets were counted after another start, want %v", got, want)
	}
	e.endWith(syscall.SIGTERM)
	l.unpin(folder)
}
