// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Command embed is an example of an exporter that has the audit as one of its collectors.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/collector"
)

// Collector is the interface of this exporter's collectors, like that of node_exporter. It does
// not depend on the audit.
type Collector interface {
	Update(ch chan<- prometheus.Metric) error
}

var _ Collector = (*collector.Set)(nil)

// exporter is a prometheus.Collector that runs collectors by name.
type exporter map[string]Collector

func (e exporter) Describe(chan<- *prometheus.Desc) {}

func (e exporter) Collect(ch chan<- prometheus.Metric) {
	for name, c := range e {
		if err := c.Update(ch); err != nil {
			slog.Error("Collector failed", "name", name, "err", err)
		}
	}
}

func main() {
	device := flag.String("device", "eth0", "network device to audit")
	listen := flag.String("listen", ":9400", "address to serve /metrics on")
	flag.Parse()

	if err := run(*device, *listen); err != nil {
		fmt.Fprintln(os.Stderr, "embed:", err)
		os.Exit(1)
	}
}

func run(device, listen string) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	config := bpf.DefaultConfig()
	config.Devices = []string{device}
	audit, err := bpf.Open(config, slog.Default())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, audit.Close()) }()

	set, err := collector.New(audit, collector.Options{})
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(exporter{"xdp_audit": set}) // add your own collectors
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	server := &http.Server{Addr: listen, Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(server.ListenAndServe)
	group.Go(func() error {
		return audit.ReadEvents(ctx, func(event *bpf.Event) {
			slog.Debug("Packet flagged", "device", event.Device, "tscore", event.Score())
		})
	})
	group.Go(func() error {
		<-ctx.Done()
		return server.Shutdown(context.WithoutCancel(ctx))
	})
	if err := group.Wait(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
