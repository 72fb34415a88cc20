// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package engine

import (
	"os"
	"os/exec"
	"path/filepath"
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

// Capabilities of the auditor, as the engine names them.
var (
	asConfigured = []string{"BPF", "PERFMON", "NET_ADMIN"}
	onOldEngines = []string{"SYS_ADMIN", "NET_ADMIN"}
)

// replaceUnknownCapabilities replaces capabilities that the engine does not know, and returns
// those that the auditor has then. An override file cannot do this, because docker-compose 1.29
// adds up the lists of two files.
func (e *engine) replaceUnknownCapabilities(t *testing.T) []string {
	t.Helper()
	if _, err := e.run("docker", "create", "--cap-add=BPF", "--name=probe", "standin-base", "true"); err == nil {
		e.must(t, "docker", "rm", "probe")
		return asConfigured
	}
	const known, old = "cap_add: [BPF, PERFMON, NET_ADMIN]", "cap_add: [SYS_ADMIN, NET_ADMIN]"
	content := e.read(t, "docker-compose.yml")
	if n := strings.Count(content, known); n != 1 {
		t.Fatalf("docker-compose.yml has %q %d times, not once", known, n)
	}
	changed := strings.Replace(content, known, old, 1)
	if err := os.WriteFile(filepath.Join(e.deploy, "docker-compose.yml"), []byte(changed), 0o644); err != nil { //nolint:gosec // public
		t.Fatal(err)
	}
	t.Log("the engine does not know CAP_BPF and CAP_PERFMON: the auditor has CAP_SYS_ADMIN instead")
	return onOldEngines
}
