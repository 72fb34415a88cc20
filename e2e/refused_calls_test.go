// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// What the surroundings of the process refuse is named as such, and not as a limit of locked memory
// or an old kernel.
func TestSurroundingsThatRefuseAreNamed(t *testing.T) {
	if os.Getuid() != 0 {
		skip(t, fmt.Errorf("the test needs root"))
	}
	script := func(line string) func(*exec.Cmd) {
		return func(cmd *exec.Cmd) {
			cmd.Args = append([]string{"/bin/sh", "-c", line + ` && exec "$0" "$@"`}, cmd.Args...)
			cmd.Path = "/bin/sh"
		}
	}
	for _, test := range []struct {
		description string
		edit        func(*exec.Cmd)
		want        []string
	}{
		{"a user namespace", func(cmd *exec.Cmd) {
			cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			ids := []syscall.SysProcIDMap{{Size: 1}}
			cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = ids, ids
		}, []string{"bpf(2)", "user namespace"}},
		{"no /proc", func(cmd *exec.Cmd) {
			script("mount -t tmpfs none /proc")(cmd)
			cmd.SysProcAttr.Unshareflags |= syscall.CLONE_NEWNS
		}, []string{"/proc is not mounted"}},
		{"10 open files", script("ulimit -n 10"), []string{"10 open files", "ulimit -n", "LimitNOFILE="}},
		{"20 open files", script("ulimit -n 20"), []string{"20 open files", "ulimit -n", "LimitNOFILE="}},
		{"30 open files", script("ulimit -n 30"), []string{"30 open files", "ulimit -n", "LimitNOFILE="}},
	} {
		t.Run(test.description, func(t *testing.T) {
			l := newLab(t)
			p := l.start(binaries.exporter, []string{"--web.listen-address=" + address, "--audit.device=" + device}, test.edit)
			p.expectRefusal(test.want...)
			for _, wrong := range []string{"locked memory", "MEMLOCK", "requires >=", "cgroup"} {
				if line := p.stderr.String(); strings.Contains(line, wrong) {
					t.Errorf("the line contains %q: %s", wrong, line)
				}
			}
			l.expectNothingAttached()
		})
	}
}
