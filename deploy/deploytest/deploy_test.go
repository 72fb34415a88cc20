// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package deploytest starts the topology of deploy/ on a Docker engine of its own.
package deploytest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

const (
	startTimeout  = time.Minute     // of the engine
	healthTimeout = 3 * time.Minute // of all services
)

var secrets = []string{"ENCLAVE_ENROLMENT_KEY", "DRUPAL_DB_PASSWORD", "MARIADB_ROOT_PASSWORD", "GRAFANA_ADMIN_PASSWORD"}

// engine is a Docker engine in namespaces of its own, with a copy of deploy/ to run on it.
type engine struct {
	folder, deploy string
	init           int // process of its namespaces
	environment    []string
}

// startEngine starts an engine that ends with the test, and leaves nothing.
func startEngine(t *testing.T) *engine {
	t.Helper()
	folder, err := os.MkdirTemp("", "xdp-audit-deploy-")
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{folder: folder, deploy: filepath.Join(folder, "project", "deploy")}
	e.environment = append(os.Environ(), "DOCKER_HOST=unix://"+folder+"/sock", "DOCKER_BUILDKIT=0", "COMPOSE_DOCKER_CLI_BUILD=0")
	for _, name := range secrets {
		e.environment = append(e.environment, name+"=secret-of-the-test")
	}
	cmd := exec.Command("./engine.sh", folder)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting an engine: %v", err)
	}
	e.init = cmd.Process.Pid
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(folder, "log"))
			t.Logf("the engine's log ends with\n%s", log[max(0, len(log)-4000):])
		}
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the engine: %v", err)
		}
		if err := errors.Join(removeCgroups(filepath.Base(folder)), os.RemoveAll(folder)); err != nil {
			t.Errorf("removing what the engine left: %v", err)
		}
	})
	poll(t, startTimeout, func() error { _, err := e.run("docker", "version"); return err })
	return e
}

// removeCgroups removes the empty groups of that name in every hierarchy.
func removeCgroups(name string) error {
	var failures error
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, err := filepath.Glob(pattern + name)
		failures = errors.Join(failures, err)
		for _, group := range found {
			failures = errors.Join(failures, os.Remove(group))
		}
	}
	return failures
}

// run runs a command in the copy of deploy/, in the network of the engine's host.
func (e *engine) run(command ...string) (string, error) { return e.runWith(nil, command...) }

func (e *engine) runWith(environment []string, command ...string) (string, error) {
	enter := []string{"--target", strconv.Itoa(e.init), "--mount", "--net", "--wd=" + e.deploy, "--"}
	if _, err := os.Stat(e.deploy); err != nil {
		enter[3] = "--wd=/"
	}
	cmd := exec.Command("nsenter", append(enter, command...)...) //nolint:gosec // the test's own commands
	cmd.Env = append(append([]string{}, e.environment...), environment...)
	output, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", strings.Join(command, " "), err, output)
	}
	return string(output), err
}

// must is run, with success.
func (e *engine) must(t *testing.T, command ...string) string {
	t.Helper()
	output, err := e.run(command...)
	if err != nil {
		t.Fatal(err)
	}
	return output
}

func compose(arguments ...string) []string {
	return append([]string{"docker-compose", "--project-name=xdp-audit", "--file=docker-compose.yml",
		"--file=deploytest/docker-compose.standin.yml"}, arguments...)
}

func poll(t *testing.T, limit time.Duration, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := netlab.Poll(ctx, check); err != nil {
		t.Fatal(err)
	}
}

// prepare copies the project, makes the images and the certificate.
func (e *engine) prepare(t *testing.T) {
	t.Helper()
	project := filepath.Dir(e.deploy)
	if err := copyTree(os.DirFS(".."), e.deploy); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if output, err := exec.Command("standin/base.sh", e.folder).CombinedOutput(); err != nil {
		t.Fatalf("unpacking Debian packages: %v\n%s", err, output)
	}
	e.must(t, "sh", "-c", "tar -C "+e.folder+"/tree -c . | docker import - standin-base")
	for _, name := range []string{"enclave", "prometheus", "grafana", "nginx", "apache", "drupal", "mariadb"} {
		e.must(t, "docker", "build", "--quiet", "--target=standin-"+name, "--tag=standin-"+name, "deploytest/standin")
	}
	t.Logf("the stand-ins took %v", time.Since(began).Round(time.Second))
	e.buildAuditor(t, project)
	e.must(t, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
		"-keyout", "certs/tls.key", "-out", "certs/tls.crt", "-subj", "/CN=drupal.enclave",
		"-addext", "subjectAltName=DNS:grafana.enclave,DNS:drupal.enclave")
	e.replaceUnknownCapabilities(t)
}

// buildAuditor builds the last stage of the project's Dockerfile; its first stage is replaced by the binary that the same
// go build makes here, because its image cannot be pulled.
func (e *engine) buildAuditor(t *testing.T, project string) {
	t.Helper()
	for _, name := range []string{"LICENSE", "NOTICE", "bpf/LICENSE.GPL-2.0"} {
		content, err := os.ReadFile(filepath.Join("../..", name))
		if err == nil {
			err = errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(project, name)), 0o755),
				os.WriteFile(filepath.Join(project, name), content, 0o644)) //nolint:gosec // public
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-trimpath", "-tags=netgo,osusergo", "-o", filepath.Join(project, "xdp_audit_exporter"), ".")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the exporter: %v\n%s", err, output)
	}
	dockerfile, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	_, last, found := strings.Cut(string(dockerfile), "\nFROM scratch\n")
	if !found || strings.Contains(last, "\nFROM ") {
		t.Fatal("the last stage of the Dockerfile is not FROM scratch")
	}
	stages := "FROM standin-base AS build\nCOPY xdp_audit_exporter /\n\nFROM scratch\n" + last
	if err := os.WriteFile(filepath.Join(project, "Dockerfile"), []byte(stages), 0o644); err != nil { //nolint:gosec // public
		t.Fatal(err)
	}
}

// replaceUnknownCapabilities gives the auditor what an engine has that does not know its capabilities. Lists of two files
// add up, so this cannot be an override.
func (e *engine) replaceUnknownCapabilities(t *testing.T) {
	t.Helper()
	if _, err := e.run("docker", "create", "--cap-add=BPF", "--name=probe", "standin-base", "true"); err == nil {
		e.must(t, "docker", "rm", "probe")
		return
	}
	const known = "cap_add: [BPF, PERFMON, NET_ADMIN]"
	file := filepath.Join(e.deploy, "docker-compose.yml")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(content), known); n != 1 {
		t.Fatalf("docker-compose.yml has %q %d times, not once", known, n)
	}
	changed := strings.Replace(string(content), known, "cap_add: [SYS_ADMIN, NET_ADMIN]", 1)
	if err := os.WriteFile(file, []byte(changed), 0o644); err != nil { //nolint:gosec // public
		t.Fatal(err)
	}
	t.Log("the engine does not know CAP_BPF and CAP_PERFMON: the auditor has CAP_SYS_ADMIN instead")
}

func copyTree(from fs.FS, to string) error {
	return fs.WalkDir(from, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == ".env" || strings.HasPrefix(path, "certs/tls.") {
			return err
		}
		target := filepath.Join(to, path)
		if entry.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		source, err := from.Open(path)
		if err != nil {
			return err
		}
		defer source.Close()
		info, err := entry.Info()
		if err != nil {
			return err
		}
		file, err := os.OpenFile(target, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, info.Mode().Perm())
		if err != nil {
			return err
		}
		_, err = io.Copy(file, source)
		return errors.Join(err, file.Close())
	})
}

// verify runs verify.sh until it passes.
func (e *engine) verify(t *testing.T) {
	t.Helper()
	poll(t, healthTimeout, func() error { _, err := e.run("./verify.sh"); return err })
}

// outside fetches from the gateway as a host beside the engine's does.
func (e *engine) outside(t *testing.T, name, path string) string {
	t.Helper()
	return e.must(t, "ip", "netns", "exec", "outside", "curl", "-sS", "--fail", "--max-time", "10", "--cacert", "certs/tls.crt",
		"--resolve", name+":443:192.0.2.1", "https://"+name+path)
}

var packetsLine = regexp.MustCompile(`(?m)^xdp_audit_packets_total\{device="eth0",family="ipv4",protocol="tcp"\} (\S+)$`)

// packets reads the auditor's count of TCP packets as a user would.
func (e *engine) packets(t *testing.T) float64 {
	t.Helper()
	metrics := e.must(t, "docker", "exec", "enclave_agent", "wget", "-qO-", "http://localhost:9400/metrics")
	match := packetsLine.FindStringSubmatch(metrics)
	if match == nil {
		t.Fatalf("no count of TCP packets in\n%s", metrics)
	}
	n, err := strconv.ParseFloat(match[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestTopology is one long test, because the topology takes a minute to start.
func TestTopology(t *testing.T) {
	if os.Getenv("TEST_DEPLOY") != "1" {
		t.Skip("make test-deploy starts the topology, which takes root and a Docker engine")
	}
	e := startEngine(t)
	e.prepare(t)

	for _, name := range secrets {
		t.Run("without "+name, func(t *testing.T) {
			output, err := e.runWith([]string{name + "="}, compose("up", "-d")...)
			if err == nil || !strings.Contains(output, name) {
				t.Errorf("compose does not stop and name %s: %v\n%s", name, err, output)
			}
			if left := e.must(t, "docker", "ps", "--all", "--quiet", "--filter=label=com.docker.compose.project"); left != "" {
				t.Errorf("containers were made all the same: %s", left)
			}
		})
	}
	e.must(t, "docker-compose", "--file=docker-compose.yml", "--file=docker-compose.privileged.yml", "config", "--quiet")

	began := time.Now()
	e.must(t, compose("up", "-d", "--build")...)
	t.Cleanup(func() {
		if t.Failed() {
			output, _ := e.run(compose("logs", "--tail=15")...)
			t.Log(output)
		}
	})
	e.verify(t)
	t.Logf("the topology passed verify.sh after %v", time.Since(began).Round(time.Second))

	t.Run("traffic from outside", e.testTraffic)
	t.Run("isolation", e.testIsolation)
	t.Run("a broken topology", e.testBroken)
	t.Run("down", e.testDown)
}

func (e *engine) testTraffic(t *testing.T) {
	const requests = 20
	before := e.packets(t)
	for i := range requests {
		page := e.outside(t, "drupal.enclave", fmt.Sprintf("/?note=n%d", i))
		if want := fmt.Sprintf("note=n%d\n", i); !strings.HasPrefix(page, "https=on\n") || !strings.HasSuffix(page, want) {
			t.Fatalf("the page is %q, and does not end with %q from the database", page, want)
		}
	}
	// A TLS connection takes at least a SYN, an ACK, a greeting, a Finished with the request, and a FIN.
	if after := e.packets(t); after < before+5*requests {
		t.Errorf("%d requests from outside added %v packets, fewer than 5 each", requests, after-before)
	}
	for _, command := range []string{"docker exec enclave_agent ip link show", "docker logs xdp-auditor --tail=50"} {
		e.must(t, strings.Fields(command)...)
	}
}

// connect tries to connect from a container's network namespace, and says what came of it.
func (e *engine) connect(t *testing.T, container, address string, port int) string {
	t.Helper()
	pid := strings.TrimSpace(e.must(t, "docker", "inspect", "--format={{.State.Pid}}", container))
	script := fmt.Sprintf("nsenter -t %s -n timeout 3 bash -c ': <>/dev/tcp/%s/%d' 2>&1 && echo open || true", pid, address, port)
	return e.must(t, "bash", "-c", script)
}

func (e *engine) address(t *testing.T, container, network string) string {
	t.Helper()
	address := strings.TrimSpace(e.must(t, "docker", "inspect",
		"--format={{(index .NetworkSettings.Networks \"xdp-audit_"+network+"\").IPAddress}}", container))
	if address == "" {
		t.Fatalf("%s has no address on %s", container, network)
	}
	return address
}

func (e *engine) testIsolation(t *testing.T) {
	const apache, drupal, db = "xdp-audit_apache_1", "xdp-audit_drupal_1", "xdp-audit_db_1"
	database := e.address(t, db, "db_net")
	onWeb, onEdge := e.address(t, "enclave_agent", "web_net"), e.address(t, "enclave_agent", "edge")
	fpm := e.address(t, drupal, "app_net")
	for _, c := range []struct {
		sentence, from, address string
		port                    int
		isOpen                  bool
	}{
		{"Drupal reaches the database", drupal, database, 3306, true},
		{"the enclave does not reach the database", "enclave_agent", database, 3306, false},
		{"Apache does not reach the database", apache, database, 3306, false},
		{"Apache reaches Drupal", apache, fpm, 9000, true},
		{"the enclave does not reach Drupal", "enclave_agent", fpm, 9000, false},
		{"the gateway reaches Apache", "enclave_agent", e.address(t, apache, "web_net"), 8080, true},
		{"the auditor is there inside the enclave", "enclave_agent", "127.0.0.1", 9400, true},
		{"Apache does not reach the auditor", apache, onWeb, 9400, false},
		{"Apache does not reach Prometheus", apache, onWeb, 9090, false},
		{"Apache does not reach Grafana", apache, onWeb, 3000, false},
		{"Drupal does not reach the auditor over web_net", drupal, onWeb, 9400, false},
		{"Drupal does not reach the auditor over edge", drupal, onEdge, 9400, false},
		{"the database does not reach the auditor", db, onEdge, 9400, false},
	} {
		if result := e.connect(t, c.from, c.address, c.port); (result == "open\n") != c.isOpen {
			t.Errorf("%s: connecting to %s:%d from %s gave %q", c.sentence, c.address, c.port, c.from, result)
		}
	}
}

// testBroken breaks one thing after another, and sees verify.sh tell.
func (e *engine) testBroken(t *testing.T) {
	sh := func(command string) []string { return []string{"sh", "-c", command} }
	reload := "docker exec xdp-audit_gateway_1 nginx -e /dev/stderr -s reload"
	for _, c := range []struct {
		sentence    string
		environment []string
		breaks      []string
		mends       []string
		complaints  []string
	}{
		{
			"a stopped auditor", nil, sh("docker stop xdp-auditor"), sh("docker start xdp-auditor"),
			[]string{"xdp-auditor is healthy", "hook attached on eth0", "metrics path", "hook reported as up"},
		},
		{
			"another mode than the one that was asked for", []string{"XDP_MODE=skb"}, sh("true"), sh("true"),
			[]string{"log line of the hook"},
		},
		{
			"a stopped Prometheus", nil, sh("docker stop xdp-audit_prometheus_1"), sh("docker start xdp-audit_prometheus_1"),
			[]string{
				"prometheus is healthy", "Prometheus ready", "target up", "series xdp_audit_events_total",
				"series xdp_audit_leak_flags_total", "series xdp_audit_last_tscore",
			},
		},
		{
			"a certificate of other names", nil,
			sh("mkdir old && cp certs/tls.* old && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 " +
				"-keyout certs/tls.key -out certs/tls.crt -subj /CN=other -addext subjectAltName=DNS:other && " + reload),
			sh("cp old/* certs/ && " + reload),
			[]string{"gateway TLS for grafana.enclave", "gateway TLS for drupal.enclave"},
		},
		{
			"a stopped Apache", nil, sh("docker stop xdp-audit_apache_1"), sh("docker start xdp-audit_apache_1"),
			[]string{"apache is healthy", "gateway TLS for drupal.enclave", "web_net is internal and of enclave apache alone"},
		},
		{
			"the enclave on the database's network", nil, sh("docker network connect xdp-audit_db_net enclave_agent"),
			sh("docker network disconnect xdp-audit_db_net enclave_agent"),
			[]string{"db_net is internal and of drupal db alone", "the enclave's namespace does not reach the database"},
		},
		{
			"Apache on the database's network", nil, sh("docker network connect xdp-audit_db_net xdp-audit_apache_1"),
			sh("docker network disconnect xdp-audit_db_net xdp-audit_apache_1"),
			[]string{"db_net is internal and of drupal db alone", "Apache does not reach the database"},
		},
		{
			"the enclave on app_net", nil, sh("docker network connect xdp-audit_app_net enclave_agent"),
			sh("docker network disconnect xdp-audit_app_net enclave_agent"),
			[]string{"app_net is internal and of apache drupal alone"},
		},
		{
			"a stopped database", nil, sh("docker stop xdp-audit_db_1"), sh("docker start xdp-audit_db_1"),
			[]string{"db is healthy", "Drupal reaches the database"},
		},
		{
			"the metrics' port on every address", nil,
			sh("docker stop xdp-auditor && docker run -d --name=leak --network=container:enclave_agent standin-prometheus " +
				"--config.file=/etc/prometheus/prometheus.yml --storage.tsdb.path=/tmp/leak --web.listen-address=0.0.0.0:9400"),
			sh("docker rm -f leak && docker start xdp-auditor"),
			[]string{"port 9400 is closed to Apache"},
		},
	} {
		t.Run(c.sentence, func(t *testing.T) {
			e.must(t, c.breaks...)
			output := ""
			poll(t, startTimeout, func() error {
				var err error
				if output, err = e.runWith(c.environment, "./verify.sh"); err == nil {
					return errors.New("verify.sh passes")
				}
				for _, complaint := range c.complaints {
					if !strings.Contains(output, "FAIL  "+complaint+": ") {
						return fmt.Errorf("verify.sh does not say that this failed: %s\n%s", complaint, output)
					}
				}
				return nil
			})
			e.must(t, c.mends...)
			e.verify(t)
		})
	}
}

func (e *engine) testDown(t *testing.T) {
	program := regexp.MustCompile(`program_id=(\d+)`).FindAllStringSubmatch(e.must(t, "docker", "logs", "xdp-auditor"), -1)
	if program == nil {
		t.Fatal("the auditor's log names no program")
	}
	id := program[len(program)-1][1]
	// bpftool on the host sees the programs of every namespace.
	if output, err := exec.Command("bpftool", "prog", "show", "id", id).CombinedOutput(); err != nil { //nolint:gosec // a number
		t.Fatalf("program %s is not loaded before down: %v\n%s", id, err, output)
	}
	e.must(t, compose("down", "--volumes")...)
	for _, c := range [][]string{
		{"docker", "ps", "--all", "--quiet", "--filter=label=com.docker.compose.project=xdp-audit"},
		{"docker", "volume", "ls", "--quiet"},
		{"docker", "network", "ls", "--quiet", "--filter=type=custom"},
	} {
		if left := e.must(t, c...); left != "" {
			t.Errorf("down --volumes left, of %v:\n%s", c, left)
		}
	}
	poll(t, startTimeout, func() error {
		if output, err := exec.Command("bpftool", "prog", "show", "id", id).CombinedOutput(); err == nil { //nolint:gosec // a number
			return fmt.Errorf("the program is still loaded: %s", output)
		}
		return nil
	})
}
