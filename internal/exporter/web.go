// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/prometheus/common/version"
	"github.com/prometheus/exporter-toolkit/web"
	"go.yaml.in/yaml/v2"

	"github.com/xdp-audit/xdp_audit_exporter/internal/connlimit"
	"github.com/xdp-audit/xdp_audit_exporter/internal/logging"
)

const (
	healthyPath = "/-/healthy"
	readyPath   = "/-/ready"
	reloadPath  = "/-/reload"
	leakPath    = "/leak.json"

	answerTimeout = time.Minute // for sending an answer
)

// serve answers requests and runs the tasks until the parent context ends or one of them fails.
func serve(parent context.Context, end *ending, logger *slog.Logger, listeners []net.Listener, o *options, handler http.Handler,
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
	var passwords passwordTurns
	limit := connlimit.New(int(o.maxConnections), logger)
	if asksForHTTP2(*o.web.WebConfigFile) {
		logger.Warn("http2: true in the web configuration has no effect: only HTTP/1.1 is served", "path", *o.web.WebConfigFile)
	}
	port := slog.New(withoutHTTP2{logging.Limit(logger).Handler()})
	errorLog := slog.NewLogLogger(port.Handler(), slog.LevelWarn)
	for _, listener := range listeners {
		server := newServer(handler, errorLog)
		limit.Watch(server)
		passwords.watch(server)
		servers = append(servers, server)
		running.Go(func() {
			if err := web.Serve(limit.Listener(listener), server, o.web, port); !errors.Is(err, http.ErrServerClosed) {
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
	return errors.Join(failure, shutDown(end, logger, servers, &running))
}

// shutDown lets requests and tasks end, up to servingUntil.
func shutDown(end *ending, logger *slog.Logger, servers []*http.Server, running *sync.WaitGroup) error {
	limit, cancel := context.WithTimeout(context.Background(), end.limit(servingUntil, servingUntil))
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
		logger.Warn("Discarding unwritten events and response times: a write to the audit trail or to a raw file is blocked")
	}
	return errors.Join(errs...)
}

// newServer returns a server that closes the connections of slow and silent clients. It serves
// HTTP/1.1 only, whatever the web configuration says: a connection then has one request at a time
// and ends after its handler, so that a limit on connections also limits requests, including those
// whose password is still to be compared. In HTTP/2 a handler may outlive its connection.
func newServer(handler http.Handler, errorLog *log.Logger) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      answerTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    60 << 10, // net/http adds 4 KiB
		Protocols:         protocols,
		ErrorLog:          errorLog,

		DisableGeneralOptionsHandler: true, // it answers outside of the handler, without a password
	}
}

// asksForHTTP2 reports whether a valid web configuration enables HTTP/2 explicitly.
func asksForHTTP2(config string) bool {
	var content struct {
		Server struct {
			HTTP2 *bool `yaml:"http2"`
		} `yaml:"http_server_config"`
	}
	if text, err := os.ReadFile(config); err != nil || yaml.Unmarshal(text, &content) != nil {
		return false
	}
	return content.Server.HTTP2 != nil && *content.Server.HTTP2
}

// withoutHTTP2 corrects the log of the toolkit, which repeats http2 from the web configuration.
type withoutHTTP2 struct{ slog.Handler }

// Handle implements slog.Handler.
func (h withoutHTTP2) Handle(ctx context.Context, r slog.Record) error {
	corrected := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "http2" {
			a.Value = slog.BoolValue(false)
		}
		corrected.AddAttrs(a)
		return true
	})
	return h.Handler.Handle(ctx, corrected)
}

// newHandler returns the handler of all paths, including additional ones, and those that take POST
// only. The exporter is ready while ready returns nil.
func newHandler(o *options, scrapes http.Handler, ready func() error, additional, posts map[string]http.Handler) (http.Handler, error) {
	mux := http.NewServeMux()
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "OK") })
	pages := map[string]http.Handler{o.telemetryPath: scrapes, healthyPath: ok, readyPath: readiness(ready, ok)}
	if o.telemetryPath != "/" && additional["/"] == nil {
		landing, err := newLandingPage(o.telemetryPath, additional[leakPath] != nil)
		if err != nil {
			return nil, err
		}
		pages["/"] = landing
	}
	maps.Copy(pages, additional)
	for path, handler := range pages {
		if path == "/" {
			path = "/{$}" // not the paths beneath it
		}
		mux.Handle(path, handler)
	}
	return methods(mux, posts), nil // also for OPTIONS *, which has no path
}

// readiness answers like ok while ready returns nil, and otherwise with the status 503 and the
// reason in one line.
func readiness(ready func() error, ok http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, OneLine(err), http.StatusServiceUnavailable)
			return
		}
		ok.ServeHTTP(w, r)
	})
}

// reloading answers when reload has returned, with the status 500 and the error in one line if
// there is one.
func reloading(reload func() error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := reload(); err != nil {
			http.Error(w, OneLine(err), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "OK")
	})
}

func newLandingPage(telemetryPath string, hasLeak bool) (http.Handler, error) {
	links := []web.LandingLinks{{Address: telemetryPath, Text: "Metrics"}}
	if hasLeak {
		links = append(links, web.LandingLinks{Address: leakPath, Text: "Leak assessments"})
	}
	links = append(links, web.LandingLinks{Address: healthyPath, Text: "Health"})
	landing, err := web.NewLandingPage(web.LandingConfig{
		Name:        "XDP Audit Exporter",
		Description: "Packet timing, audited in the kernel",
		Version:     version.Info(),
		Profiling:   "false",
		Links:       links,
	})
	if err != nil {
		return nil, fmt.Errorf("creating the landing page: %w", err)
	}
	return landing, nil
}

// methods passes on requests with the methods GET and HEAD, has those with POST answered by the
// handler of their path in posts, and refuses all others.
func methods(next http.Handler, posts map[string]http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		allowed := "GET, HEAD"
		post := posts[r.URL.Path]
		if post != nil {
			allowed = "POST"
		}
		switch {
		case post != nil && r.Method == http.MethodPost:
			post.ServeHTTP(w, r)
		case post == nil && (r.Method == http.MethodGet || r.Method == http.MethodHead):
			next.ServeHTTP(w, r)
		default:
			w.Header().Set("Allow", allowed)
			http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
		}
	})
}
