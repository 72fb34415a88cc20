// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package kubernetes tests the manifests of deploy/kubernetes: they render, the API knows every
// field, and the exporter runs with the privileges that they grant.
package kubernetes

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	scheduling "k8s.io/api/scheduling/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const manifests = "../../../deploy/kubernetes"

// Folders of manifests.
const (
	base = "base"
	pool = "pool"
)

var update = flag.Bool("update", false, "write base/prometheusrule.yaml from the rules")

func newScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{batch.AddToScheme, core.AddToScheme, apps.AddToScheme, scheduling.AddToScheme, monitoring.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return scheme
}

// decode returns the only object of a document, or an error if the API does not know its kind or
// a field.
func decode(scheme *runtime.Scheme, document []byte) (runtime.Object, error) {
	serializer := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	object, _, err := serializer.Decode(document, nil, nil)
	return object, err
}

// decodeAll decodes a stream of documents.
func decodeAll(t *testing.T, stream []byte) (objects []runtime.Object) {
	t.Helper()
	scheme := newScheme(t)
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(stream)))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatal(err)
		}
		object, err := decode(scheme, document)
		if err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		objects = append(objects, object)
	}
}

// render returns the objects that `kubectl apply -k` of a directory applies.
func render(t *testing.T, folder string) []runtime.Object {
	t.Helper()
	return renderIn(t, filesys.MakeFsOnDisk(), filepath.Join(manifests, folder))
}

func renderIn(t *testing.T, files filesys.FileSystem, folder string) []runtime.Object {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(files, folder)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := resources.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	return decodeAll(t, stream)
}

// find returns the only object of a type.
func find[T runtime.Object](t *testing.T, objects []runtime.Object) (found T) {
	t.Helper()
	count := 0
	for _, object := range objects {
		if typed, ok := object.(T); ok {
			found = typed
			count++
		}
	}
	if count != 1 {
		t.Fatalf("%d objects of type %T, want 1", count, found)
	}
	return found
}

func TestWhatIsApplied(t *testing.T) {
	for _, test := range []struct {
		folder string
		want   []string
	}{
		{base, []string{
			"Namespace /xdp-audit",
			"PriorityClass /xdp-audit-exporter",
			"ServiceAccount xdp-audit/xdp-audit-exporter",
			"ConfigMap xdp-audit/xdp-audit-exporter-2hbhtk66kh",
			"DaemonSet xdp-audit/xdp-audit-exporter",
			"PodMonitor xdp-audit/xdp-audit-exporter",
			"PrometheusRule xdp-audit/xdp-audit-exporter",
		}},
		{pool, []string{
			"Namespace /xdp-audit-gpu",
			"ServiceAccount xdp-audit-gpu/xdp-audit-exporter",
			"ConfigMap xdp-audit-gpu/xdp-audit-exporter-79bfkc225f",
			"DaemonSet xdp-audit-gpu/xdp-audit-exporter",
			"PodMonitor xdp-audit-gpu/xdp-audit-exporter",
		}},
	} {
		t.Run(test.folder, func(t *testing.T) {
			var got []string
			for _, object := range render(t, test.folder) {
				o, ok := object.(meta.Object)
				if !ok {
					t.Fatalf("%T has no metadata", object)
				}
				got = append(got, fmt.Sprintf("%s %s/%s", object.GetObjectKind().GroupVersionKind().Kind, o.GetNamespace(), o.GetName()))
			}
			slices.Sort(got)
			slices.Sort(test.want)
			if !slices.Equal(got, test.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
		})
	}
}

// The files are decoded one by one, because kustomize could merge an unknown field into another.
func TestEveryFileIsKnownToTheAPI(t *testing.T) {
	files, err := filepath.Glob(manifests + "/base/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, file := range files {
		if filepath.Base(file) == "kustomization.yaml" {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		count += len(decodeAll(t, text))
	}
	if count != 6 {
		t.Errorf("%d documents in %v, want 6", count, files)
	}
}

func TestWhatTheAPIDoesNotKnowIsRefused(t *testing.T) {
	daemonSet, err := os.ReadFile(manifests + "/base/daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	podMonitor, err := os.ReadFile(manifests + "/base/podmonitor.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		description, file, old, new, want string
	}{
		{"a misspelt field of the pod", string(daemonSet), "hostNetwork:", "hostNetworks:", `unknown field "spec.template.spec.hostNetworks"`},
		{"a field that is given twice", string(daemonSet), "hostNetwork: true", "hostNetwork: true\n      hostNetwork: false", "already set"},
		{"a misspelt field of an endpoint", string(podMonitor), "interval:", "intervall:", `unknown field "spec.podMetricsEndpoints[0].intervall"`},
		{"a kind of another version", string(daemonSet), "apps/v1", "apps/v1beta2", "no kind"},
		{"a number where a name belongs", string(daemonSet), "dnsPolicy: Default", "dnsPolicy: 1", "cannot unmarshal number"},
	} {
		t.Run(test.description, func(t *testing.T) {
			document := strings.Replace(test.file, test.old, test.new, 1)
			if document == test.file {
				t.Fatalf("the file has no %q", test.old)
			}
			if _, err := decode(newScheme(t), []byte(document)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}

func TestLeastPrivilege(t *testing.T) {
	pod := find[*apps.DaemonSet](t, render(t, base)).Spec.Template.Spec
	const want = `allowPrivilegeEscalation: false
capabilities:
  add:
  - BPF
  - PERFMON
  - NET_ADMIN
  drop:
  - ALL
privileged: false
readOnlyRootFilesystem: true
`
	if len(pod.Containers) != 1 || len(pod.InitContainers) != 0 {
		t.Fatalf("%d containers, %d before them, want 1 and 0", len(pod.Containers), len(pod.InitContainers))
	}
	if got := marshal(t, pod.Containers[0].SecurityContext); got != want {
		t.Errorf("the container has\n%s\nwant\n%s", got, want)
	}
	const wantPod = `runAsGroup: 0
runAsUser: 0
seccompProfile:
  type: RuntimeDefault
`
	if got := marshal(t, pod.SecurityContext); got != wantPod {
		t.Errorf("the pod has\n%s\nwant\n%s", got, wantPod)
	}
	if pod.HostPID || pod.HostIPC || !pod.HostNetwork {
		t.Errorf("host namespaces: process %v, IPC %v, network %v, want the network's alone", pod.HostPID, pod.HostIPC, pod.HostNetwork)
	}
	if len(pod.Volumes) != 0 {
		t.Errorf("the pod mounts %v", pod.Volumes)
	}
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		t.Error("the pod gets a token of the API server")
	}
}

func marshal(t *testing.T, object any) string {
	t.Helper()
	text, err := yaml.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// References to other documents name objects that exist.
func TestReferences(t *testing.T) {
	for _, test := range []struct {
		folder, namespace string
		port              int32
	}{
		{base, "xdp-audit", 9400},
		{pool, "xdp-audit-gpu", 9410},
	} {
		t.Run(test.folder, func(t *testing.T) {
			objects := render(t, test.folder)
			set := find[*apps.DaemonSet](t, objects)
			monitor := find[*monitoring.PodMonitor](t, objects)
			pod, container := set.Spec.Template.Spec, set.Spec.Template.Spec.Containers[0]

			for description, selector := range map[string]*meta.LabelSelector{"DaemonSet": set.Spec.Selector, "PodMonitor": &monitor.Spec.Selector} {
				s, err := meta.LabelSelectorAsSelector(selector)
				if err != nil {
					t.Fatal(err)
				}
				if s.Empty() || !s.Matches(labels.Set(set.Spec.Template.Labels)) {
					t.Errorf("the selector %q of the %s does not select %v", s, description, set.Spec.Template.Labels)
				}
			}
			if got, want := pod.ServiceAccountName, find[*core.ServiceAccount](t, objects).Name; got != want {
				t.Errorf("service account %s, want %s", got, want)
			}
			if got, want := pod.PriorityClassName, find[*scheduling.PriorityClass](t, render(t, base)).Name; got != want {
				t.Errorf("priority class %s, want %s", got, want)
			}
			if got, want := container.EnvFrom[0].ConfigMapRef.Name, find[*core.ConfigMap](t, objects).Name; got != want {
				t.Errorf("environment of %s, want of %s", got, want)
			}
			port := container.Ports[0]
			if port.ContainerPort != test.port || !slices.Contains(container.Args, fmt.Sprintf("--web.listen-address=:%d", test.port)) {
				t.Errorf("the port is %d, the arguments are %v, want %d in both", port.ContainerPort, container.Args, test.port)
			}
			if got := *monitor.Spec.PodMetricsEndpoints[0].Port; got != port.Name {
				t.Errorf("the PodMonitor asks at port %q, want %q", got, port.Name)
			}
			for path, probe := range map[string]*core.Probe{
				"/-/healthy": container.LivenessProbe, "/-/ready": container.ReadinessProbe,
			} {
				if probe.HTTPGet.Path != path || probe.HTTPGet.Port != intstr.FromString(port.Name) {
					t.Errorf("a probe asks for %v at %v, want %s at %s", probe.HTTPGet.Path, probe.HTTPGet.Port.String(), path, port.Name)
				}
			}
			if got := find[*core.Namespace](t, objects).Labels["pod-security.kubernetes.io/enforce"]; got != "privileged" {
				t.Errorf("the namespace enforces %q, under which no pod on the host's network starts", got)
			}
		})
	}
}

func TestImageIsOfThisVersion(t *testing.T) {
	version, err := os.ReadFile("../../../VERSION")
	if err != nil {
		t.Fatal(err)
	}
	for folder, name := range map[string]string{base: "xdp-audit-exporter", pool: "registry.example.org/audit/xdp-audit-exporter"} {
		want := name + ":" + strings.TrimSpace(string(version))
		if got := find[*apps.DaemonSet](t, render(t, folder)).Spec.Template.Spec.Containers[0].Image; got != want {
			t.Errorf("%s: the image is %s, want %s", folder, got, want)
		}
	}
}

const ruleHeader = `---
# Code generated from deploy/rules by make kubernetes-rules. DO NOT EDIT.
# The rules are explained there.
`

// The PrometheusRule contains the rules that a Prometheus server without the operator reads from
// files.
func TestRulesAreThoseOfTheFiles(t *testing.T) {
	files, err := filepath.Glob("../../../deploy/rules/*.yml")
	if err != nil {
		t.Fatal(err)
	}
	groups := []any{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var rules struct {
			Groups []any `json:"groups"`
		}
		if err := yaml.UnmarshalStrict(text, &rules); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if len(rules.Groups) == 0 {
			t.Errorf("%s has no group", file)
		}
		groups = append(groups, rules.Groups...)
	}
	want := ruleHeader + marshal(t, map[string]any{
		"apiVersion": "monitoring.coreos.com/v1",
		"kind":       "PrometheusRule",
		"metadata":   map[string]any{"name": "xdp-audit-exporter"},
		"spec":       map[string]any{"groups": groups},
	})
	if *update {
		if err := os.WriteFile(manifests+"/base/prometheusrule.yaml", []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(manifests + "/base/prometheusrule.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("base/prometheusrule.yaml is not what the rules are: run make kubernetes-rules")
	}
	if rule := find[*monitoring.PrometheusRule](t, decodeAll(t, got)); len(rule.Spec.Groups) != len(groups) {
		t.Errorf("%d groups, want %d", len(rule.Spec.Groups), len(groups))
	}
}
