// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// host is a systemd in namespaces of its own, on an overlay of this machine's files, with the
// network of the audited namespace.
type host struct {
	*lab
	init *process
	pid  int // of its process 1, in the namespace of the test
}

// boot starts a host. Its changes to files do not affect this machine.
func (l *lab) boot() *host {
	l.t.Helper()
	for _, name := range []string{"systemd-analyze", "unshare", "nsenter", "logrotate"} {
		findTool(l.t, name)
	}
	cgroup := l.newCgroup()
	h := &host{lab: l}
	// The shell joins the control group before the cgroup namespace is made, so that the group
	// is the root of the namespace.
	h.init = l.start("/bin/sh", []string{"-c", `echo $$ >"$1/cgroup.procs" &&
		exec unshare --mount --pid --uts --ipc --cgroup --fork --kill-child=KILL testdata/boot.sh "$2"`, "sh", cgroup, l.t.TempDir()})
	l.poll(func() error {
		if h.init.hasEnded() {
			l.t.Fatalf("systemd ended:\n%s%s", &h.init.stdout, &h.init.stderr)
		}
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", h.init.cmd.Process.Pid))
		if err != nil {
			return err
		}
		if h.pid, err = strconv.Atoi(strings.TrimSpace(string(children))); err != nil {
			return err
		}
		if state, err := h.try("systemctl", "is-active", "basic.target"); err != nil {
			return fmt.Errorf("%w: %s", err, state)
		}
		return nil
	})
	return h
}

// newCgroup makes a control group, which is removed at the end of the test.
func (l *lab) newCgroup() string {
	l.t.Helper()
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		l.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); fields[2] == "cgroup2" {
			folder, err := os.MkdirTemp(fields[1], "xdp_audit_test")
			if err != nil {
				l.t.Fatal(err)
			}
			l.t.Cleanup(func() {
				// l.ctx has ended.
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				if err := netlab.Poll(ctx, func() error { return removeCgroup(folder) }); err != nil {
					l.t.Error(err)
				}
			})
			return folder
		}
	}
	skip(l.t, errors.New("no cgroup2 is mounted"))
	return ""
}

// removeCgroup removes a control group whose processes have ended. The kernel may notice the end
// a moment later.
func removeCgroup(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeCgroup(filepath.Join(folder, entry.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(folder)
}

// try runs a command on the host.
func (h *host) try(name string, args ...string) (string, error) {
	all := append([]string{"--target", strconv.Itoa(h.pid), "--all", "--root", "--wd", "--", name}, args...)
	output, err := exec.CommandContext(h.ctx, "nsenter", all...).CombinedOutput()
	return string(output), err
}

func (h *host) run(name string, args ...string) string {
	h.t.Helper()
	output, err := h.try(name, args...)
	if err != nil {
		state, _ := h.try("systemctl", "status", "--no-pager", "--full", unit)
		h.t.Fatalf("%s %v: %v\n%s\n%s", name, args, err, output, state)
	}
	return output
}

// path returns the path of a file of the host in the namespace of the test.
func (h *host) path(name string) string { return fmt.Sprintf("/proc/%d/root%s", h.pid, name) }

// files lists the directories in which a package may leave files.
func (h *host) files() []string {
	h.t.Helper()
	return strings.Split(h.run("find", "/etc", "/usr/bin", "/usr/lib/sysusers.d", "/lib/systemd", "/usr/share/doc", "/var/log", "/var/lib"), "\n")
}

const unit = "xdp_audit_exporter.service"

// documented runs the only block of commands in docs/fleet.md that contains a word, as root on
// the host.
func (h *host) documented(word string) {
	h.t.Helper()
	text, err := os.ReadFile("../docs/fleet.md")
	if err != nil {
		h.t.Fatal(err)
	}
	var found []string
	for _, block := range regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		if block[1] == "" && strings.Contains(block[2], word) {
			found = append(found, block[2])
		}
	}
	if len(found) != 1 {
		h.t.Fatalf("%d blocks of docs/fleet.md have %s, want 1", len(found), word)
	}
	h.run("sh", "-euc", strings.ReplaceAll(found[0], "sudo ", ""))
}

// configure writes the settings of the unit.
func (h *host) configure(settings string) {
	h.t.Helper()
	if err := os.WriteFile(h.path("/etc/default/xdp_audit_exporter"), []byte(settings), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// copyIn copies a package to /package.deb of the host.
func (h *host) copyIn(deb string) {
	h.t.Helper()
	content, err := os.ReadFile(deb)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(h.path("/package.deb"), content, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// expectConfined expects the process of the unit to have the privileges that it needs and no
// others. It returns the process id.
func (h *host) expectConfined() (pid string) {
	h.t.Helper()
	pid = strings.TrimSpace(h.run("systemctl", "show", "--property=MainPID", "--value", unit))
	status := h.run("cat", "/proc/"+pid+"/status")
	for _, want := range []string{"CapBnd:\t000000c000001000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
		if !strings.Contains(status, want) {
			h.t.Errorf("the process has not %q:\n%s", want, status)
		}
	}
	user := strings.TrimSpace(h.run("id", "--user", "xdp_audit"))
	if want := "Uid:\t" + strings.Join([]string{user, user, user, user}, "\t") + "\n"; user == "0" || !strings.Contains(status, want) {
		h.t.Errorf("the process is not user %s:\n%s", user, status)
	}
	return pid
}
