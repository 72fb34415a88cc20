// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package exporter is the program: it reads the flags, starts the audit and serves its metrics.
package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/prometheus/common/promslog"
	"github.com/prometheus/common/version"
	"github.com/prometheus/exporter-toolkit/web"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/collector"
	"github.com/xdp-audit/xdp_audit_exporter/internal/privilege"
	"github.com/xdp-audit/xdp_audit_exporter/internal/trail"
)

// Name is that of the program.
const Name = "xdp_audit_exporter"

// OneLine returns the text of an error that may be several, or have a list in it.
func OneLine(err error) string {
	return strings.NewReplacer(":\n  ", ": ", "\n  ", "; ", "\n", "; ").Replace(err.Error())
}

// audit is what the exporter needs of a *bpf.Audit.
type audit interface {
	collector.Source
	ReadEvents(ctx context.Context, handle func(*bpf.Event)) error
	Watch(ctx context.Context, length int, handle func(*bpf.Window)) error
	Follow(ctx context.Context) error
	Learnt() map[string]bpf.Learnt
	Abandon() error
	Close() error
}

// Process is what the exporter is given by the process that it runs in.
type Process struct {
	Stdout, Stderr io.Writer
	Handlers       map[string]http.Handler // served besides the exporter's own, by path

	open openFunc // bpf.Open if nil
	drop dropFunc // privilege.Drop if nil
}

type openFunc func(bpf.Config, *slog.Logger) (audit, error)

// Run is the exporter from its arguments to its end, which is a canceled context or an error. Whatever can be wrong with
// the arguments is found before anything is attached, and nothing is attached when Run returns, but what is pinned for the
// exporter after this one. What the exporter then no longer needs of its privileges is given up before it serves.
func Run(ctx context.Context, args []string, process Process) (err error) {
	if process.open == nil {
		process.open = func(config bpf.Config, logger *slog.Logger) (audit, error) { return bpf.Open(config, logger) }
	}
	if process.drop == nil {
		process.drop = privilege.Drop
	}
	o, err := parseFlags(args, process.Stdout)
	if err != nil || o == nil {
		return err
	}
	if o.healthcheck {
		return checkHealth(ctx, o.web)
	}
	o.log.Writer = process.Stderr
	if o.unpin {
		return unpin(o)
	}
	config, err := o.auditConfig()
	if err != nil {
		return err
	}
	o.audit = config
	if !plainPath(o.telemetryPath) {
		return fmt.Errorf("--web.telemetry-path: %q is not a plain path such as /metrics", o.telemetryPath)
	}
	if err := web.Validate(*o.web.WebConfigFile); err != nil {
		return fmt.Errorf("--web.config.file: %s: %w", *o.web.WebConfigFile, err)
	}
	logger := promslog.New(&o.log)

	var records *trail.Trail
	if o.trailFile != "" {
		if records, err = trail.Open(o.trailFile); err != nil {
			return fmt.Errorf("--trail.file: %w", err)
		}
		defer func() { err = errors.Join(err, records.Close()) }()
	}
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)

	listeners, err := listen(o.web)
	if err != nil {
		return err
	}
	defer closeAll(listeners)

	attached, err := process.open(config, logger)
	if err != nil {
		return err
	}
	end := attached.Abandon
	defer func() { err = errors.Join(err, end()) }()

	held, err := o.dropPrivileges(process.drop, records, logger)
	if err != nil {
		return err
	}
	if err := o.checkSaving(); err != nil {
		return err
	}
	judge := collector.NewCovert()
	options := collector.Options{Collectors: o.collectors, Covert: judge, Privileges: held, Logger: logger}
	if records != nil {
		options.Trail = records
	}
	set, err := collector.New(attached, options)
	if err != nil {
		return err
	}
	handler, err := newHandler(set, o, process.Handlers, logger)
	if err != nil {
		return err
	}
	logger.Info("Starting "+Name, "version", version.Info(), "build_context", version.BuildContext())

	record := recorder(records, logger)
	learning := o.newSaver(attached, logger)
	end = attached.Close
	err = serve(ctx, logger, listeners, o, handler,
		func(ctx context.Context) error {
			return attached.ReadEvents(ctx, func(event *bpf.Event) {
				record(func() error { return records.Write(event) })
			})
		},
		func(ctx context.Context) error {
			return attached.Watch(ctx, collector.CovertWindow, func(window *bpf.Window) {
				if verdict := judge.Judge(window); verdict != nil {
					record(func() error { return records.WriteCovert(window, verdict) })
				}
			})
		},
		attached.Follow,
		func(ctx context.Context) error { return reopenOn(ctx, hangup, records, logger) },
		learning.run,
	)
	return errors.Join(err, learning.finish())
}

// recorder returns a function that writes a record to the trail, and says when it begins and when it ceases to lose them.
func recorder(records *trail.Trail, logger *slog.Logger) func(write func() error) {
	if records == nil {
		return func(func() error) {}
	}
	var isLosing atomic.Bool
	return func(write func() error) {
		err := write()
		wasLosing := isLosing.Swap(err != nil)
		switch {
		case err != nil && !wasLosing:
			logger.Error("Records are being lost", "err", err)
		case err == nil && wasLosing:
			logger.Info("Records are written again", "lost", records.WriteErrors())
		}
	}
}

// reopenOn reopens the trail on each signal, which is how it is rotated.
func reopenOn(ctx context.Context, hangup <-chan os.Signal, records *trail.Trail, logger *slog.Logger) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangup:
		}
		if records == nil {
			continue
		}
		if err := records.Reopen(); err != nil {
			logger.Error("Records go on in the old file", "err", err)
			continue
		}
		logger.Info("Audit trail reopened")
	}
}

// unpin removes what is pinned.
func unpin(o *options) error {
	if o.audit.PinPath == "" {
		return errors.New("--bpf.unpin: name the folder with --bpf.pin-path")
	}
	return bpf.Unpin(o.audit.PinPath, promslog.New(&o.log))
}
