// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package engine

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// makeImages builds the images that cannot be pulled: stand-ins for those of docker-compose.yml,
// and one for the builder image of the Dockerfile, with the Go of this machine.
func (e *engine) makeImages(t *testing.T) {
	t.Helper()
	began := time.Now()
	if output, err := exec.Command("standin/base.sh", e.folder).CombinedOutput(); err != nil {
		t.Fatalf("unpacking Debian packages: %v\n%s", err, output)
	}
	e.shell(t, "tar -C "+e.folder+"/tree -c . | docker import - standin-base")
	for _, name := range []string{"enclave", "prometheus", "grafana", "nginx", "apache", "drupal", "mariadb"} {
		e.must(t, "docker", "build", "--quiet", "--target=standin-"+name, "--tag=standin-"+name, engineFolder+"/standin")
	}
	// Only a registry provides an image by its digest.
	e.edit(t, "../Dockerfile", func(text string) string { return regexp.MustCompile(`@sha256:[0-9a-f]{64}`).ReplaceAllString(text, "") })
	builder, _, found := strings.Cut(strings.TrimPrefix(e.read(t, "../Dockerfile"), dockerfileHead), " AS build\n")
	if !found || !strings.HasPrefix(builder, "golang:") {
		t.Fatalf("the Dockerfile does not begin with its builder's image:\n%s", builder)
	}
	if output, err := exec.Command("standin/golang.sh", e.folder).CombinedOutput(); err != nil {
		t.Fatalf("preparing the compiler: %v\n%s", err, output)
	}
	e.must(t, "docker", "build", "--quiet", "--tag="+builder, e.folder+"/golang")
	t.Logf("the stand-ins took %v", time.Since(began).Round(time.Second))
}

const dockerfileHead = `# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors

FROM `

// read returns a file of the copy of deploy/.
func (e *engine) read(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(e.deploy, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// edit changes a file of the copy of deploy/.
func (e *engine) edit(t *testing.T, name string, change func(string) string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(e.deploy, name), []byte(change(e.read(t, name))), 0o644); err != nil { //nolint:gosec // public
		t.Fatal(err)
	}
}

// hasten shortens the intervals of health checks, for which every start waits.
func (e *engine) hasten(t *testing.T) {
	t.Helper()
	e.edit(t, "docker-compose.yml", func(text string) string {
		const services = 8
		if n := strings.Count(text, "interval: 15s"); n != services {
			t.Fatalf("docker-compose.yml has %d health checks each 15 s, want %d", n, services)
		}
		return strings.ReplaceAll(text, "interval: 15s", "interval: 3s")
	})
}

// Capabilities of the auditor, as the engine names them.
var (
	asConfigured = []string{"BPF", "PERFMON", "NET_ADMIN"}
	onOldEngines = []string{"SYS_ADMIN", "NET_ADMIN"}
)

// replaceUnknownCapabilities adds the override of README.md for engines that do not know the
// capabilities, and returns those that the auditor has then.
func (e *engine) replaceUnknownCapabilities(t *testing.T) []string {
	t.Helper()
	_, err := e.run("docker", "create", "--cap-add=BPF", "--name=probe", "standin-base", "true")
	if err == nil {
		e.must(t, "docker", "rm", "probe")
		return asConfigured
	}
	override := regexp.MustCompile("(?s)\\*\\*`invalid CapAdd: unknown capability: \"CAP_BPF\"`\\*\\*.*?```yaml\n(.*?)```").FindStringSubmatch(e.read(t, "README.md"))
	if override == nil || !strings.Contains(err.Error(), `invalid CapAdd: unknown capability: "CAP_BPF"`) {
		t.Fatalf("README.md has no override for an engine that says: %v", err)
	}
	path := filepath.Join(e.deploy, "docker-compose.override.yml")
	if err := os.WriteFile(path, []byte(override[1]), 0o644); err != nil { //nolint:gosec // public
		t.Fatal(err)
	}
	e.compose(path, filepath.Join(e.deploy, standInFile))
	t.Log("the engine does not know CAP_BPF and CAP_PERFMON: the auditor has CAP_SYS_ADMIN instead")
	return onOldEngines
}
