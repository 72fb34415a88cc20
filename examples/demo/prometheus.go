// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const scrapeInterval = 2 * time.Second

// prometheus is a running server.
type prometheus struct {
	url   string
	cmd   *exec.Cmd
	log   bytes.Buffer // read after the server has ended
	ended chan struct{}
}

// alert is a pending or firing alert.
type alert struct {
	State       string
	Labels      map[string]string
	Annotations map[string]string
}

// startPrometheus starts a server that scrapes the hosts under their names.
func startPrometheus(server, rules, address string, members []*member, failed chan<- error, isEnding <-chan struct{}) (*prometheus, error) {
	rules, err := filepath.Abs(filepath.Join(rules, "*.yml"))
	if err != nil {
		return nil, err
	}
	var targets []map[string]any
	for _, m := range members {
		target := strings.TrimSuffix(strings.TrimPrefix(m.page, "http://"), "/")
		targets = append(targets, map[string]any{"targets": []string{target}, "labels": map[string]string{"instance": m.name}})
	}
	text, err := json.Marshal(map[string]any{ // JSON is YAML
		"global":         map[string]string{"scrape_interval": scrapeInterval.String(), "scrape_timeout": scrapeInterval.String(), "evaluation_interval": scrapeInterval.String()},
		"rule_files":     []string{rules},
		"scrape_configs": []map[string]any{{"job_name": "xdp_audit", "static_configs": targets}},
	})
	if err != nil {
		return nil, err
	}
	config := filepath.Join(folder, "prometheus.yml")
	if err := os.WriteFile(config, text, 0o600); err != nil {
		return nil, err
	}
	p := &prometheus{url: "http://" + address, ended: make(chan struct{})}
	p.cmd = exec.Command(server, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(folder, "prometheus"), //nolint:gosec // the user names the server
		"--web.listen-address="+address, "--log.level=warn")
	p.cmd.Stderr = &p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig is sent when this thread ends
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		defer close(p.ended)
		if err := p.cmd.Wait(); !isClosed(isEnding) {
			lines := strings.Split(strings.TrimSpace(p.log.String()), "\n")
			failed <- fmt.Errorf("Prometheus ended: %w: %s", cmp.Or(err, errors.New("exit status 0")), cmp.Or(lines[len(lines)-1], "it has written nothing")) //nolint:staticcheck // a name
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting Prometheus: %w", err)
	}
	return p, nil
}

func (p *prometheus) close() error {
	if p == nil {
		return nil
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
		return nil
	case <-time.After(patience):
		return errors.New("Prometheus does not end") //nolint:staticcheck // a name
	}
}

// get reads the data of an answer of the API.
func (p *prometheus) get(ctx context.Context, path string, data any) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+path, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("asking Prometheus for %s: %s", path, response.Status)
	}
	answer := struct{ Data any }{data}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return fmt.Errorf("asking Prometheus for %s: %w", path, err)
	}
	return nil
}

// alerts returns the pending and firing alerts.
func (p *prometheus) alerts(ctx context.Context) ([]alert, error) {
	var data struct{ Alerts []alert }
	err := p.get(ctx, "/api/v1/alerts", &data)
	return data.Alerts, err
}

// query returns the only value of an expression.
func (p *prometheus) query(ctx context.Context, expression string) (float64, error) {
	var data struct {
		Result []struct{ Value [2]any }
	}
	if err := p.get(ctx, "/api/v1/query?"+url.Values{"query": {expression}}.Encode(), &data); err != nil {
		return 0, err
	}
	if len(data.Result) != 1 {
		return 0, fmt.Errorf("%s has %d values", expression, len(data.Result))
	}
	return strconv.ParseFloat(fmt.Sprint(data.Result[0].Value[1]), 64)
}

// expect returns an error unless the expression has that value.
func (p *prometheus) expect(ctx context.Context, expression string, want float64) error {
	got, err := p.query(ctx, expression)
	if err == nil && got != want {
		err = fmt.Errorf("%s is %v, not %v", expression, got, want)
	}
	return err
}

func (a alert) String() string {
	return fmt.Sprintf("%s of %s is %s", a.Labels["alertname"], a.Labels["instance"], a.State)
}

// text returns the alert with its labels and annotations.
func (a alert) text() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(a.Labels)) {
		fmt.Fprintf(&b, "  %s=%q\n", name, a.Labels[name])
	}
	for _, name := range []string{"summary", "description", "runbook_url"} {
		fmt.Fprintf(&b, "  %s: %s\n", name, a.Annotations[name])
	}
	return b.String()
}
