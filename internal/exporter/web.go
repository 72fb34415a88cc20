// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/mdlayher/vsock"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	versioncollector "github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/version"
	"github.com/prometheus/exporter-toolkit/web"

	"github.com/xdp-audit/xdp_audit_exporter/collector"
	"github.com/xdp-audit/xdp_audit_exporter/internal/connlimit"
)

const (
	healthyPath = "/-/healthy"
	readyPath   = "/-/ready"

	shutdownTimeout = 5 * time.Second // for requests and events in progress
)

// serve answers requests and runs the tasks until the parent context ends or one of them fails.
func serve(parent context.Context, logger *slog.Logger, listeners []net.Listener, o *options, handler http.Handler,
	tasks ...func(context.Context) error,
) error {
	ctx, stop := context.WithCancelCause(parent)
	defer stop(nil)
	var running sync.WaitGroup
	for _, task := range tasks {
		running.Go(func() {
			if err := task(ctx); err != nil {
				stop(err)
			}
		})
	}
	// Each listener has its own server, because web.Serve wraps the handler of the server.
	var servers []*http.Server
	limit := connlimit.New(int(o.maxConnections), logger)
	for _, listener := range listeners {
		server := newServer(handler, logger)
		limit.Watch(server)
		servers = append(servers, server)
		running.Go(func() {
			if err := web.Serve(limit.Listener(listener), server, o.web, logger); !errors.Is(err, http.ErrServerClosed) {
				stop(err)
			}
		})
	}

	<-ctx.Done()
	failure := context.Cause(ctx)
	if parent.Err() != nil {
		logger.Info("Shutting down", "reason", failure)
		failure = nil
	}
	return errors.Join(failure, shutDown(ctx, logger, servers, &running))
}

// shutDown lets requests and tasks end, up to shutdownTimeout.
func shutDown(ctx context.Context, logger *slog.Logger, servers []*http.Server, running *sync.WaitGroup) error {
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	var errs []error
	for _, server := range servers {
		if err := server.Shutdown(limit); err != nil {
			logger.Warn("Closing connections with unfinished requests", "err", err)
			errs = append(errs, server.Close())
		}
	}
	ended := make(chan struct{})
	go func() {
		running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-limit.Done():
		logger.Warn("Discarding unwritten events: trail write is blocked")
	}
	return errors.Join(errs...)
}

// listen opens the sockets of the listen addresses, or takes those that systemd passes.
func listen(flags *web.FlagConfig) (listeners []net.Listener, err error) {
	if *flags.WebSystemdSocket {
		listeners, err = activation.Listeners()
		listeners = slices.DeleteFunc(listeners, func(l net.Listener) bool { return l == nil })
		if err == nil && len(listeners) == 0 {
			err = errors.New("systemd passed no socket; start the exporter from a socket unit")
		}
		if err != nil {
			return nil, flagError("web.systemd-socket", err)
		}
		return listeners, nil
	}
	for _, address := range *flags.WebListenAddresses {
		listener, err := listenOn(address)
		if err != nil {
			closeAll(listeners)
			return nil, flagError("web.listen-address", err)
		}
		listeners = append(listeners, listener)
	}
	return listeners, nil
}

func listenOn(address string) (net.Listener, error) {
	number, isVsock := strings.CutPrefix(address, "vsock://:")
	if !isVsock {
		return net.Listen("tcp", address)
	}
	port, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("%s has no port; use an address such as vsock://:9400", address)
	}
	return vsock.Listen(uint32(port), nil)
}

// closeAll closes listeners. A server may have closed them already, so errors mean nothing.
func closeAll(listeners []net.Listener) {
	for _, listener := range listeners {
		_ = listener.Close()
	}
}

// newServer returns a server that closes the connections of slow and silent clients. A
// connection has one request at a time, in HTTP/2 as in HTTP/1, so that a limit on connections
// also limits requests, including those whose password is still to be compared.
func newServer(handler http.Handler, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 1},
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
}

// newHandler returns the handler of all paths, including additional ones.
func newHandler(set *collector.Set, o *options, additional map[string]http.Handler, logger *slog.Logger) (http.Handler, error) {
	mux := http.NewServeMux()
	mux.Handle(o.telemetryPath, limitRequests(int(o.maxRequests), newMetricsHandler(set, !o.withoutExporterMetrics, logger)))
	for _, path := range []string{healthyPath, readyPath} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintln(w, "OK")
		})
	}
	for path, handler := range additional {
		mux.Handle(path, handler)
	}
	if o.telemetryPath == "/" {
		return mux, nil
	}
	landing, err := web.NewLandingPage(web.LandingConfig{
		Name:        "XDP Audit Exporter",
		Description: "Packet timing, audited in the kernel",
		Version:     version.Info(),
		Profiling:   "false",
		Links: []web.LandingLinks{
			{Address: o.telemetryPath, Text: "Metrics"},
			{Address: healthyPath, Text: "Health"},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("creating the landing page: %w", err)
	}
	mux.Handle("/", landing)
	return mux, nil
}

// limitRequests refuses requests when n are in progress; 0 stands for no limit. An answer is
// sent after its request has ended, so that a client that does not read blocks no other client.
func limitRequests(n int, next http.Handler) http.Handler {
	if n == 0 {
		return next
	}
	slots := make(chan struct{}, n)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := &storedAnswer{header: w.Header(), status: http.StatusOK}
		select {
		case slots <- struct{}{}:
			func() {
				defer func() { <-slots }()
				next.ServeHTTP(answer, r)
			}()
		default:
			http.Error(answer, fmt.Sprintf("Limit of concurrent requests reached (%d), try again later.", n), http.StatusServiceUnavailable)
		}
		w.WriteHeader(answer.status)
		_, _ = w.Write(answer.body.Bytes()) // the client may have closed the connection
	})
}

// storedAnswer is an http.ResponseWriter that stores the answer.
type storedAnswer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *storedAnswer) Header() http.Header { return a.header }

func (a *storedAnswer) WriteHeader(status int) { a.status = status }

func (a *storedAnswer) Write(b []byte) (int, error) { return a.body.Write(b) }

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
	options := promhttp.HandlerOpts{ErrorLog: h.errorLog, ErrorHandling: promhttp.ContinueOnError, EnableOpenMetrics: true}
	if h.exporter == nil {
		return promhttp.HandlerFor(registry, options)
	}
	options.Registry = h.exporter
	return promhttp.InstrumentMetricHandler(h.exporter, promhttp.HandlerFor(prometheus.Gatherers{h.exporter, registry}, options))
}
