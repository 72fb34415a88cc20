// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// documentedBlock is a block of a document: a text that it alone has, and the test that runs it.
// Without a test, why says why none can.
type documentedBlock struct{ text, test, why string }

const (
	isOutput = "it is what a command of the document prints"
	isOfHost = "it changes a setting of the host that no namespace has"
)

// documentedBlocks are the blocks of all READMEs and guides, except queries: those are all run by
// TestDocumentedQueries in e2e/rules.
var documentedBlocks = map[string][]documentedBlock{
	"README.md": {
		{"make build\n", "TestInstall", ""},
		{"sudo apt install", "TestInstall", ""},
		{"sudo dnf install", "TestInstall", ""},
		{"make docker\n", "TestInstall", ""},
		{"kubectl apply", "TestInstall", ""},
		{"sudo make demo\nsudo make demo-leak\n", "TestDemoLeak", ""},
		{"curl -s localhost", "TestDocumentedCommands", ""},
		{`outcome="flagged_late"} 200`, "", isOutput},
		{"prometheus --config.file", "TestDocumentedCommands", ""},
		{"bpf.Open(config, logger)", "TestDocumentedCommands", ""},
		{"sudo make test\n", "", "it runs this test"},
	},
	"CONTRIBUTING.md": {
		{"sudo make deps\n", "", "it installs packages; make test-bare runs it on bare systems"},
		{"sudo REQUIRE_BPF=1 go test", "", "it is the form of a command that runs tests"},
		{"sudo make bench BENCH=", "", "it measures for minutes; make test-load runs each benchmark once"},
	},
	"deploy/README.md": {
		{"web_net", "", "it is a drawing"},
		{"uname -r", "TestTopology", ""},
		{"sudo tee /etc/sysctl.d", "", isOfHost},
		{"git clone", "", "it needs the network; TestTopology runs what follows in a copy"},
		{"cp .env.example .env", "TestTopology", ""},
		{"openssl req", "TestTopology", ""},
		{"docker compose up -d --build\n", "TestTopology", ""},
		{"./verify.sh", "TestTopology", ""},
		{"docker exec enclave_agent ip link", "TestTopology", ""},
		{"docker compose exec -T gateway wget", "TestTopology", ""},
		{"curl --cacert", "TestTopology", ""},
		{"docker compose down -v", "TestTopology", ""},
		{"docker compose restart xdp-auditor", "TestTopology", ""},
		{"cap_add: !override [SYS_ADMIN", "TestOverrides", ""},
		{"cap_add: [SYS_ADMIN]", "TestOverrides", ""},
		{"-f docker-compose.privileged.yml", "TestOverrides", ""},
		{"make -C .. pin-images", "", "it needs the network; the test of tools/pinimages runs the program"},
	},
	"docs/baseline-file.md": {{"--audit.baseline-file=", "TestDocumentedCommands", ""}},
	"docs/check.md": {
		{"sudo xdp_audit_exporter --check", "TestDocumentedCommands", ""},
		{"jq -r", "TestDocumentedCommands", ""},
	},
	"docs/flags.md": {{"--bpf.pin-path=", "TestDocumentedCommands", ""}},
	"docs/fleet.md": {
		{"sudo apt install", "TestInstall", ""},
		{"sudo tee /etc/sysctl.d", "", isOfHost},
		{"sys_admin.conf", "TestPackages", ""},
		{"pins.conf", "TestPackages", ""},
		{"--bpf.unpin", "TestPackages", ""},
		{"components: [../pins]", "TestPins", ""},
		{"kubectl --namespace=xdp-audit create secret", "TestSecretsAreThoseOfTheDocument", ""},
		{"action: hashmod", "TestFleetConfigurations", ""},
		{"job_name: federate", "TestFleetConfigurations", ""},
		{"remote_write:", "TestFleetConfigurations", ""},
	},
	"docs/kernels.md": {
		{"has no compare-and-swap", "", isOutput},
		{"opening the rings of audit_events", "", isOutput},
		{"sudo make test-kernels", "", "it boots other kernels; make test-kernels is a step of CI"},
	},
	"docs/leak.md": {
		{"assessments:\n", "TestDocumentedCommands", ""},
		{"random.choice([8, 16])", "TestDocumentedCommands", ""},
	},
	"docs/probe.md": {
		{"cat > leak.yml", "TestProbeGuide", ""},
		{"--x.header='Authorization", "TestProbeGuide", ""},
		{"times of   verdict", "TestProbeGuide", ""},
		{"--x.data=", "TestProbeGuide", ""},
		{"--x.raw=", "TestProbeGuide", ""},
		{"runs-on:", "TestProbeGuide", ""},
		{"import http.client", "TestProbeGuide", ""},
		{"ipv4.NewConn", "TestProbeGuide", ""},
		{"--local-port", "TestProbeGuide", ""},
	},
	"docs/trail.md": {
		{"time=2026-11-30", "", isOutput},
		{"time=2026-11-23", "", isOutput},
		{"/var/log/xdp_audit/trail.log {", "TestDocumentedCommands", ""},
		{"loki.source.file", "", "it is for Grafana Alloy, which no package here has"},
	},
}

// allBlocks returns the blocks of a document, also those in lists, except queries.
func allBlocks(t *testing.T, document string) (blocks []string) {
	t.Helper()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range regexp.MustCompile("(?ms)^ *```(\\w*)\n(.*?)^ *```$").FindAllStringSubmatch(string(text), -1) {
		if block[1] != "promql" {
			blocks = append(blocks, block[2])
		}
	}
	return blocks
}

// Every block of every README and guide is run by a test, or it is listed why none can run it.
func TestEveryBlockIsKnown(t *testing.T) {
	documents, err := exec.Command("git", "-C", "..", "ls-files", "*.md").Output()
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	err = filepath.WalkDir(".", func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path) //nolint:gosec // of the repository
		for _, found := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(source), -1) {
			tests[found[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for document := range strings.FieldsSeq(string(documents)) {
		blocks := allBlocks(t, filepath.Join("..", document))
		known := make([]int, len(blocks))
		for _, listed := range documentedBlocks[document] {
			n := 0
			for i, block := range blocks {
				if strings.Contains(block, listed.text) {
					known[i]++
					n++
				}
			}
			if n != 1 {
				t.Errorf("%s: %d blocks have %q, want 1", document, n, listed.text)
			}
			if (listed.test == "") == (listed.why == "") || listed.test != "" && !tests[listed.test] {
				t.Errorf("%s: the block with %q has no test, or no reason why there is none", document, listed.text)
			}
		}
		for i, n := range known {
			if n != 1 {
				t.Errorf("%s: %d entries of documentedBlocks are those of this block, want 1: run it in a test, or say why it cannot be run:\n%s", document, n, blocks[i])
			}
		}
	}
}

// blockOf returns the block of a document that has a text.
func blockOf(t *testing.T, document, text string) string {
	t.Helper()
	for _, block := range allBlocks(t, filepath.Join("..", document)) {
		if strings.Contains(block, text) {
			return strings.ReplaceAll(block, "sudo ", "")
		}
	}
	t.Fatalf("%s has no block with %q", document, text)
	return ""
}

// Commands and configurations of the documents do what they say.
func TestDocumentedCommands(t *testing.T) {
	// newHost returns a new laboratory, start starts a block that runs an exporter there, and
	// audited runs another block.
	newHost := func(t *testing.T, replaced ...string) *guide {
		g := &guide{l: newLab(t), t: t, folder: t.TempDir()}
		g.replaces = strings.NewReplacer(append([]string{"./xdp_audit_exporter", "xdp_audit_exporter", "eth0", device, "ens*", device[:3] + "*"}, replaced...)...)
		return g
	}
	start := func(g *guide, text string) *exporter {
		return g.start(strings.Replace(text, "./xdp_audit_exporter", "xdp_audit_exporter", 1))
	}
	audited := func(g *guide, text string, codes ...int) string {
		return g.run(g.l.audited.Namespace, "/bin/bash", "set -eo pipefail\n"+text, codes...)
	}

	t.Run("README.md: metrics", func(t *testing.T) {
		g := newHost(t)
		start(g, "xdp_audit_exporter --audit.device="+device)
		if got := audited(g, blockOf(t, "README.md", "curl -s localhost"), 0); strings.Count(got, "\nxdp_audit_") < 90 {
			t.Errorf("it prints too few metrics:\n%s", got)
		}
	})
	t.Run("README.md: Prometheus", func(t *testing.T) {
		findTool(t, "prometheus")
		g := newHost(t)
		deploy, err := filepath.Abs("../deploy")
		if err == nil {
			err = os.Symlink(deploy, filepath.Join(g.folder, "deploy"))
		}
		if err != nil {
			t.Fatal(err)
		}
		g.l.start("/bin/bash", []string{"-c", "exec " + blockOf(t, "README.md", "prometheus --config.file")}, func(cmd *exec.Cmd) { cmd.Dir = g.folder })
		// Other tests wait for a scrape, whose interval is a quarter of a minute.
		client := g.l.client()
		g.l.poll(func() error {
			response, err := client.Get("http://" + prometheusAddress + "/-/ready")
			if err == nil && response.StatusCode != http.StatusOK {
				err = errors.New(response.Status)
			}
			if err == nil {
				err = response.Body.Close()
			}
			return err
		})
	})
	t.Run("README.md: embedding", func(t *testing.T) {
		source := filepath.Join(t.TempDir(), "embed.go")
		text := `package main
import ("context"; "log/slog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/xdp-audit/xdp_audit_exporter/bpf"; "github.com/xdp-audit/xdp_audit_exporter/collector")
func run(ctx context.Context, logger *slog.Logger, registry *prometheus.Registry) error {
` + blockOf(t, "README.md", "bpf.Open(config, logger)") + "}\nfunc main() { _ = run(context.Background(), slog.Default(), prometheus.NewRegistry()) }\n"
		if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("go", "vet", source).CombinedOutput(); err != nil { //nolint:gosec // of this test
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("docs/baseline-file.md", func(t *testing.T) {
		g := newHost(t, "/var/log/xdp_audit", t.TempDir())
		start(g, blockOf(t, "docs/baseline-file.md", "--audit.baseline-file=")).expectStopped()
	})
	t.Run("docs/check.md", func(t *testing.T) {
		findTool(t, "jq")
		g := newHost(t)
		audited(g, blockOf(t, "docs/check.md", "sudo xdp_audit_exporter --check"), 0)
		if got := audited(g, blockOf(t, "docs/check.md", "jq -r"), 0); strings.TrimSpace(got) != "" {
			t.Errorf("devices that can be audited have errors: %s", got)
		}
		g.replaces = strings.NewReplacer("ens*", "none0")
		if got := audited(g, blockOf(t, "docs/check.md", "jq -r"), 1); !strings.Contains("\n"+got, "\nnone0: ") {
			t.Errorf("a device that does not exist has no error: %s", got)
		}
	})
	t.Run("docs/flags.md", func(t *testing.T) {
		g := newHost(t)
		folder := g.l.mountBPF(0)
		g.replaces = strings.NewReplacer("eth0", device, "/sys/fs/bpf/xdp_audit", folder)
		start(g, blockOf(t, "docs/flags.md", "--bpf.pin-path=")).expectEnd(0)
		if names, exists := g.l.pinned(folder); !exists || len(names) == 0 {
			t.Error("nothing is pinned")
		}
		g.l.unpin(folder)
	})
	t.Run("docs/leak.md", func(t *testing.T) {
		g := newHost(t)
		g.replaces = strings.NewReplacer()
		config := filepath.Join(g.folder, "leak.yml")
		text := strings.ReplaceAll(blockOf(t, "docs/leak.md", "assessments:\n"), "eth0", device)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		e := start(g, "xdp_audit_exporter --audit.device="+device+" --leak.config.file="+config)
		if page := e.get("/leak.json", http.StatusOK); !strings.Contains(page, `"name":"login"`) {
			t.Errorf("the exporter has no assessment login: %s", page)
		}
		line := blockOf(t, "docs/leak.md", "random.choice([8, 16])")
		got := g.run(g.l.sender.Namespace, "python3", "import random, socket\nconnection = socket.socket()\n"+line+
			"print(connection.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) >> 2)\n", 0)
		if mark := strings.TrimSpace(got); mark != "8" && mark != "16" {
			t.Errorf("the mark is %s, want 8 or 16", mark)
		}
	})
	t.Run("docs/trail.md", func(t *testing.T) {
		folder := t.TempDir()
		config, trail := filepath.Join(folder, "trail.conf"), filepath.Join(folder, "trail.log")
		text := strings.ReplaceAll(blockOf(t, "docs/trail.md", "/var/log/xdp_audit/trail.log {"), "/var/log/xdp_audit/trail.log", trail)
		err := errors.Join(os.WriteFile(config, []byte(text), 0o600), os.WriteFile(trail, []byte("record\n"), 0o600)) //nolint:gosec // of this test
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(findTool(t, "logrotate"), "--debug", "--force", "--state="+filepath.Join(folder, "state"), config).CombinedOutput() //nolint:gosec // of this test
		if err != nil || !strings.Contains(string(out), "renaming "+trail) || strings.Contains(string(out), "error:") {
			t.Errorf("%v\n%s", err, out)
		}
	})
}
