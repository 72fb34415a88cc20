// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

func TestPagesAndTheirPaths(t *testing.T) {
	const status, landing = `id="devices"`, "<h1>XDP Audit Exporter</h1>"
	for _, test := range []struct {
		name        string
		args        []string
		has         map[string]string // part of the page by path
		has404      []string
		isProtected bool
	}{
		{
			"by default", nil,
			map[string]string{
				"/": status, "/device/eth0": "Inter-arrival", "/flags": "no event yet", "/config": "--audit.device", "/api/v1/status": `"devices":[{"device":"eth0"`,
				"/api/v1/devices/eth0": `"outcomes"`, "/api/v1/flags": `"flags":[]`, "/api/v1/config": `"settings"`, "/assets/style.css": ":root", "/assets/live.js": "use strict",
				"/assets/icon.svg": "<svg", "/metrics": "xdp_audit_packets_total",
			},
			[]string{
				"/status", "/covert", "/leak", "/api/v1/covert", "/api/v1/leak", "/device/eth9", "/api/v1/devices/eth9", "/flags?device=eth9", "/api/v1/nothing",
				"/assets/nothing", "/device/", "/nothing", "/api/", "/assets/",
			},
			true,
		},
		{
			"with covert channels", []string{"--collector.covert"},
			map[string]string{"/covert": "symbols", "/api/v1/covert": `"window_length"`, "/": `href="/covert"`}, []string{"/covert?device=eth9"}, true,
		},
		{
			"metrics at the root", []string{"--web.telemetry-path=/"},
			map[string]string{"/": "xdp_audit_packets_total", "/status": status, "/flags": `href="/status"`}, []string{"/nothing", "/metrics"}, false,
		},
		{
			"disabled", []string{"--web.disable-ui"},
			map[string]string{"/": landing, "/metrics": "xdp_audit_packets_total"},
			[]string{"/status", "/device/eth0", "/flags", "/config", "/api/v1/status", "/assets/style.css"}, false,
		},
		{
			"disabled, and metrics at the path of a page", []string{"--web.disable-ui", "--web.telemetry-path=/flags"},
			map[string]string{"/": landing, "/flags": "xdp_audit_packets_total"}, nil, false,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := start(t, test.args...)
			for path, want := range test.has {
				if code, body := e.get(t, path); code != http.StatusOK || !strings.Contains(body, want) {
					t.Errorf("%s: status %d, want %q in %s", path, code, want, body)
				}
			}
			for _, path := range test.has404 {
				if code, body := e.get(t, path); code != http.StatusNotFound {
					t.Errorf("%s: status %d, want 404: %s", path, code, body)
				}
			}
			if !test.isProtected {
				return
			}
			for _, path := range []string{"/", "/device/nothing", "/api/v1/status", "/assets/live.js"} {
				response, err := http.Get("http://" + e.address + path)
				if err != nil {
					t.Fatal(err)
				}
				response.Body.Close()
				for name, want := range map[string]string{
					"Content-Security-Policy": "default-src 'self'", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
				} {
					if got := response.Header.Get(name); !strings.HasPrefix(got, want) {
						t.Errorf("%s: the header %s is %q, want %q", path, name, got, want)
					}
				}
				if policy := response.Header.Get("Content-Security-Policy"); strings.Contains(policy, "unsafe") || !strings.Contains(policy, "frame-ancestors 'none'") {
					t.Errorf("%s: the policy is %q", path, policy)
				}
			}
		})
	}
}

// The page of the leak assessments has those of the configuration, as /leak.json has.
func TestLeakAssessmentsOnPages(t *testing.T) {
	config := write(t, t.TempDir()+"/leak.yml", leakFile("1us", "login"))
	e := start(t, "--leak.config.file="+config)
	for path, want := range map[string]string{
		"/leak": "login", "/api/v1/leak": `"assessments":[{"name":"login"`, "/": `href="/leak"`, "/leak.json": `"name":"login"`,
	} {
		if code, body := e.get(t, path); code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: status %d, want %q in %s", path, code, want, body)
		}
	}
}

func TestMetricsAreNotAtThePathOfAPage(t *testing.T) {
	for _, path := range []string{"/flags", "/config", "/covert", "/leak", "/api/v1/status", "/api", "/device/metrics", "/assets/a/b"} {
		err := run(t.Context(), []string{"--audit.device=eth0", "--web.telemetry-path=" + path}, io.Discard, io.Discard, openFake, dropNothing)
		expectError(t, err, "--web.telemetry-path", path, "--web.disable-ui")
	}
}

// Events reach the page of the flags with addresses only if these are asked for.
func TestFlagsOnPages(t *testing.T) {
	event := &bpf.Event{
		Device: "eth0", Time: time.Now(), Source: netip.MustParseAddrPort("192.0.2.1:1234"), Destination: netip.MustParseAddrPort("198.51.100.7:4433"), Protocol: bpf.ProtocolUDP,
		Flag: bpf.Flag{
			DeltaNs: 11_100_000, Domain: bpf.DomainLinear, Samples: 998, MeanQ16: 1_010_000 << 16, M2: bpf.Uint128{Lo: 997 * 130_000 * 130_000}, LenBytes: 60, Late: true,
		},
	}
	for _, test := range []struct {
		args     []string
		hasFlows bool
	}{{nil, false}, {[]string{"--web.show-flows"}, true}} {
		e := start(t, test.args...)
		e.audit.events <- event
		e.audit.events <- event // the first has been handled
		for _, path := range []string{"/flags", "/api/v1/flags?device=eth0"} {
			_, body := e.get(t, path)
			text := strings.NewReplacer("\u00a0", " ", "&#39;", "'").Replace(body)
			if want := "11.1 ms after the flow's last packet; 998 earlier gaps averaged 1.01 ms ± 130 µs."; !strings.Contains(text, want) {
				t.Errorf("%s lacks %q: %s", path, want, text)
			}
			for _, address := range []string{"192.0.2.1", "198.51.100.7", "4433"} {
				if strings.Contains(text, address) != test.hasFlows {
					t.Errorf("%s with %q: %q is there: %t", path, test.args, address, !test.hasFlows)
				}
			}
		}
	}
}

// The page of the configuration has each flag with its value and its source, and no content of a
// file.
func TestConfigurationOnPages(t *testing.T) {
	t.Setenv("XDP_AUDIT_THRESHOLD", "5")
	t.Setenv("XDP_AUDIT_WINDOW", "9000")
	config := write(t, t.TempDir()+"/web.yml", "basic_auth_users: {}\n# secret\n")
	e := start(t, "--audit.window=10000", "--no-collector.flows", "--web.config.file="+config)
	_, body := e.get(t, "/api/v1/config")
	var page struct {
		Settings []struct{ Name, Value, Source, Variable string }
	}
	if err := json.Unmarshal([]byte(body), &page); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, s := range page.Settings {
		got[s.Name] = s.Value + " by " + s.Source
	}
	for name, want := range map[string]string{
		"audit.device": "eth0 by flag", "audit.threshold": "5 by environment", "audit.window": "10000 by flag", "audit.clip": "1.8 by default",
		"collector.flows": "false by flag", "collector.packets": "true by default", "web.config.file": config + " by flag", "web.disable-ui": "false by default",
		"log.level": "info by default", "web.listen-address": "127.0.0.1:0 by flag",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	if len(got) < 45 || got["help"] != "" {
		t.Errorf("%d flags", len(got))
	}
	for _, path := range []string{"/api/v1/config", "/config"} {
		if _, body := e.get(t, path); strings.Contains(body, "secret") {
			t.Errorf("%s has the content of a file", path)
		}
	}
}
