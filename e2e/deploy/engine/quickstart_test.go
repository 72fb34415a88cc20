// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package engine

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/e2e/deploy/quickstart"
)

// testQuickStart types the commands of a quick start in the root of the repository. Its certificate
// has one of the two names.
func (e *engine) testQuickStart(t *testing.T) {
	root := e.in(e.project)
	root.shell(t, quickstart.Environment)
	for _, name := range quickstart.Secrets {
		root.shell(t, "sed -i 's/^"+name+"=$/"+name+"=secret-of-the-test/' .env")
	}
	root.shell(t, quickstart.Certificate)
	root.shell(t, quickstart.Launch)
	for _, c := range []struct{ command, want string }{
		{quickstart.Hook, "prog/xdp id "},
		{quickstart.Log, "XDP audit hook attached on eth0 with mode=drv"},
		{quickstart.Metrics, "# HELP "},
		{quickstart.Prometheus, "Ready"},
		{openPage("grafana.enclave", "/api/health"), `"database"`},
		{openPage("drupal.enclave", "/"), "HTTP_HOST=drupal.enclave\n"},
		{askPrometheus("up == 1"), `"job":"xdp_audit"`},
		{askPrometheus("xdp_audit_events_total"), `"device":"eth0"`},
		{askPrometheus("xdp_audit_leak_flags_total"), `"device":"eth0"`},
		{askPrometheus("xdp_audit_last_tscore"), `"device":"eth0"`},
	} {
		// What has just started may not answer yet.
		e.poll(t, func() error {
			output, err := root.run("bash", "-c", c.command)
			if err == nil && !strings.Contains(output, c.want) {
				err = fmt.Errorf("%s gives no %q:\n%s", c.command, c.want, output)
			}
			return err
		})
	}
	// The script finds what was started in the root, and its .env there.
	e.poll(t, func() error {
		report, _ := root.run("deploy/verify.sh")
		var failing []string
		for _, step := range failedStep.FindAllStringSubmatch(report, -1) {
			failing = append(failing, step[1])
		}
		if !slices.Equal(failing, []string{"gateway TLS for drupal.enclave"}) {
			return fmt.Errorf("verify.sh says that %q failed, want the name that the certificate lacks:\n%s", failing, report)
		}
		return nil
	})
	root.shell(t, quickstart.Teardown)
	e.expectNothing(t)
}

// openPage is what a browser does after the user has accepted the certificate.
func openPage(name, path string) string {
	return "curl -sS --insecure --fail --max-time 10 --resolve " + name + ":443:127.0.0.1 https://" + name + path
}

// askPrometheus is what a panel of Grafana does.
func askPrometheus(query string) string {
	return "docker compose exec -T prometheus wget -qO- '" + "http://127.0.0.1:9090/api/v1/query?query=" + strings.ReplaceAll(query, " ", "%20") + "'"
}
