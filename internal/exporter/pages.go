// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"context"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/version"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/collector"
	"github.com/xdp-audit/xdp_audit_exporter/internal/answer"
	"github.com/xdp-audit/xdp_audit_exporter/internal/connlimit"
	"github.com/xdp-audit/xdp_audit_exporter/internal/history"
	"github.com/xdp-audit/xdp_audit_exporter/internal/pages"
)

const (
	pageAge      = time.Second // for which a page is kept
	keptPages    = 1 << 20     // bytes of all pages that are kept, compressed
	pagesMaxSent = 4 << 20     // bytes of all pages that are being sent, compressed
)

// webPages are the pages, and what is kept in memory for them. A nil *webPages has none.
type webPages struct {
	options *options
	history *history.History
	flags   *history.Flags
	covert  *collector.Covert // nil if the collector is off
}

// newWebPages returns nil if the pages are disabled.
func newWebPages(o *options, judge *collector.Covert) *webPages {
	if o.withoutPages {
		return nil
	}
	p := &webPages{options: o, history: history.New(), flags: history.NewFlags()}
	if o.audit.Watches > 0 {
		p.covert = judge
	}
	return p
}

// flagged keeps the event of a flagged packet.
func (p *webPages) flagged(event *bpf.Event) {
	if p != nil {
		p.flags.Add(event)
	}
}

// run reads the counters until the context ends.
func (p *webPages) run(ctx context.Context, source pages.Source) error {
	if p == nil {
		return nil
	}
	ticker := time.NewTicker(history.Interval)
	defer ticker.Stop()
	for {
		p.read(time.Now(), source.Counters())
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// read adds a reading to the history.
func (p *webPages) read(now time.Time, counters []bpf.Counters) {
	p.history.Add(now, counters)
	if p.covert == nil {
		return
	}
	names := make([]string, len(counters))
	for i := range counters {
		names[i] = counters[i].Device
	}
	for i, report := range p.covert.Report(now, names) {
		p.history.AddScores(now, names[i], report.Scores)
	}
}

// handlers returns the handlers of the pages by path. Their answers are kept for a second. They
// have turns and limits of their own, so that they do not delay scrapes.
func (p *webPages) handlers(source pages.Source, leak *leakAssessments, privileges *collector.Privileges) (map[string]http.Handler, error) {
	if p == nil {
		return nil, nil
	}
	o := p.options
	options := pages.Options{
		Source: source, History: p.history, Flags: p.flags, Covert: p.covert, Audit: o.audit, Settings: o.settings,
		MetricsPath: o.telemetryPath, Version: version.Version, Revision: version.GetRevision(), ShowFlows: o.showFlows,
	}
	if leak != nil {
		options.Leak = leak.Snapshot
	}
	if privileges != nil {
		options.Privileges = &pages.Privileges{
			Capabilities: privileges.Capabilities, NoNewPrivileges: privileges.NoNewPrivileges, LandlockABI: privileges.LandlockABI,
		}
	}
	site, err := pages.New(options)
	if err != nil {
		return nil, err
	}
	answers := answer.New(site, answer.Options{
		MaxRequests: int(o.maxRequests), MaxBytes: pagesMaxSent, Timeout: o.sending.timeout, StallTimeout: o.sending.stallTimeout,
		MaxAge: pageAge, MaxKept: keptPages, Key: site.Key,
		Host: func(r *http.Request) netip.Prefix { return connlimit.HostOf(r.RemoteAddr) },
	})
	handlers := map[string]http.Handler{}
	for _, pattern := range site.Patterns() {
		handlers[pattern] = answers
	}
	return handlers, nil
}

// settingsOf returns all flags with their values, after the arguments have been parsed.
func settingsOf(app *kingpin.Application, args []string) (settings []pages.Setting) {
	given := map[string]bool{}
	if parsed, err := app.ParseContext(args); err == nil { // as before
		for _, element := range parsed.Elements {
			if flag, ok := element.Clause.(*kingpin.FlagClause); ok {
				given[flag.Model().Name] = true
			}
		}
	}
	for _, flag := range app.Model().Flags {
		if flag.Name == "help" || flag.Name == "version" {
			continue
		}
		s := pages.Setting{Name: flag.Name, Source: "default", Variable: flag.Envar, Help: flag.Help}
		if flag.Value != nil {
			s.Value = flag.Value.String()
		}
		switch {
		case given[flag.Name]:
			s.Source = "flag"
		case flag.Envar != "" && os.Getenv(flag.Envar) != "":
			s.Source = "environment"
		}
		s.Help = strings.TrimSpace(s.Help)
		settings = append(settings, s)
	}
	return settings
}
