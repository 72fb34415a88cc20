// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package kubernetes

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	batch "k8s.io/api/batch/v1"
)

// The Job of the probe has no privilege, does not run twice, and has flags that the probe knows.
func TestProbeJob(t *testing.T) {
	job := find[*batch.Job](t, render(t, "probe"))
	pod := job.Spec.Template.Spec
	if len(pod.Containers) != 1 {
		t.Fatalf("%d containers, want 1", len(pod.Containers))
	}
	container := pod.Containers[0]
	if job.Spec.BackoffLimit == nil || *job.Spec.BackoffLimit != 0 || pod.RestartPolicy != "Never" {
		t.Error("the job may run twice, which hides a leak")
	}
	context := container.SecurityContext
	if context == nil || context.Capabilities == nil || len(context.Capabilities.Add) > 0 || len(context.Capabilities.Drop) != 1 ||
		*context.AllowPrivilegeEscalation || !*pod.SecurityContext.RunAsNonRoot || pod.HostNetwork {
		t.Errorf("the probe has a privilege: %+v, %+v", pod.SecurityContext, context)
	}
	if strings.Join(container.Command, " ") != "/xdp_audit_probe" {
		t.Errorf("the command is %v", container.Command)
	}

	version, err := os.ReadFile("../../../VERSION")
	if want := "xdp-audit-exporter:" + strings.TrimSpace(string(version)); err != nil || container.Image != want {
		t.Errorf("%v, the image is %s, want %s", err, container.Image, want)
	}

	binary := filepath.Join(t.TempDir(), "probe")
	if output, err := exec.Command("go", "build", "-C", "../../..", "-o", binary, "./cmd/xdp_audit_probe").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	// The flags are read before their values are compared.
	output, err := exec.Command(binary, append(container.Args, "--rate=0")...).CombinedOutput()
	if err == nil || !strings.Contains(string(output), "--rate: 0") {
		t.Errorf("%v, want the error of the rate only:\n%s", err, output)
	}
}
