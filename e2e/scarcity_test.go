// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// mountTmpfs gives the audited namespace a mount namespace with a tmpfs of the given size.
func (l *lab) mountTmpfs(size int) string {
	l.t.Helper()
	root := l.t.TempDir()
	err := l.audited.Namespace.Do(func() error {
		return errors.Join(
			unix.Unshare(unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("tmpfs", root, "tmpfs", 0, fmt.Sprintf("size=%d", size)),
		)
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return root
}

// On a full disk the audit continues, every lost record is counted, and no record is torn. When
// there is space again, the trail continues.
func TestAFullDiskUnderTheTrail(t *testing.T) {
	const diskBytes, ballastBytes = 256 << 10, 192 << 10
	l := newLab(t)
	folder := l.mountTmpfs(diskBytes)
	ballast, trail := filepath.Join(folder, "ballast"), filepath.Join(folder, "trail")
	inNamespace := func(f func() error) {
		t.Helper()
		if err := l.audited.Namespace.Do(f); err != nil {
			t.Fatal(err)
		}
	}
	inNamespace(func() error { return os.WriteFile(ballast, make([]byte, ballastBytes), 0o600) })
	e := l.startExporter(append([]string{"--audit.device=" + device, "--trail.file=" + trail}, flagMuch...)...)
	f := l.newFlow(l.audited.IPv4.Addr())
	sent := 0
	sendUntil := func(ready func(s scrape) bool) scrape {
		t.Helper()
		for range 1000 {
			const packets = 640
			l.send(f, packets)
			sent += packets
			if s := e.atRest(); ready(s) {
				return s
			}
		}
		t.Fatalf("%d packets did not do", sent)
		return nil
	}

	full := sendUntil(func(s scrape) bool { return s.sum("trail_write_errors_total") > 100 })
	e.expectLog("level=ERROR", "no space left on device")
	inNamespace(func() error { return os.Remove(ballast) })
	before := full.sum("trail_records_total")
	s := sendUntil(func(s scrape) bool { return s.sum("trail_records_total") > before+100 })
	e.expectLog("level=INFO", "records")

	if got := s.sum("packets_total", "family=ipv4", "protocol=udp"); got != float64(sent) {
		t.Errorf("%v packets were counted, want %d", got, sent)
	}
	records, lost := s.sum("trail_records_total"), s.sum("trail_write_errors_total")
	if events := s.sum("events_total"); records+lost != events {
		t.Errorf("%v records were written and %v lost, of %v events", records, lost, events)
	}
	var content []byte
	inNamespace(func() (err error) {
		content, err = os.ReadFile(trail)
		return err
	})
	whole := 0
	for line := range bytes.Lines(content) {
		if text := string(line); strings.HasPrefix(text, "time=") && strings.Contains(text, " length=") && strings.HasSuffix(text, "\n") {
			whole++
		}
	}
	if whole != int(records) {
		t.Errorf("%d whole records are in the trail, and %v were written", whole, records)
	}
	t.Logf("%d packets; %v records written, %v lost", sent, records, lost)
	e.expectStopped()
}

// memoryGroup makes a memory control group of either version, and returns the file through which
// a process joins it.
func memoryGroup(t *testing.T, limitBytes int) (join string) {
	t.Helper()
	var errs []error
	// While the kernel tries to create a map that is too large, the group is at its limit. With
	// version 1, a thread that needs a page meanwhile waits instead of being killed.
	for _, version := range []struct {
		root  string
		files map[string]int
	}{
		{"/sys/fs/cgroup/memory", map[string]int{"memory.limit_in_bytes": limitBytes, "memory.oom_control": 1}},
		{"/sys/fs/cgroup", map[string]int{"memory.max": limitBytes}},
	} {
		group := filepath.Join(version.root, fmt.Sprintf("xdp-audit-e2e-%d", os.Getpid()))
		err := os.Mkdir(group, 0o755)
		if err == nil {
			t.Cleanup(func() { // the kernel may still count the process that has ended
				_ = os.Remove(group)
			})
			for file, value := range version.files {
				err = errors.Join(err, os.WriteFile(filepath.Join(group, file), fmt.Append(nil, value), 0))
			}
			if err == nil {
				return filepath.Join(group, "cgroup.procs")
			}
		}
		errs = append(errs, err)
	}
	skip(t, fmt.Errorf("no control group of memory can be made: %w", errors.Join(errs...)))
	return ""
}

// Without memory for the maps, one line says so, and nothing is attached.
func TestNoMemoryForTheMaps(t *testing.T) {
	const limitBytes = 64 << 20
	join := memoryGroup(t, limitBytes)
	for _, test := range []struct {
		description string
		args        []string
		want        []string
	}{
		{"more flows than there is memory", []string{"--audit.flows=1048576"}, []string{"no memory", "flow_", "--audit.flows"}},
		{"more flows, and pins", []string{"--audit.flows=1048576", "--bpf.pin-path={pins}"}, []string{"no memory", "flow_", "--audit.flows"}},
		{"more devices", []string{"--audit.max-devices=4096", "--audit.follow"}, []string{"no memory", "audit_counters", "--audit.max-devices"}},
	} {
		t.Run(test.description, func(t *testing.T) {
			l := newLab(t)
			folder := l.mountBPF(0)
			args := []string{"-c", `echo $$ >"$0" && exec "$@"`, join, binaries.exporter, "--audit.device=" + device, "--web.listen-address=" + address}
			for _, arg := range test.args {
				args = append(args, strings.ReplaceAll(arg, "{pins}", folder))
			}
			l.start("/bin/sh", args).expectRefusal(test.want...)
			l.expectNothingAttached()
			if names, exists := l.pinned(folder); exists {
				t.Errorf("the folder is left, with %v", names)
			}
		})
	}
	t.Run("what there is memory for", func(t *testing.T) {
		l := newLab(t)
		e := l.launch("/bin/sh", []string{"-c", `echo $$ >"$0" && exec "$@"`, join, binaries.exporter,
			"--audit.device=" + device, "--web.listen-address=" + address})
		e.awaitReady("/-/ready")
		l.send(l.newFlow(l.audited.IPv4.Addr()), 100)
		if got := e.atRest().sum("packets_total"); got != 100 {
			t.Errorf("%v packets were counted, want 100", got)
		}
		e.endWith(syscall.SIGTERM)
	})
}
