// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package engine

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var secrets = []string{"ENCLAVE_ENROLMENT_KEY", "DRUPAL_DB_PASSWORD", "MARIADB_ROOT_PASSWORD", "GRAFANA_ADMIN_PASSWORD"}

// TestTopology is one long test, because the topology takes a minute to start. It runs the
// commands of README.md literally.
func TestTopology(t *testing.T) {
	if os.Getenv("TEST_DEPLOY") != "1" {
		t.Skip("make test-deploy starts the topology, which takes root and a Docker engine")
	}
	if os.Geteuid() != 0 {
		t.Fatal("the engine needs root")
	}
	guide := readGuide(t)
	began := time.Now()
	e := startEngine(t)
	e.makeImages(t)
	e.hasten(t)
	capabilities := e.replaceUnknownCapabilities(t)
	e.expectOnlyImagesReplaced(t)

	t.Run("quick start in the root", e.testQuickStart)
	t.Logf("the quick start ended after %v", time.Since(began).Round(time.Second))
	for _, section := range []string{"Prerequisites", "Settings", "Certificate"} {
		guide.run(t, e, section)
	}
	t.Run("secrets", e.testSecrets)
	guide.run(t, e, "Start")
	t.Cleanup(func() {
		if t.Failed() {
			output, _ := e.run("docker", "compose", "logs", "--tail=15")
			t.Log(output)
		}
	})
	t.Logf("the topology was started after %v", time.Since(began).Round(time.Second))
	e.shell(t, hideTools)
	if report := guide.run(t, e, "Verify"); !strings.HasSuffix(report, "all passed\n") {
		t.Fatalf("verify.sh ends without \"all passed\":\n%s", report)
	}
	t.Logf("verify.sh passed after %v", time.Since(began).Round(time.Second))

	e.shell(t, showTools)
	t.Run("by hand", func(t *testing.T) { testByHand(t, e, guide) })
	e.shell(t, hideTools)
	t.Run("the auditor's privileges", func(t *testing.T) { e.testPrivileges(t, capabilities) })
	t.Run("the capabilities as shipped", e.testRunc)
	t.Run("traffic from outside", e.testTraffic)
	t.Run("isolation", e.testIsolation)
	t.Run("a broken topology", e.testBroken)
	t.Run("down", func(t *testing.T) { e.testDown(t, guide) })
	t.Logf("all of it took %v", time.Since(began).Round(time.Second))
}

// Tools that the image of the agent may lack are taken away while verify.sh runs.
const (
	hideTools = `docker exec enclave_agent bash -c 'mkdir -p /hidden; for tool in ip wget timeout; do
		while path=$(command -v "$tool"); do mv "$path" /hidden/; done
	done'`
	showTools = `docker exec enclave_agent bash -c 'mv /hidden/* /usr/bin/'`
)

// expectOnlyImagesReplaced expects that the stand-ins change only the images of the topology.
func (e *engine) expectOnlyImagesReplaced(t *testing.T) {
	t.Helper()
	line := regexp.MustCompile(`^(---|#.*|services:|  \w+:|    image: standin-\w+|)$`)
	for number, text := range strings.Split(e.read(t, standInFile), "\n") {
		if !line.MatchString(text) {
			t.Errorf("docker-compose.standin.yml:%d is more than an image: %s", number+1, text)
		}
	}
}

// testSecrets omits each secret in turn: compose stops, names the secret, and creates nothing.
func (e *engine) testSecrets(t *testing.T) {
	for _, name := range secrets {
		for description, script := range map[string]string{
			"without ": "sed '/^" + name + "=/d' .env >without",
			"empty ":   "sed 's/^" + name + "=.*/" + name + "=/' .env >without",
		} {
			t.Run(description+name, func(t *testing.T) {
				e.shell(t, script)
				output, err := e.run("docker", "compose", "--env-file=without", "up", "-d", "--build")
				if err == nil || !strings.Contains(output, "set "+name+" in .env") {
					t.Errorf("compose does not stop and name %s: %v\n%s", name, err, output)
				}
				if left := e.must(t, "docker", "ps", "--all", "--quiet"); left != "" {
					t.Errorf("containers were made all the same: %s", left)
				}
			})
		}
	}
}

// testByHand runs the commands for a user, and expects the results that README.md describes.
func testByHand(t *testing.T, e *engine, guide guide) {
	for _, c := range []struct{ command, want string }{
		{"docker exec enclave_agent ip link show", "prog/xdp id "},
		{"docker logs xdp-auditor --tail=50", "XDP audit hook attached on eth0 with mode=drv"},
		{"docker exec enclave_agent wget -qO- http://localhost:9400/metrics", `xdp_audit_hook_up{device="eth0"} 1`},
		{"docker exec enclave_agent wget -qO- http://localhost:9090/-/ready", "Ready"},
		{"docker compose exec -T gateway wget -qO- http://127.0.0.1:9400/metrics", `xdp_audit_hook_up{device="eth0"} 1`},
		{"docker compose exec -T prometheus wget -qO- http://127.0.0.1:9090/-/ready", "Ready"},
	} {
		if !strings.Contains(guide.block(t, "By hand"), c.command+"\n") {
			t.Errorf("README.md does not say %q", c.command)
		}
		if output := e.must(t, strings.Fields(c.command)...); !strings.Contains(output, c.want) {
			t.Errorf("%q gives no %q:\n%s", c.command, c.want, output)
		}
	}
	guide.run(t, e, "By hand")
}

// container returns the id of the container of a service.
func (e *engine) container(t *testing.T, service string) string {
	t.Helper()
	id := strings.TrimSpace(e.must(t, "docker", "ps", "--quiet", "--no-trunc", "--filter=label=com.docker.compose.service="+service))
	if id == "" || strings.Contains(id, "\n") {
		t.Fatalf("the service %s has the containers %q", service, id)
	}
	return id
}

// testPrivileges expects the auditor to have got the privileges in the file, and to have dropped
// them.
func (e *engine) testPrivileges(t *testing.T, capabilities []string) {
	var containers []struct {
		Config     struct{ User string }
		HostConfig struct {
			CapAdd, CapDrop, SecurityOpt, Binds []string
			Privileged, ReadonlyRootfs          bool
			NetworkMode                         string
		}
		Mounts []any
		State  struct{ Pid int }
	}
	if err := json.Unmarshal([]byte(e.must(t, "docker", "inspect", "xdp-auditor")), &containers); err != nil {
		t.Fatal(err)
	}
	c := containers[0]
	if h := c.HostConfig; h.Privileged || !h.ReadonlyRootfs || len(h.Binds)+len(c.Mounts) != 0 || c.Config.User != "0:0" ||
		!slices.Equal(h.CapDrop, []string{"ALL"}) || !slices.Equal(slices.Sorted(slices.Values(h.CapAdd)), slices.Sorted(slices.Values(capabilities))) ||
		!slices.Contains(h.SecurityOpt, "no-new-privileges:true") || !strings.HasPrefix(h.NetworkMode, "container:") {
		t.Errorf("the auditor's container is %+v", c)
	}
	status := e.must(t, "cat", fmt.Sprintf("/proc/%d/status", c.State.Pid))
	for _, want := range []string{
		"Uid:\t0\t0\t0\t0\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n",
		"CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "CapInh:\t0000000000000000\n", "CapAmb:\t0000000000000000\n",
	} {
		if !strings.Contains(status, want) {
			t.Errorf("the auditor has not %q:\n%s", want, status)
		}
	}
	if root := e.must(t, "nsenter", "--target", strconv.Itoa(c.State.Pid), "--mount", "--wd=/", "/xdp_audit_exporter", "--version"); !strings.HasPrefix(root, "xdp_audit_exporter, version ") {
		t.Errorf("the image's program says %q", root)
	}
	if files := e.shell(t, "docker export xdp-auditor | tar -t | grep -v -e /$ -e ^dev/ -e ^etc/ -e ^.dockerenv$ | sort"); files !=
		"licenses/LICENSE\nlicenses/LICENSE.GPL-2.0\nlicenses/NOTICE\nxdp_audit_exporter\nxdp_audit_probe\n" {
		t.Errorf("the image FROM scratch has more or less than the binary and its licences:\n%s", files)
	}
}

const (
	outside       = "192.0.2.2" // a host next to the engine
	engineAddress = "192.0.2.1"
)

// outside sends a request to the gateway from a host next to the engine.
func (e *engine) outside(t *testing.T, name, path string) string {
	t.Helper()
	return e.must(t, "ip", "netns", "exec", "outside", "curl", "-sS", "--fail", "--max-time", "10", "--cacert", "certs/tls.crt",
		"--resolve", name+":443:"+engineAddress, "https://"+name+path)
}

var packetsLine = regexp.MustCompile(`(?m)^xdp_audit_packets_total\{device="eth0",family="ipv4",protocol="tcp"\} (\S+)$`)

// packets returns the auditor's count of TCP packets, by the command for users.
func (e *engine) packets(t *testing.T) float64 {
	t.Helper()
	metrics := e.must(t, "docker", "compose", "exec", "-T", "gateway", "wget", "-qO-", "http://127.0.0.1:9400/metrics")
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

func (e *engine) testTraffic(t *testing.T) {
	const requests = 20
	before := e.packets(t)
	for i := range requests {
		page := e.outside(t, "drupal.enclave", fmt.Sprintf("/?note=n%d", i))
		const asked = "HTTPS=on\nHTTP_HOST=drupal.enclave\nHTTP_X_FORWARDED_FOR=" + outside + "\n"
		if want := fmt.Sprintf("note=n%d\n", i); !strings.HasPrefix(page, asked) || !strings.HasSuffix(page, want) {
			t.Fatalf("the page is %q, and does not begin with %q, and end with %q from the database", page, asked, want)
		}
	}
	// A TLS connection has at least a SYN, an ACK, a ClientHello, a Finished with the request,
	// and a FIN.
	if after := e.packets(t); after < before+5*requests {
		t.Errorf("%d requests from outside added %v packets, fewer than 5 each", requests, after-before)
	}
}

// connect tries to connect from a network namespace, which nsenter or ip enters, and reports
// whether it could.
func (e *engine) connect(enter []string, address string, port int) (isOpen bool, err error) {
	script := fmt.Sprintf("if timeout 3 bash -c ': <>/dev/tcp/%s/%d' 2>/dev/null; then echo open; else echo closed; fi", address, port)
	answer, err := e.run(append(slices.Clone(enter), "bash", "-c", script)...)
	if err == nil && answer != "open\n" && answer != "closed\n" {
		err = fmt.Errorf("neither open nor closed: %q", answer)
	}
	return answer == "open\n", err
}

// namespace returns how to enter the network namespace of a container.
func (e *engine) namespace(t *testing.T, container string) []string {
	t.Helper()
	pid := strings.TrimSpace(e.must(t, "docker", "inspect", "--format={{.State.Pid}}", container))
	return []string{"nsenter", "--target", pid, "--net"}
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
	apache, drupal, db := e.container(t, "apache"), e.container(t, "drupal"), e.container(t, "db")
	// Additional neighbours of the enclave on each of its networks.
	e.must(t, "docker", "run", "--detach", "--name=onedge", "--network=xdp-audit_edge", "standin-base", "sleep", "600")
	e.must(t, "docker", "run", "--detach", "--name=onweb", "--network=xdp-audit_web_net", "standin-base", "sleep", "600")
	defer e.must(t, "docker", "rm", "--force", "onedge", "onweb")
	fromOutside := []string{"ip", "netns", "exec", "outside"}
	fromEnclave, fromApache := e.namespace(t, "enclave_agent"), e.namespace(t, apache)
	fromDrupal, fromDB := e.namespace(t, drupal), e.namespace(t, db)
	fromEdge, fromWeb := e.namespace(t, "onedge"), e.namespace(t, "onweb")

	const local = "127.0.0.1"
	fpm, web := e.address(t, drupal, "app_net"), e.address(t, apache, "web_net")
	onWeb, onEdge := e.address(t, "enclave_agent", "web_net"), e.address(t, "enclave_agent", "edge")
	type attempt struct {
		sentence string
		from     []string
		address  string
		port     int
		isOpen   bool
	}
	attempts := []attempt{
		{"Drupal reaches the database", fromDrupal, e.address(t, db, "db_net"), 3306, true},
		{"Apache reaches Drupal", fromApache, fpm, 9000, true},
		{"the enclave does not reach Drupal", fromEnclave, fpm, 9000, false},
		{"the gateway reaches Apache", fromEnclave, web, 8080, true},
		{"a neighbour on edge reaches the gateway", fromEdge, onEdge, 443, true},
		{"a neighbour on web_net reaches the gateway", fromWeb, onWeb, 443, true},
		{"the gateway is there from outside", fromOutside, engineAddress, 443, true},
		{"Apache is not there from outside", fromOutside, engineAddress, 8080, false},
		{"Drupal is not there from outside", fromOutside, engineAddress, 9000, false},
		{"the database is not there from outside", fromOutside, engineAddress, 3306, false},
	}
	for _, database := range strings.Fields(e.must(t, "docker", "inspect",
		"--format={{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", db)) {
		attempts = append(attempts,
			attempt{"the enclave does not reach the database", fromEnclave, database, 3306, false},
			attempt{"Apache does not reach the database", fromApache, database, 3306, false},
			attempt{"a neighbour on edge does not reach the database", fromEdge, database, 3306, false},
			attempt{"a neighbour on web_net does not reach the database", fromWeb, database, 3306, false})
	}
	for port, name := range map[int]string{9400: "the auditor", 9090: "Prometheus", 3000: "Grafana"} {
		attempts = append(attempts,
			attempt{name + " is there inside the enclave", fromEnclave, local, port, true},
			attempt{name + " is closed to Apache", fromApache, onWeb, port, false},
			attempt{name + " is closed to a neighbour on web_net", fromWeb, onWeb, port, false},
			attempt{name + " is closed to a neighbour on edge", fromEdge, onEdge, port, false},
			attempt{name + " is closed to Drupal over web_net", fromDrupal, onWeb, port, false},
			attempt{name + " is closed to Drupal over edge", fromDrupal, onEdge, port, false},
			attempt{name + " is closed to the database", fromDB, onEdge, port, false},
			attempt{name + " is not there from outside", fromOutside, engineAddress, port, false})
	}
	// All at once, because a dropped attempt takes until the timeout.
	var all sync.WaitGroup
	for _, a := range attempts {
		all.Go(func() {
			if isOpen, err := e.connect(a.from, a.address, a.port); err != nil || isOpen != a.isOpen {
				t.Errorf("%s: connecting to %s:%d gave open=%v, %v", a.sentence, a.address, a.port, isOpen, err)
			}
		})
	}
	all.Wait()
}

// failedStep matches a failed step of verify.sh and the next line with the remedy.
var failedStep = regexp.MustCompile(`(?m)^FAIL  ([^:]+): .+\n      (\S.*)$`)

// testBroken breaks one part after another. verify.sh reports exactly the steps that fail, with
// a remedy. Each fault lasts, so verify.sh is repeated until it reports the fault.
func (e *engine) testBroken(t *testing.T) {
	apache, prometheus, db := e.container(t, "apache"), e.container(t, "prometheus"), e.container(t, "db")
	toApache := []string{"port 9400 is closed to Apache", "port 9090 is closed to Apache", "port 3000 is closed to Apache"}
	series := []string{"series xdp_audit_events_total", "series xdp_audit_leak_flags_total", "series xdp_audit_last_tscore"}
	for _, c := range []struct {
		sentence, breaks, mends string
		failing                 []string
		remedy                  string // of the first failed step
	}{
		{
			"a stopped auditor, and its port taken on every address",
			"docker stop xdp-auditor && docker run -d --name=leak --network=container:enclave_agent standin-prometheus " +
				"--config.file=/etc/prometheus/prometheus.yml --storage.tsdb.path=/tmp/leak --web.listen-address=0.0.0.0:9400",
			"docker rm -f leak && docker start xdp-auditor",
			// The next scrape succeeds, but has none of the series.
			slices.Concat([]string{
				"xdp-auditor is healthy", "hook attached on eth0", "metrics path", "hook reported as up", "port 9400 is closed to Apache",
			}, series),
			"See docker compose logs xdp-auditor.",
		},
		{
			"no Prometheus, no Apache and no database",
			"docker stop " + prometheus + " " + apache + " " + db, "docker start " + db + " " + apache + " " + prometheus,
			slices.Concat([]string{
				"prometheus is healthy", "apache is healthy", "db is healthy", "Prometheus ready", "target up",
				"gateway TLS for drupal.enclave", "web_net is internal and has only enclave apache",
				"app_net is internal and has only apache drupal", "db_net is internal and has only drupal db",
				"Drupal reaches the database", "the enclave's namespace does not reach the database", "Apache does not reach the database",
			}, series, toApache),
			"See docker compose logs prometheus.",
		},
		{
			"another mode in .env than the one that runs, HSTS, and a certificate of other names",
			"cp .env old.env && sed -i -e s/^XDP_MODE=.*/XDP_MODE=skb/ -e s/^GATEWAY_HSTS=.*/GATEWAY_HSTS=on/ .env && " +
				"mkdir old && cp certs/tls.* old && " +
				"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout certs/tls.key -out certs/tls.crt " +
				"-subj /CN=other -addext subjectAltName=DNS:other && docker compose up -d gateway",
			"cp old.env .env && cp old/* certs/ && docker compose up -d gateway",
			[]string{
				"log line of the hook", "gateway TLS for grafana.enclave", "gateway TLS for drupal.enclave",
				"HSTS only with a trusted certificate",
			},
			"A driver without native XDP needs XDP_MODE=skb",
		},
		{
			"networks joined by hand",
			"docker network connect xdp-audit_db_net enclave_agent && docker network connect xdp-audit_db_net " + apache +
				" && docker network connect xdp-audit_app_net enclave_agent && docker network connect xdp-audit_edge " + db,
			"docker network disconnect xdp-audit_db_net enclave_agent && docker network disconnect xdp-audit_db_net " + apache +
				" && docker network disconnect xdp-audit_app_net enclave_agent && docker network disconnect xdp-audit_edge " + db,
			[]string{
				"edge has only enclave", "app_net is internal and has only apache drupal", "db_net is internal and has only drupal db",
				"the enclave's namespace does not reach the database", "Apache does not reach the database",
			},
			"disconnect every other container from the network",
		},
		{
			"an enclave that was restarted without the other services",
			"docker restart enclave_agent", restartOfOthers,
			slices.Concat([]string{
				"hook attached on eth0", "metrics path", "hook reported as up", "Prometheus ready", "target up",
				"gateway TLS for grafana.enclave", "gateway TLS for drupal.enclave",
			}, series),
			"run " + restartOfOthers + ".",
		},
	} {
		t.Run(c.sentence, func(t *testing.T) {
			e.shell(t, c.breaks)
			// A failure here must not make later cases fail.
			defer e.shell(t, c.mends)
			slices.Sort(c.failing[1:])
			e.poll(t, func() error {
				report, err := e.run("./verify.sh")
				if err == nil {
					return fmt.Errorf("verify.sh passes:\n%s", report)
				}
				remedies := map[string]string{}
				var failing []string
				for _, step := range failedStep.FindAllStringSubmatch(report, -1) {
					failing = append(failing, step[1])
					remedies[step[1]] = step[2]
				}
				if len(failing) > 0 {
					slices.Sort(failing[1:])
				}
				if !slices.Equal(failing, c.failing) {
					return fmt.Errorf("verify.sh says that these failed:\n%s\nwant\n%s\nin\n%s",
						strings.Join(failing, "\n"), strings.Join(c.failing, "\n"), report)
				}
				if remedy := remedies[failing[0]]; !strings.Contains(remedy, c.remedy) {
					return fmt.Errorf("the remedy is %q, want %q in it", remedy, c.remedy)
				}
				if want := fmt.Sprintf("%d failed\n", len(failing)); !strings.HasSuffix(report, want) {
					return fmt.Errorf("verify.sh ends without %q:\n%s", want, report)
				}
				return nil
			})
		})
	}
	e.poll(t, func() error { _, err := e.run("./verify.sh"); return err })
}

// testDown expects that nothing is left, including the program in the kernel.
func (e *engine) testDown(t *testing.T, guide guide) {
	program := regexp.MustCompile(`program_id=(\d+)`).FindAllStringSubmatch(e.must(t, "docker", "logs", "xdp-auditor"), -1)
	if program == nil {
		t.Fatal("the auditor's log names no program")
	}
	id := program[len(program)-1][1]
	// bpftool on the host sees the programs of every namespace.
	if output, err := exec.Command("bpftool", "prog", "show", "id", id).CombinedOutput(); err != nil { //nolint:gosec // a number
		t.Fatalf("program %s is not loaded before down: %v\n%s", id, err, output)
	}
	guide.run(t, e, "Remove")
	e.expectNothing(t)
	e.poll(t, func() error {
		if output, err := exec.Command("bpftool", "prog", "show", "id", id).CombinedOutput(); err == nil { //nolint:gosec // a number
			return fmt.Errorf("the program is still loaded: %s", output)
		}
		return nil
	})
}

// expectNothing expects that the topology has left nothing on the engine.
func (e *engine) expectNothing(t *testing.T) {
	t.Helper()
	for _, c := range [][]string{
		{"docker", "ps", "--all", "--quiet"},
		{"docker", "volume", "ls", "--quiet"},
		{"docker", "network", "ls", "--quiet", "--filter=type=custom"},
	} {
		if left := e.must(t, c...); left != "" {
			t.Errorf("left of %v:\n%s", c, left)
		}
	}
}
