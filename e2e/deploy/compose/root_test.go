// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package compose

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"

	"github.com/xdp-audit/xdp_audit_exporter/e2e/deploy/quickstart"
)

// The root of the repository starts the same project as deploy/, with the variables of its own .env
// and with the certificate in certs.
func TestTheRootStartsDeploy(t *testing.T) {
	root := t.TempDir()
	copied := exec.Command("sh", "-euc", `tar --create docker-compose.yml .env.example certs deploy | tar --extract --directory="$1"; rm -f "$1/deploy/.env"`, "sh", root)
	copied.Dir = "../../.."
	if output, err := copied.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	// As an editor does.
	set := `for secret in "$@"; do sed -i "s/^$secret=$/$secret=from-the-file/" .env; done` + "\n"
	steps := exec.Command("sh", append([]string{"-euc", quickstart.Environment + set + quickstart.Certificate, "sh"}, quickstart.Secrets...)...)
	steps.Dir = root
	if output, err := steps.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	for _, name := range []string{"tls.key", "tls.crt"} {
		if _, err := os.Stat(filepath.Join(root, "deploy/certs", name)); err != nil {
			t.Errorf("the gateway does not find the certificate: %v", err)
		}
	}
	// services returns services, networks and volumes, as for docker compose in a directory.
	services := func(folder string) string {
		t.Helper()
		options, err := cli.NewProjectOptions([]string{filepath.Join(folder, "docker-compose.yml")},
			cli.WithWorkingDirectory(folder), cli.WithEnvFiles(filepath.Join(root, ".env")), cli.WithDotEnv)
		if err != nil {
			t.Fatal(err)
		}
		project, err := options.LoadProject(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if project.Name != "xdp-audit" {
			t.Errorf("the project in %s is %s", folder, project.Name)
		}
		text, err := json.MarshalIndent([]any{project.Services, project.Networks, project.Volumes}, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	got, want := services(root), services(filepath.Join(root, "deploy"))
	if got != want || !strings.Contains(got, "from-the-file") {
		t.Errorf("the services of the root are\n%s\nwant those of deploy/\n%s", got, want)
	}
}
