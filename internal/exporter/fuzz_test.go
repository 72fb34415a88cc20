// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/collector"
	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
)

// Any arguments give a one-line error or a usable configuration.
func FuzzFlags(f *testing.F) {
	for _, line := range []string{
		"--audit.device=eth0",
		"--audit.device=eth0,eth* --audit.device=wlan[0-9] --audit.follow --audit.max-devices=4096",
		"--audit.device=a%2cb,ba%ffd0,x%5b1%5d,%2a*,[%5d]?", "--audit.device=%", "--audit.device=%zz*", "--audit.device=\x1b[31m",
		"--audit.device=eth0 --audit.mode=auto --audit.threshold=4.5 --audit.min-samples=2 --audit.window=16777216",
		"--audit.device=eth0 --audit.domain=log2 --audit.baseline=device --audit.clock=metadata --audit.idle-timeout=2147483648ns",
		"--audit.device=eth0 --audit.flows=67108864 --audit.event-rate=0 --bpf.pin-path=/sys/fs/bpf/a",
		"--audit.device=eth0 --no-collector.flows --collector.disable-defaults --collector.packets --web.telemetry-path=/",
		"--audit.threshold=NaN", "--audit.threshold=0x1p-2", "--audit.flows=-1", "--audit.idle-timeout=1e9h", "--audit.device=[",
		"--help", "--version", "--bpf.unpin", "-", "--", "--=", "--audit.device", "--log.level=x",
	} {
		f.Add(strings.ReplaceAll(line, " ", "\n"))
	}
	f.Fuzz(func(t *testing.T, lines string) {
		args := strings.Split(lines, "\n")
		for _, arg := range args {
			if strings.HasPrefix(arg, "@") { // a file of arguments
				t.Skip()
			}
		}
		o, err := parseFlags(args, io.Discard)
		if err == nil && o == nil {
			return // --help and the like
		}
		var config bpf.Config
		if err == nil {
			config, err = o.auditConfig()
		}
		if err != nil {
			if text := OneLine(err); text == "" || text != printable.Line(text) {
				t.Errorf("%q is refused with %q", args, text)
			}
			return
		}
		if err := config.Validate(); err != nil {
			t.Errorf("%q makes a configuration that is refused: %v", args, err)
		}
		if slots := config.Slots(); slots < int(config.Flows) || slots >= 2*max(int(config.Flows), 8) {
			t.Errorf("%d slots for %d flows", slots, config.Flows)
		}
		if len(config.Devices)+len(config.Globs) == 0 && !config.DefaultRoute {
			t.Errorf("%q has no device", args)
		}
	})
}

// The answer to any request is metrics of existing collectors, or a short reason.
func FuzzRequest(f *testing.F) {
	for _, query := range []string{
		"", "collect[]=packets", "collect[]=packets&collect[]=packets&exclude[]=", "collect%5B%5D=flows", "exclude[]=events",
		"collect[]=%00%ff", "collect[]=nosuch", "collect[]=packets;exclude[]=flows", "%", "collect[]=" + strings.Repeat("a", 10_000),
		strings.Repeat("collect[]=packets&", 1000),
	} {
		f.Add(query)
	}
	set, err := collector.New(newFakeAudit(), collector.Options{})
	if err != nil {
		f.Fatal(err)
	}
	handler := newMetricsHandler(set, false, slog.New(slog.DiscardHandler))
	f.Fuzz(func(t *testing.T, query string) {
		request := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		request.URL = &url.URL{Path: "/metrics", RawQuery: query}
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, request)
		const most = 1000
		switch body := answer.Body.String(); {
		case answer.Code == http.StatusOK && strings.Contains(body, "xdp_audit_exporter_build_info"):
		case answer.Code == http.StatusBadRequest && len(body) < most:
		default:
			t.Errorf("%q is answered with %d and %d bytes", query, answer.Code, len(body))
		}
	})
}
