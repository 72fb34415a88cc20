// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package kubernetes

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	cryptotls "crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"golang.org/x/sys/unix"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

const tls = "tls"

func TestTLS(t *testing.T) {
	for folder, port := range map[string]string{base: "9400", pool: "9410"} {
		t.Run(folder, func(t *testing.T) {
			objects, plain := overlay(t, folder, tls), containerOf(t, render(t, folder))
			pod, container := &find[*apps.DaemonSet](t, objects).Spec.Template.Spec, containerOf(t, objects)
			const want = `mounts:
- mountPath: /etc/xdp_audit
  name: web
  readOnly: true
volumes:
- name: web
  secret:
    defaultMode: 256
    secretName: xdp-audit-exporter-web
`
			if got := marshal(t, map[string]any{"mounts": container.VolumeMounts, "volumes": pod.Volumes}); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			web := []string{"--web.listen-address=:" + port, "--web.config.file=/etc/xdp_audit/web-config.yml"}
			if !slices.Equal(container.Args, web) {
				t.Errorf("the arguments are %v, want %v", container.Args, web)
			}
			// The probes use the arguments of the exporter, and are as frequent as without TLS.
			probe := append([]string{"/xdp_audit_exporter", "--healthcheck"}, web...)
			for _, p := range []struct{ got, plain *core.Probe }{
				{container.StartupProbe, plain.StartupProbe}, {container.LivenessProbe, plain.LivenessProbe}, {container.ReadinessProbe, plain.ReadinessProbe},
			} {
				if p.got.Exec == nil || !slices.Equal(p.got.Exec.Command, probe) || p.got.HTTPGet != nil || p.got.TimeoutSeconds != 5 {
					t.Errorf("a probe is\n%s\nwant it to execute %v, within 5 s", marshal(t, p.got), probe)
				}
				p.got.ProbeHandler, p.got.TimeoutSeconds = p.plain.ProbeHandler, p.plain.TimeoutSeconds
			}
			const wantEndpoint = `basicAuth:
  password:
    key: password
    name: xdp-audit-exporter-scrape
  username:
    key: username
    name: xdp-audit-exporter-scrape
scheme: https
tlsConfig:
  ca:
    secret:
      key: ca.crt
      name: xdp-audit-exporter-scrape
  cert: {}
  serverName: xdp-audit-exporter
`
			endpoint := &find[*monitoring.PodMonitor](t, objects).Spec.PodMetricsEndpoints[0]
			if got := marshal(t, map[string]any{"scheme": endpoint.Scheme, "tlsConfig": endpoint.TLSConfig, "basicAuth": endpoint.BasicAuth}); got != wantEndpoint {
				t.Errorf("got\n%s\nwant\n%s", got, wantEndpoint)
			}
			endpoint.Scheme, endpoint.TLSConfig, endpoint.BasicAuth = nil, nil, nil
			container.Args, container.VolumeMounts, pod.Volumes = container.Args[:1], nil, nil
			expectElsewhereEqual(t, folder, objects)
		})
	}
}

// The components can be combined in either order.
func TestComponentsTogether(t *testing.T) {
	for _, folder := range []string{base, pool} {
		one, other := overlay(t, folder, pins, tls), overlay(t, folder, tls, pins)
		for _, objects := range [][]runtime.Object{one, other} {
			pod, c := &find[*apps.DaemonSet](t, objects).Spec.Template.Spec, containerOf(t, objects)
			if len(pod.Volumes) != 2 || len(c.VolumeMounts) != 2 || len(c.Env) != 1 || len(c.Args) != 2 || c.LivenessProbe.Exec == nil {
				t.Errorf("%s: the pod is\n%s", folder, marshal(t, pod))
			}
			pod.Volumes, c.VolumeMounts = nil, nil // their order differs
		}
		for i := range one {
			if a, b := marshal(t, one[i]), marshal(t, other[i]); a != b {
				t.Errorf("%s: the order of the components makes\n%s\nof\n%s", folder, b, a)
			}
		}
	}
}

// The keys that the manifests read from Secrets are those that the commands in docs/fleet.md
// write.
func TestSecretsAreThoseOfTheDocument(t *testing.T) {
	text, err := os.ReadFile("../../../docs/fleet.md")
	if err != nil {
		t.Fatal(err)
	}
	made := map[string][]string{}
	for _, command := range regexp.MustCompile(`kubectl --namespace=xdp-audit create secret generic (\S+) ((?:\\\n|\S| )+)`).FindAllStringSubmatch(string(text), -1) {
		for _, key := range regexp.MustCompile(`--from-(?:file|literal)=([^=\s]+)`).FindAllStringSubmatch(command[2], -1) {
			made[command[1]] = append(made[command[1]], key[1])
		}
	}
	objects := overlay(t, base, tls)
	if got := find[*core.Namespace](t, objects).Name; got != "xdp-audit" {
		t.Errorf("the namespace is %s", got)
	}
	pod, container := find[*apps.DaemonSet](t, objects).Spec.Template.Spec, containerOf(t, objects)
	config, _ := strings.CutPrefix(container.Args[1], "--web.config.file="+container.VolumeMounts[0].MountPath+"/")
	files := []string{config}
	example, err := os.ReadFile("../../../deploy/web-config.example.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range regexp.MustCompile(`(?m)^  (?:cert|key)_file: (\S+)$`).FindAllStringSubmatch(string(example), -1) {
		files = append(files, file[1])
	}
	endpoint := find[*monitoring.PodMonitor](t, objects).Spec.PodMetricsEndpoints[0]
	want := map[string][]string{pod.Volumes[0].Secret.SecretName: files}
	for _, selector := range []core.SecretKeySelector{*endpoint.TLSConfig.CA.Secret, endpoint.BasicAuth.Username, endpoint.BasicAuth.Password} {
		want[selector.Name] = append(want[selector.Name], selector.Key)
	}
	if got, want := marshal(t, made), marshal(t, want); got != want {
		t.Errorf("docs/fleet.md makes\n%s\nand the manifests take\n%s", got, want)
	}
}

// makeCertificate returns a self-signed certificate and its key in PEM.
func makeCertificate(t *testing.T, name string) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	rawKey, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: rawKey})
}

// trusting returns the TLS configuration of a client as an endpoint of a PodMonitor describes
// it.
func trusting(certificate []byte, endpoint monitoring.PodMetricsEndpoint) *cryptotls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certificate)
	return &cryptotls.Config{RootCAs: roots, ServerName: *endpoint.TLSConfig.ServerName}
}

// mountSecret makes a mount point for a Secret in a mount namespace of the node.
func mountSecret(path string) error {
	return firstError(
		func() error { return unix.Unshare(unix.CLONE_NEWNS) },
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Mount("tmpfs", filepath.Dir(path), "tmpfs", 0, "") },
		func() error { return os.Mkdir(path, 0o755) }, //nolint:gosec // as the kubelet does
	)
}

// writeSecret replaces the files of a Secret as the kubelet does: it writes them to a new
// directory and swaps a symbolic link.
func writeSecret(path string, files map[string][]byte) error {
	data := filepath.Join(path, "..data")
	before, _ := os.Readlink(data) // empty at first
	now, err := os.MkdirTemp(path, "..")
	for name, content := range files {
		if err == nil {
			err = os.WriteFile(filepath.Join(now, name), content, 0o400)
		}
		if err == nil && before == "" {
			err = os.Symlink(filepath.Join("..data", name), filepath.Join(path, name))
		}
	}
	if err != nil {
		return err
	}
	return firstError(
		func() error { return os.Chmod(now, 0o755) }, //nolint:gosec // as the kubelet does
		func() error { return os.Symlink(filepath.Base(now), data+"_tmp") },
		func() error { return os.Rename(data+"_tmp", data) },
		func() error {
			if before == "" {
				return nil
			}
			return os.RemoveAll(filepath.Join(path, before))
		},
	)
}

// The pod serves over TLS and only to users, its probes succeed, and Prometheus can scrape as
// the PodMonitor describes.
func TestTLSInAContainer(t *testing.T) {
	needRoot(t)
	binary := buildExporter(t)
	objects := overlay(t, base, tls)
	container := containerOf(t, objects)
	endpoint := find[*monitoring.PodMonitor](t, objects).Spec.PodMetricsEndpoints[0]
	node, _, _ := newNode(t)
	certificate, key := makeCertificate(t, *endpoint.TLSConfig.ServerName)
	config, err := os.ReadFile("../../../deploy/web-config.example.yml")
	if err != nil {
		t.Fatal(err)
	}
	folder := container.VolumeMounts[0].MountPath
	err = node.Do(func() error {
		return firstError(
			func() error { return mountSecret(folder) },
			func() error {
				return writeSecret(folder, map[string][]byte{"web-config.yml": config, "tls.crt": certificate, "tls.key": key})
			},
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DialContext: node.Dial, TLSClientConfig: trusting(certificate, endpoint)}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}

	environment := find[*core.ConfigMap](t, objects).Data
	cmd, log := startContainer(t, node, capabilitiesOf(container), environment, append([]string{binary}, container.Args...))
	address := fmt.Sprintf("127.0.0.1:%d", container.Ports[0].ContainerPort)
	await(t, cmd, log, func() error {
		probe, log := startContainer(t, node, capabilitiesOf(container), environment, append([]string{binary}, container.StartupProbe.Exec.Command[1:]...))
		if err := probe.Wait(); err != nil {
			return fmt.Errorf("%w: %s", err, log)
		}
		return nil
	})
	for _, test := range []struct {
		description, url, password string
		want                       int
	}{
		{"what the kubelet would ask without TLS", "http://" + address + "/-/healthy", "", http.StatusBadRequest},
		{"and without a user", "https://" + address + "/-/healthy", "", http.StatusUnauthorized},
		{"Prometheus", endpoint.Scheme.String() + "://" + address + "/metrics", "example-password-change-me", http.StatusOK},
	} {
		t.Run(test.description, func(t *testing.T) {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, test.url, nil)
			if err != nil {
				t.Fatal(err)
			}
			if test.password != "" {
				request.SetBasicAuth("prometheus", test.password)
			}
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			page, err := io.ReadAll(response.Body)
			if err != nil || response.StatusCode != test.want {
				t.Errorf("%v, status %d, want %d:\n%s", err, response.StatusCode, test.want, page)
			}
		})
	}

	certificate, key = makeCertificate(t, *endpoint.TLSConfig.ServerName)
	transport.TLSClientConfig = trusting(certificate, endpoint)
	transport.CloseIdleConnections()
	if response, err := client.Get("https://" + address + "/-/healthy"); err == nil {
		response.Body.Close()
		t.Error("the old certificate is taken for the new one")
	}
	err = node.Do(func() error {
		return writeSecret(folder, map[string][]byte{"web-config.yml": config, "tls.crt": certificate, "tls.key": key})
	})
	if err != nil {
		t.Fatal(err)
	}
	if response, err := client.Get("https://" + address + "/-/healthy"); err != nil {
		t.Errorf("after the Secret is replaced: %v", err)
	} else {
		response.Body.Close()
	}

	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("ended with %v\n%s", err, log)
	}
	probe, _ := startContainer(t, node, capabilitiesOf(container), environment, append([]string{binary}, container.LivenessProbe.Exec.Command[1:]...))
	if err := probe.Wait(); err == nil {
		t.Error("the probe succeeds where nothing answers")
	}
}
