// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// testRunc runs the auditor's container with the capabilities of docker-compose.yml by the runtime
// alone: the engine of Debian 12 does not know them, and its runc does. One capability less is
// too few.
func (e *engine) testRunc(t *testing.T) {
	var containers []struct {
		Config struct{ Entrypoint, Cmd, Env []string }
	}
	if err := json.Unmarshal([]byte(e.must(t, "docker", "inspect", "xdp-auditor")), &containers); err != nil {
		t.Fatal(err)
	}
	image := containers[0].Config
	bundle := filepath.Join(e.folder, "bundle")
	e.shell(t, "mkdir -p "+bundle+"/rootfs && docker export xdp-auditor | tar -x -C "+bundle+"/rootfs")
	for _, missing := range []string{"", "BPF", "PERFMON", "NET_ADMIN"} {
		t.Run("without "+missing, func(t *testing.T) {
			capabilities := slices.DeleteFunc(slices.Clone(asConfigured), func(name string) bool { return name == missing })
			r := e.startRunc(t, bundle, capabilities, append(slices.Clone(image.Entrypoint), image.Cmd...), image.Env)
			if missing == "" {
				r.expectAudit(t)
				return
			}
			var exit *exec.ExitError
			if err := r.cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(r.log.String(), "CAP_"+missing) {
				t.Errorf("ended with %v, want 1 and a line that names CAP_%s:\n%s", err, missing, &r.log)
			}
		})
	}
}

// runcContainer is a container that runc runs.
type runcContainer struct {
	cmd    *exec.Cmd
	client *http.Client
	pid    string // of the file with its process
	log    bytes.Buffer
}

// startRunc starts a container as the engine would, in a network namespace with eth0.
func (e *engine) startRunc(t *testing.T, bundle string, capabilities, args, env []string) *runcContainer {
	t.Helper()
	near, far, err := netlab.NewPair("eth0", "peer0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(near.Namespace.Close)
	t.Cleanup(far.Namespace.Close)
	const name = "xdp-auditor"
	text, err := json.Marshal(runcSpec("/"+filepath.Base(e.folder)+"/"+name, capabilities, args, env))
	if err == nil {
		err = os.WriteFile(filepath.Join(bundle, "config.json"), text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	r := &runcContainer{pid: filepath.Join(t.TempDir(), "pid")}
	state := "--root=" + filepath.Join(e.folder, "runc")
	r.cmd = exec.Command("runc", state, "run", "--bundle="+bundle, "--pid-file="+r.pid, name) //nolint:gosec // the test's own
	r.cmd.Stdout, r.cmd.Stderr = &r.log, &r.log
	if err := near.Namespace.Start(r.cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = exec.Command("runc", state, "delete", "--force", name).Run() }) //nolint:gosec // the test's own
	transport := &http.Transport{DialContext: near.Namespace.Dial}
	t.Cleanup(transport.CloseIdleConnections)
	r.client = &http.Client{Transport: transport, Timeout: 10 * time.Second}
	return r
}

// runcSpec is what the engine tells the runtime for the auditor of docker-compose.yml, apart from
// the network namespace.
func runcSpec(cgroup string, capabilities, args, env []string) *specs.Spec {
	var names []string
	for _, name := range capabilities {
		names = append(names, "CAP_"+name)
	}
	spec := &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: "rootfs", Readonly: true},
		Process: &specs.Process{
			Args: args, Env: env, Cwd: "/", NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroup,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
			},
			MaskedPaths:   []string{"/proc/kcore", "/proc/keys", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
	spec.Linux.Seccomp = seccomp.DefaultProfile(spec)
	return spec
}

// expectAudit expects the container to audit eth0 without having kept a capability, and to end.
func (r *runcContainer) expectAudit(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var page []byte
	if err := netlab.Poll(ctx, func() error {
		response, err := r.client.Get("http://127.0.0.1:9400/metrics")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		page, err = io.ReadAll(response.Body)
		return err
	}); err != nil {
		_ = r.cmd.Process.Kill()
		t.Fatalf("%v\n%s", errors.Join(err, r.cmd.Wait()), &r.log)
	}
	if !bytes.Contains(page, []byte(`xdp_audit_hook_up{device="eth0"} 1`)) {
		t.Errorf("no hook in\n%s", page)
	}
	pid, err := os.ReadFile(r.pid)
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%s/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapEff:\t0000000000000000\n", "CapBnd:\t000000c000001000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("the auditor has not %q:\n%s", want, status)
		}
	}
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Wait(); err != nil || !strings.Contains(r.log.String(), "XDP audit hook attached on eth0 with mode=drv") {
		t.Errorf("ended with %v\n%s", err, &r.log)
	}
}
