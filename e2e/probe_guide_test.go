// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// guideBlock is a fenced block of a document.
type guideBlock struct{ language, text string }

// guideBlocks returns the blocks of a document by section.
func guideBlocks(t *testing.T, path string) map[string][]guideBlock {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[string][]guideBlock{}
	heading := regexp.MustCompile(`(?m)^##+ (.*)$|(?ms)^` + "```" + `(\w*)\n(.*?)^` + "```" + `$`)
	section := ""
	for _, found := range heading.FindAllStringSubmatch(string(text), -1) {
		if found[1] != "" {
			section = found[1]
			continue
		}
		blocks[section] = append(blocks[section], guideBlock{found[2], found[3]})
	}
	return blocks
}

// guide is a service with the token of the guide, and the exporter of the guide.
type guide struct {
	l        *lab
	t        *testing.T
	folder   string
	replaces *strings.Replacer
}

const guideToken = "s3cret"

// newGuide starts services in the audited namespace: of HTTP, whose answer takes longer for a token
// that begins like the right one, and of lines.
func newGuide(t *testing.T) (g *guide, port int) {
	l := newLab(t)
	listener, lines := l.listenTCP(l.audited.IPv4.Addr()), l.listenTCP(l.audited.IPv4.Addr())
	l.serveHTTP(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if strings.Contains(r.Header.Get("Authorization")+r.Header.Get("X-Token"), guideToken[:3]) {
			spin(2 * time.Millisecond)
		}
		_, _ = io.WriteString(w, "OK\n")
	}))
	go answerLines(lines)
	g = &guide{l: l, t: t, folder: t.TempDir()}
	port = portOf(t, listener)
	if err := os.Chmod(g.folder, 0o777); err != nil {
		t.Fatal(err)
	}
	g.replaces = strings.NewReplacer(
		"https://login.example.org", "http://"+listener.Addr().String(),
		"http://login.example.org", "http://"+listener.Addr().String(),
		`"login.example.org", 80`, fmt.Sprintf("%q, %d", l.audited.IPv4.Addr(), port),
		"tls://login.example.org:6443", "tcp://"+lines.Addr().String(),
		"server.example.org:9400", l.audited.IPv4.Addr().String()+":9400",
		"eth0", device, "port: 443", fmt.Sprintf("port: %d", port),
		"exec xdp_audit_exporter --", fmt.Sprintf("exec xdp_audit_exporter --web.listen-address=%s:9400 --web.listen-address=%s --", l.audited.IPv4.Addr(), address),
		// With a seed, chance has no part in the checks of the labels, and with the smaller alpha
		// hardly any in a leak where there is none.
		"xdp_audit_probe --", "xdp_audit_probe --rate=1000 --requests=1000 --seed=1 --alpha=1e-9 --",
		"    order: blocks", "    order: blocks\n    alpha: 1e-9",
		"import http.client, random, socket", "import http.client, random, socket; random.seed(1)",
		"for i in $(seq", "RANDOM=1; for i in $(seq",
	)
	return g, port
}

// answerLines answers each line with a line.
func answerLines(listener net.Listener) {
	for {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			for lines := bufio.NewScanner(c); lines.Scan(); {
				if _, err := io.WriteString(c, "no\r\n"); err != nil {
					return
				}
			}
		}()
	}
}

// command returns the command that runs a block in a namespace, in the folder of the guide.
func (g *guide) command(program string, text string) (*exec.Cmd, *output) {
	cmd := exec.CommandContext(g.l.ctx, program)
	cmd.Stdin = strings.NewReader(g.replaces.Replace(text))
	cmd.Dir = g.folder
	cmd.Env = append(os.Environ(), "PATH="+binaries.folder+":"+os.Getenv("PATH"))
	out := &output{}
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, out
}

// run runs a block, and expects one of these exit codes.
func (g *guide) run(n *netlab.Namespace, program, text string, codes ...int) string {
	g.t.Helper()
	cmd, out := g.command(program, text)
	if err := n.Start(cmd); err != nil {
		g.t.Fatal(err)
	}
	_ = cmd.Wait() // see its code
	if code := cmd.ProcessState.ExitCode(); !slices.Contains(codes, code) {
		g.t.Fatalf("exit code %d, want one of %v, of\n%s\n%s", code, codes, text, out)
	}
	return out.String()
}

// start starts a block that runs an exporter, and waits until the exporter is ready.
func (g *guide) start(text string) *exporter {
	g.t.Helper()
	e := g.l.launch("/bin/bash", nil, func(cmd *exec.Cmd) {
		// The shell becomes the exporter, which ends with the test.
		script, _ := g.command("", strings.Replace(text, "xdp_audit_exporter --", "exec xdp_audit_exporter --", 1))
		cmd.Stdin, cmd.Dir, cmd.Env = script.Stdin, script.Dir, script.Env
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	})
	g.t.Cleanup(func() { _ = syscall.Kill(-e.cmd.Process.Pid, syscall.SIGTERM); e.wait() })
	e.awaitReady("/-/ready")
	return e
}

// Every block of the guide works as it says.
func TestProbeGuide(t *testing.T) {
	blocks := guideBlocks(t, "../docs/probe.md")
	want := map[string]int{
		"Assess your own login": 3, "Choose the classes": 2, "In a CI job": 1, "Marks by other clients": 3,
	}
	for section, list := range blocks {
		if len(list) != want[section] {
			t.Errorf("the section %q has %d blocks, and the test runs %d", section, len(list), want[section])
		}
	}
	if len(blocks) != len(want) {
		t.Fatalf("the sections with blocks are not those of the test: %v", blocks)
	}

	t.Run("the login", func(t *testing.T) {
		g, _ := newGuide(t)
		login := blocks["Assess your own login"]
		g.start(login[0].text)
		got := g.run(g.l.sender.Namespace, "/bin/bash", login[1].text, 1)
		for line := range strings.Lines(login[2].text) {
			fields := strings.Fields(line)
			if len(fields) == 0 {
				continue
			}
			first := strings.Join(fields[:min(3, len(fields))], " ")
			if strings.HasPrefix(line, "kernel") || strings.HasPrefix(line, "client") {
				first = fields[0]
			}
			if !strings.Contains(strings.Join(strings.Fields(got), " "), first) {
				t.Errorf("it does not print %q:\n%s", first, got)
			}
		}
	})
	t.Run("classes", func(t *testing.T) {
		g, _ := newGuide(t)
		g.start(blocks["Assess your own login"][0].text)
		for _, block := range blocks["Choose the classes"] {
			g.run(g.l.sender.Namespace, "/bin/bash", block.text, 0, 3)
		}
	})
	t.Run("the CI job", func(t *testing.T) { testCIJob(t, blocks["In a CI job"][0].text) })
	t.Run("other clients", func(t *testing.T) {
		python, program, curl := blocks["Marks by other clients"][0].text, blocks["Marks by other clients"][1].text, blocks["Marks by other clients"][2].text
		testOtherClient(t, "python3", python, "order: random, "+byDSCP)
		testOtherClient(t, "/bin/bash", curl, "order: random, classes: {x: {source_port: 10000-19999}, y: {source_port: 20000-29999}}")
		source := filepath.Join(t.TempDir(), "mark.go")
		text := "package main\nimport (\"net\"; \"golang.org/x/net/ipv4\")\n" + program + "func main() { _ = mark(nil, 8) }\n"
		if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("go", "vet", source).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// testOtherClient runs a client of the guide, all of whose requests must be judged.
func testOtherClient(t *testing.T, program, text, assessment string) {
	t.Helper()
	g, port := newGuide(t)
	p := g.l.measure("", port, assessment)
	g.run(g.l.sender.Namespace, program, text, 0)
	p.e.await(func(s scrape) error {
		if n, pairs := s.sum("leak_responses_total"), s.sum("leak_pairs_total"); n < 200 || pairs < 25 {
			return fmt.Errorf("%v responses, %v pairs", n, pairs)
		}
		return nil
	})
	if s := p.e.scrape(); s.sum("leak_check") != 4 || s.sum("leak_excluded_total") != 0 {
		t.Errorf("%s: %v checks of 4 pass, %v requests are excluded", program, s.sum("leak_check"), s.sum("leak_excluded_total"))
	}
	p.e.expectStopped()
}

// testCIJob runs the steps of the job on one host.
func testCIJob(t *testing.T, text string) {
	g, _ := newGuide(t)
	var workflow struct {
		Jobs map[string]struct {
			Steps []struct{ Uses, Run string }
		}
	}
	if err := yaml.Unmarshal([]byte(text), &workflow); err != nil || len(workflow.Jobs["timing"].Steps) != 4 {
		t.Fatalf("%v, or the job has other steps: %+v", err, workflow)
	}
	steps := workflow.Jobs["timing"].Steps
	var listener net.Listener
	err := g.l.audited.Namespace.Do(func() (err error) {
		listener, err = net.Listen("tcp4", "127.0.0.1:8080")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	g.l.serveHTTP(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Header.Get("X-Token"), guideToken[:3]) {
			spin(2 * time.Millisecond)
		}
		_, _ = io.WriteString(w, "OK\n")
	}))
	config := "assessments: [{name: login, protocol: tcp, port: 8080, order: blocks, " + byDSCP + "}]"
	if err := os.WriteFile(filepath.Join(g.folder, "leak.yml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	g.replaces = strings.NewReplacer("sudo ", "", "xdp_audit_probe --", "xdp_audit_probe --seed=1 --")
	e := g.start(steps[2].Run + "\nwait\n")
	g.run(g.l.audited.Namespace, "/bin/bash", steps[3].Run, 1)
	junit, err := os.ReadFile(filepath.Join(g.folder, "timing.xml"))
	if err != nil || !strings.Contains(string(junit), `failures="1"`) {
		t.Errorf("%v, or no failure in\n%s", err, junit)
	}
	if err := syscall.Kill(-e.cmd.Process.Pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	e.wait()
}
