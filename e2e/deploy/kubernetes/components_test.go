// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package kubernetes

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

const pins = "pins"

// overlay renders a directory with components, in an overlay with no other content.
func overlay(t *testing.T, folder string, components ...string) []runtime.Object {
	t.Helper()
	memory := filesys.MakeFsInMemory()
	files, err := filepath.Glob(manifests + "/*/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err == nil {
			err = memory.WriteFile(filepath.Join("/kubernetes", filepath.Base(filepath.Dir(file)), filepath.Base(file)), text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	text := fmt.Sprintf("resources: [../%s]\ncomponents: [../%s]\n", folder, strings.Join(components, ", ../"))
	if err := memory.WriteFile("/kubernetes/overlay/kustomization.yaml", []byte(text)); err != nil {
		t.Fatal(err)
	}
	return renderIn(t, memory, "/kubernetes/overlay")
}

func containerOf(t *testing.T, objects []runtime.Object) *core.Container {
	t.Helper()
	return &find[*apps.DaemonSet](t, objects).Spec.Template.Spec.Containers[0]
}

// expectElsewhereEqual expects that objects are equal to those of a directory without
// components.
func expectElsewhereEqual(t *testing.T, folder string, objects []runtime.Object) {
	t.Helper()
	for i, plain := range render(t, folder) {
		if got, want := marshal(t, objects[i]), marshal(t, plain); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
}

func TestPins(t *testing.T) {
	for _, folder := range []string{base, pool} {
		t.Run(folder, func(t *testing.T) {
			objects := overlay(t, folder, pins)
			pod, container := &find[*apps.DaemonSet](t, objects).Spec.Template.Spec, containerOf(t, objects)
			const want = `env:
- name: XDP_AUDIT_PIN_PATH
  value: /run/xdp_audit_bpf/pins
mounts:
- mountPath: /run/xdp_audit_bpf
  name: pins
volumes:
- hostPath:
    path: /sys/fs/bpf/xdp_audit
    type: DirectoryOrCreate
  name: pins
`
			if got := marshal(t, map[string]any{"env": container.Env, "mounts": container.VolumeMounts, "volumes": pod.Volumes}); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			container.Env, container.VolumeMounts, pod.Volumes = nil, nil, nil
			expectElsewhereEqual(t, folder, objects)
		})
	}
}

var packetsLine = regexp.MustCompile(`(?m)^xdp_audit_packets_total\{.*\} (\S+)$`)

// packets returns the number of packets that an exporter has counted.
func packets(client *http.Client, url string) (sum float64, err error) {
	page, err := get(client, url+"/metrics")
	if err != nil {
		return 0, err
	}
	for _, match := range packetsLine.FindAllStringSubmatch(page, -1) {
		n, err := strconv.ParseFloat(match[1], 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// Pods run one after another with the pins of a node, confined as in the manifest. Packets that
// arrive while no pod runs are counted.
func TestPinsInAContainer(t *testing.T) {
	needRoot(t)
	binary := buildExporter(t)
	objects := overlay(t, base, pins)
	container, volume := containerOf(t, objects), find[*apps.DaemonSet](t, objects).Spec.Template.Spec.Volumes[0]
	node, peer, client := newNode(t)
	err := node.Do(func() error {
		return firstError(
			func() error { return unix.Unshare(unix.CLONE_NEWNS) },
			func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
			// The node mounts the file system, the kubelet makes the directory, and the
			// container runtime mounts it into the container.
			func() error { return unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, "mode=0700") },
			func() error { return os.MkdirAll(volume.HostPath.Path, 0o755) }, //nolint:gosec // as the kubelet does
			func() error { return unix.Mount("tmpfs", "/run", "tmpfs", 0, "") },
			func() error { return os.Mkdir(container.VolumeMounts[0].MountPath, 0o700) },
			func() error {
				return unix.Mount(volume.HostPath.Path, container.VolumeMounts[0].MountPath, "", unix.MS_BIND, "")
			},
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	server, err := node.ListenPacket("192.0.2.1:0") // only keeps the port open
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	sender, err := peer.Dial(t.Context(), "udp", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	const burst = 100
	send := func() {
		t.Helper()
		for range burst { // fits into the queue of the device
			if _, err := sender.Write(make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
		}
	}
	environment := maps.Clone(find[*core.ConfigMap](t, objects).Data)
	for _, variable := range container.Env {
		environment[variable.Name] = variable.Value
	}
	url := fmt.Sprintf("http://127.0.0.1:%d", container.Ports[0].ContainerPort)
	const pods = 3
	for pod := range pods {
		cmd, log := startContainer(t, node, capabilitiesOf(container), environment, append([]string{binary}, container.Args...))
		awaitAnswer(t, cmd, log, client, url+container.ReadinessProbe.HTTPGet.Path)
		send()
		err := netlab.Poll(deadline(t), func() error {
			got, err := packets(client, url)
			if err != nil {
				return err
			}
			eth0, err1 := node.Link("eth0")
			peer0, err2 := peer.Link("peer0")
			if err := errors.Join(err1, err2); err != nil {
				return err
			}
			received, dropped, sent := eth0.Attrs().Statistics.RxPackets, peer0.Attrs().Statistics.TxDropped, uint64(burst*(2*pod+1))
			if got != float64(received) || received+dropped != sent {
				err = fmt.Errorf("%v packets were counted; of %d the driver received %d and dropped %d", got, sent, received, dropped)
			}
			return err
		})
		if err != nil {
			t.Errorf("pod %d: %v\n%s", pod, err, log)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("pod %d ended with %v\n%s", pod, err, log)
		}
		send()
	}
	// The command with which docs/fleet.md ends the audit of a node.
	if err := node.Do(func() error { return os.RemoveAll(volume.HostPath.Path) }); err != nil {
		t.Error(err)
	}
	err = netlab.Poll(deadline(t), func() error {
		link, err := node.Link("eth0")
		if err == nil && link.Attrs().Xdp != nil && link.Attrs().Xdp.Attached {
			err = fmt.Errorf("program %d is left on eth0", link.Attrs().Xdp.ProgId)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// firstError runs steps until one fails.
func firstError(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
