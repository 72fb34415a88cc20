// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"

	"github.com/xdp-audit/xdp_audit_exporter/collector"
	"github.com/xdp-audit/xdp_audit_exporter/internal/answer"
	"github.com/xdp-audit/xdp_audit_exporter/internal/connlimit"
	"github.com/xdp-audit/xdp_audit_exporter/internal/logging"
)

// sendingLimits limit the answers that are being sent.
type sendingLimits struct {
	maxBytes     int           // of all answers, compressed
	timeout      time.Duration // of an answer
	stallTimeout time.Duration // of a part of an answer
}

// defaultSending are the limits that SECURITY.md states.
var defaultSending = sendingLimits{maxBytes: 16 << 20, timeout: answerTimeout, stallTimeout: 10 * time.Second}

// newScrapeHandlers returns the handler of scrapes, and that of the state of leak assessments,
// which is nil if leak is. They store each answer and send it when it is complete, so that a client
// that does not read delays no other one. Both have the same limits together.
func newScrapeHandlers(set *collector.Set, leak http.Handler, o *options, grow func(int), logger *slog.Logger) (scrapes, states http.Handler) {
	metrics := newMetricsHandler(set, !o.withoutExporterMetrics, logging.Limit(logger))
	pages := http.Handler(metrics)
	if leak != nil {
		pages = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == leakPath {
				leak.ServeHTTP(w, r)
				return
			}
			metrics.ServeHTTP(w, r)
		})
	}
	answers := answer.New(pages, answer.Options{
		MaxRequests:  int(o.maxRequests),
		MaxBytes:     o.sending.maxBytes,
		Timeout:      o.sending.timeout,
		StallTimeout: o.sending.stallTimeout,
		Key:          scrapeKey,
		Host:         func(r *http.Request) netip.Prefix { return connlimit.HostOf(r.RemoteAddr) },
		Made:         grow,
	})
	scrapes = answers
	if metrics.exporter != nil {
		scrapes = promhttp.InstrumentMetricHandler(metrics.exporter, answers)
	}
	if leak == nil {
		return scrapes, nil
	}
	return scrapes, answers
}

// scrapeKey is the same for scrapes with the same collectors and metrics in the same format.
func scrapeKey(r *http.Request) string {
	if r.URL.Path == leakPath { // never that of the metrics
		return leakPath
	}
	query := r.URL.Query()
	return fmt.Sprintf("%s %q %q %q", expfmt.NegotiateAccept(r.Header, expfmt.DefaultOpenMetricsAcceptedFormats()...),
		query["collect[]"], query["exclude[]"], query["name[]"])
}

// metricsHandler serves the metrics of a set. The parameters collect[] and exclude[] of the URL
// select collectors.
type metricsHandler struct {
	set      *collector.Set
	exporter *prometheus.Registry // go_*, process_* and promhttp_*; nil for none
	errorLog promhttp.Logger
	whole    http.Handler // without parameters
}

func newMetricsHandler(set *collector.Set, exporterMetrics bool, logger *slog.Logger) *metricsHandler {
	h := &metricsHandler{set: set, errorLog: slog.NewLogLogger(logger.Handler(), slog.LevelError)}
	if exporterMetrics {
		h.exporter = prometheus.NewRegistry()
		h.exporter.MustRegister(
			collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
			collectors.NewGoCollector(),
		)
	}
	h.whole = h.handlerFor(set)
	return h
}

// ServeHTTP implements http.Handler.
func (h *metricsHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	collect, exclude := query["collect[]"], query["exclude[]"]
	if len(collect) == 0 && len(exclude) == 0 {
		h.whole.ServeHTTP(w, r)
		return
	}
	filtered, err := h.set.Filter(collect, exclude)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	h.handlerFor(filtered).ServeHTTP(w, r)
}

// handlerFor returns a handler of the metrics of a set and of those about the exporter.
func (h *metricsHandler) handlerFor(set *collector.Set) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(versioncollector.NewCollector(Name), set)
	options := promhttp.HandlerOpts{
		ErrorLog: h.errorLog, ErrorHandling: promhttp.ContinueOnError, EnableOpenMetrics: true, DisableCompression: true,
	}
	if h.exporter != nil {
		// prometheus.Gatherers would check and sort all metrics again.
		registry.MustRegister(h.exporter)
		options.Registry = h.exporter
	}
	return promhttp.HandlerFor(registry, options)
}
