// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// findTool returns the path of a program, or skips the test.
func findTool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		skip(t, fmt.Errorf("%s is not installed: %w", name, err))
	}
	return path
}

func TestPromtoolFindsNothingToSay(t *testing.T) {
	l := newLab(t)
	promtool := findTool(t, "promtool")
	e := l.startExporter("--audit.device="+device, "--audit.device=absent0", "--trail.file="+filepath.Join(t.TempDir(), "trail"))
	l.send(l.newFlow(l.audited.IPv4.Addr()), 1000)
	e.atRest()
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(e.get("/metrics", http.StatusOK))
	if output, err := cmd.CombinedOutput(); err != nil || len(output) > 0 {
		t.Errorf("promtool check metrics: %v:\n%s", err, output)
	}
	e.expectStopped()
}

const prometheusAddress = "127.0.0.1:9090"

// A Prometheus server with the configuration of deploy scrapes over TLS as a user, and answers
// queries about steady traffic of one packet per millisecond.
func TestPrometheus(t *testing.T) {
	l := newLab(t)
	server := findTool(t, "prometheus")
	secured := secure(t)
	e := l.startSecured(secured, "--audit.device="+device, "--audit.clock=metadata")

	// Times are injected, so that the deltas do not depend on the load of the machine.
	const burst, interval = 100, uint64(time.Millisecond)
	random := rand.New(rand.NewPCG(1, 2))
	times := make([]uint64, burst)
	for i := range times {
		times[i] = 1e12 + uint64(i)*interval + uint64(50e3+10e3*random.NormFloat64())
	}
	g := newGenerator(t, l.sender, generatorOptions{times: times})
	ctx, stop := context.WithCancel(l.ctx)
	sent := make(chan error, 1)
	go func() {
		offset := uint64(0)
		sent <- every(ctx, burst*time.Millisecond, func() error {
			offset += burst * interval
			return errors.Join(g.restart(offset), g.send(generatedFrame(), burst))
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-sent; err != nil {
			t.Error(err)
		}
	})

	folder := t.TempDir()
	config, passwordFile := filepath.Join(folder, "prometheus.yml"), filepath.Join(folder, "password")
	example, err := os.ReadFile("../deploy/prometheus/tls.yml")
	if err != nil {
		t.Fatal(err)
	}
	text := string(example)
	for _, change := range [][2]string{
		{": 15s", ": 500ms"},
		{"/etc/prometheus/xdp_audit_ca.crt", secured.certificate},
		{"/etc/prometheus/xdp_audit_password", passwordFile},
		{"username: prometheus", "username: " + user},
		{"audited1.example.org:9400", address},
	} {
		text = replaceAll(t, text, change[0], change[1])
	}
	for path, content := range map[string]string{config: text, passwordFile: password} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := l.start(server, []string{
		"--config.file=" + config, "--storage.tsdb.path=" + filepath.Join(folder, "data"),
		"--web.listen-address=" + prometheusAddress, "--enable-feature=native-histograms", "--log.level=warn",
	})

	client := l.client()
	for _, test := range []struct {
		description, query string
		low, high          float64
	}{
		{"the exporter is up", `up{job="xdp_audit"}`, 1, 1},
		{"packets come in, nearly one a millisecond", `sum(rate(xdp_audit_packets_total{protocol="udp"}[1m]))`, 1, 1100},
		{"the median of the deltas is about a millisecond",
			`histogram_quantile(0.5, sum(rate(xdp_audit_delta_seconds[1m])))`, 0.0009, 0.0011},
		{"their mean too, from counters of their own", `
			avg(xdp_audit_delta_reference_seconds) + sum(rate(xdp_audit_delta_deviation_above_seconds_total[1m])
			- rate(xdp_audit_delta_deviation_below_seconds_total[1m])) / sum(rate(xdp_audit_deltas_total[1m]))`, 0.00099, 0.00101},
		{"the hook is up, and says how", `xdp_audit_hook_up * on(device) group_left(mode) xdp_audit_hook_info{mode="drv"}`, 1, 1},
	} {
		t.Run(test.description, func(t *testing.T) {
			var value float64
			err := l.tryPoll(func() (err error) {
				if p.hasEnded() {
					t.Fatalf("Prometheus ended: %s", &p.stderr)
				}
				if value, err = l.query(client, test.query); err != nil {
					return err
				}
				if value < test.low || value > test.high {
					return fmt.Errorf("%s is %v, want %v to %v", test.query, value, test.low, test.high)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%v", value)
		})
	}
	e.expectStopped()
}

// query asks Prometheus for a single number.
func (l *lab) query(client *http.Client, expression string) (float64, error) {
	path := "http://" + prometheusAddress + "/api/v1/query?" + url.Values{"query": {expression}}.Encode()
	request, err := http.NewRequestWithContext(l.ctx, http.MethodGet, path, nil)
	if err != nil {
		return 0, err
	}
	status, body, err := do(client, request)
	if err != nil {
		return 0, err
	}
	var answer struct {
		Data struct {
			Result []struct{ Value [2]any }
		}
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != http.StatusOK {
		return 0, fmt.Errorf("status %d: %s: %w", status, body, err)
	}
	if len(answer.Data.Result) != 1 {
		return 0, fmt.Errorf("%d series of %s, want 1", len(answer.Data.Result), expression)
	}
	number, ok := answer.Data.Result[0].Value[1].(string)
	value, err := strconv.ParseFloat(number, 64)
	if err != nil || !ok || math.IsNaN(value) {
		return 0, errors.New("not a number: " + body)
	}
	return value, nil
}
