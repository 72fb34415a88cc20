// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package exporter is the program: it reads the flags, starts the audit and serves its metrics.
package exporter

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/prometheus/common/promslog"
	"github.com/prometheus/common/version"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/collector"
	"github.com/xdp-audit/xdp_audit_exporter/internal/logging"
	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
	"github.com/xdp-audit/xdp_audit_exporter/internal/trail"
)

// Name is the name of the program.
const Name = "xdp_audit_exporter"

// Process is what the exporter uses of the process that it runs in.
type Process struct {
	Stdout, Stderr io.Writer
	Handlers       map[string]http.Handler // additional handlers by path; nil for none

	// Hangup receives SIGHUP, which reopens the audit trail and the raw files, and reloads the leak
	// assessments. With nil, Run receives the signal from the time at which it has checked the
	// flags.
	Hangup <-chan os.Signal

	open openFunc // nil for bpf.Prepare
	drop dropFunc // nil for privilege.Drop and privilege.RefusePrograms

	// setMemoryLimit sets the soft memory limit of the runtime; nil leaves it as it is.
	setMemoryLimit func(bytes int64)
}

type openFunc func(context.Context, bpf.Config, *slog.Logger) (audit, error)

// audit is the part of a *bpf.Audit that the exporter uses.
type audit interface {
	collector.Source
	measurer
	ReadEvents(ctx context.Context, handle func(*bpf.Event)) error
	Watch(ctx context.Context, length int, handle func(*bpf.Window)) error
	Follow(ctx context.Context) error
	Ready() error
	VisitCuts(device string, visit func(early, late float64)) error
	Learnt() map[string]bpf.Learnt
	Commit(ctx context.Context) error
	CommitNeedsPrivilege() bool
	Abandon() error
	Close() error
}

// OneLine returns the text of an error in one line that is safe for a terminal. The text of several
// joined errors, or of an error with a list, has more lines, and may quote any argument or file.
func OneLine(err error) string {
	return printable.Line(strings.NewReplacer(":\n  ", ": ", "\n  ", "; ", "\n", "; ").Replace(err.Error()))
}

// Run runs the exporter with command-line arguments until the context is canceled or an error
// occurs. An invalid flag or file is an error before any device is touched. When Run returns,
// nothing is attached, except what is pinned for the next exporter.
func Run(ctx context.Context, args []string, process Process) (err error) {
	o, err := parseFlags(args, process.Stdout)
	if err != nil || o == nil {
		return err
	}
	stderr := logging.NewWriter(process.Stderr)
	end := newEnding(ctx)
	defer flush(stderr, end)
	o.log.Writer = stderr
	switch {
	case o.check:
		return check(ctx, o, process)
	case o.healthcheck:
		return checkHealth(ctx, o.web)
	case o.unpin:
		return unpin(o)
	}
	if err := o.validate(); err != nil {
		return err
	}

	e := &exporter{options: o, process: process, end: end, logger: stderr.CountLosses(promslog.New(&o.log))}
	defer func() {
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			e.logger.Info("Shutting down before the start is complete", "reason", err)
			err = nil
		}
		err = errors.Join(err, e.close())
	}()
	defer e.receiveHangup()()
	if err := e.openTrail(); err != nil {
		return err
	}
	if e.leak, err = o.openLeak(e.logger); err != nil {
		return err
	}
	if e.listeners, err = listen(o.web); err != nil {
		return err
	}
	if err := e.attach(ctx); err != nil {
		return err
	}
	if e.audit.CommitNeedsPrivilege() {
		if err := e.audit.Commit(ctx); err != nil {
			return err
		}
	}
	privileges, err := e.dropPrivileges()
	if err != nil {
		return err
	}
	if err := o.checkSaving(); err != nil {
		return err
	}
	if err := e.leak.begin(e.audit); err != nil {
		return err
	}
	judge, excess := collector.NewCovert(), collector.NewExcess(o.savedPasts)
	site := newWebPages(o, judge)
	handler, err := e.newHandler(judge, excess, privileges, site)
	if err != nil {
		return err
	}
	// Nothing can fail from here on.
	if err := e.audit.Commit(ctx); err != nil {
		return err
	}
	e.refusePrograms()
	return e.serve(ctx, handler, judge, excess, site)
}

// flush waits until the log is written, unless its reader is stuck.
func flush(stderr *logging.Writer, end *ending) {
	ctx, cancel := context.WithTimeout(context.Background(), end.limit(flushingUntil, flushTimeout))
	defer cancel()
	stderr.Flush(ctx)
}

// unpin removes the pins.
func unpin(o *options) error {
	if o.audit.PinPath == "" {
		return errors.New("--bpf.unpin: set --bpf.pin-path (XDP_AUDIT_PIN_PATH) to the directory of the pins")
	}
	if err := bpf.Unpin(o.audit.PinPath, promslog.New(&o.log)); err != nil {
		return o.nameFlag(err)
	}
	return nil
}

// exporter is an exporter between its start and its end. Its parts are set in the order of the
// fields.
type exporter struct {
	options   *options
	process   Process
	logger    *slog.Logger
	end       *ending
	hangup    <-chan os.Signal // receives SIGHUP
	trail     *trail.Trail     // nil for none
	leak      *leakAssessments // nil for none
	listeners []net.Listener
	audit     audit // nil while nothing is attached
	isServing bool  // the start has succeeded
}

// close releases everything in the reverse order of the start. It detaches the hooks that a
// failed start has attached; after a successful start it keeps those that are pinned.
func (e *exporter) close() error {
	var errs []error
	switch {
	case e.audit == nil:
	case e.isServing:
		errs = append(errs, e.audit.Close())
	default:
		errs = append(errs, e.audit.Abandon())
	}
	closeAll(e.listeners)
	if e.trail != nil {
		errs = append(errs, e.trail.Close())
	}
	errs = append(errs, e.leak.close())
	return errors.Join(errs...)
}

// receiveHangup makes the exporter receive SIGHUP, which ends the process otherwise, until stop is
// called.
func (e *exporter) receiveHangup() (stop func()) {
	if e.hangup = e.process.Hangup; e.hangup != nil {
		return func() {}
	}
	received := make(chan os.Signal, 1)
	signal.Notify(received, syscall.SIGHUP)
	e.hangup = received
	return func() { signal.Stop(received) }
}

// attach loads the programs and attaches them to the devices. The start may still fail.
func (e *exporter) attach(ctx context.Context) error {
	open := e.process.open
	if open == nil {
		open = func(ctx context.Context, config bpf.Config, logger *slog.Logger) (audit, error) {
			return bpf.Prepare(ctx, config, logger)
		}
	}
	attached, err := open(ctx, e.options.audit, e.logger)
	if err != nil {
		return e.options.nameFlag(err) // attached may be a nil *bpf.Audit, which is not a nil audit
	}
	e.audit = attached
	if config := e.options.audit; config.DefaultRoute {
		e.logger.Info("Auditing the devices that hold a default route: --audit.device names others, --audit.mode chooses another mode", "mode", config.Mode)
	}
	return nil
}

// newHandler returns the handler of all paths over the collectors of the flags.
func (e *exporter) newHandler(
	judge *collector.Covert, excess *collector.Excess, privileges *collector.Privileges, site *webPages,
) (http.Handler, error) {
	options := collector.Options{
		Collectors: e.options.collectors, Covert: judge, Excess: excess, Privileges: privileges, Logger: logging.Limit(e.logger),
	}
	if e.trail != nil { // a nil *trail.Trail would be a Trail that is not nil
		options.Trail = e.trail
	}
	var leak http.Handler
	if e.leak != nil {
		options.Leak, leak = e.leak, e.leak
	}
	set, err := collector.New(e.audit, options)
	if err != nil {
		return nil, err
	}
	memory := newMemoryLimiter(e.process.setMemoryLimit, e.options.leakFile != "")
	pages, posts := maps.Clone(e.process.Handlers), map[string]http.Handler{}
	if pages == nil {
		pages = map[string]http.Handler{}
	}
	ofSite, err := site.handlers(e.audit, e.leak, privileges)
	if err != nil {
		return nil, err
	}
	maps.Copy(pages, ofSite)
	scrapes, states := newScrapeHandlers(set, leak, e.options, memory.grow, e.logger)
	if states != nil {
		pages[leakPath] = states
	}
	if e.options.canReload {
		logger := logging.Limit(e.logger)
		posts[reloadPath] = reloading(func() error { return e.leak.reload(logger) })
	}
	return newHandler(e.options, scrapes, e.audit.Ready, pages, posts)
}

// serve serves the metrics, and reads events, windows and the flags of each minute, until the
// context is canceled or a part fails.
func (e *exporter) serve(
	ctx context.Context, handler http.Handler, judge *collector.Covert, excess *collector.Excess, site *webPages,
) error {
	e.logger.Info("Starting "+Name, "version", version.Info(), "build_context", version.BuildContext())
	e.isServing = true
	record := newRecorder(e.trail, e.logger)
	saver := e.options.newBaselineSaver(e.audit, excess, e.logger)
	err := serve(ctx, e.end, e.logger, e.listeners, e.options, handler,
		func(ctx context.Context) error {
			return e.audit.ReadEvents(ctx, func(event *bpf.Event) {
				site.flagged(event)
				record(func() error { return e.trail.Write(event) })
			})
		},
		func(ctx context.Context) error {
			return e.audit.Watch(ctx, collector.CovertWindow, func(window *bpf.Window) {
				if verdict := judge.Judge(window); verdict != nil {
					record(func() error { return e.trail.WriteCovert(window, verdict) })
				}
			})
		},
		func(ctx context.Context) error { return excess.Run(ctx, e.audit) },
		func(ctx context.Context) error { return site.run(ctx, e.audit) },
		e.audit.Follow,
		e.leak.run,
		e.handleHangups,
		saver.run,
	)
	return errors.Join(err, saver.finish())
}

// openTrail opens the audit trail, if there is to be one.
func (e *exporter) openTrail() (err error) {
	if e.options.trailFile == "" {
		return nil
	}
	if e.trail, err = trail.Open(e.options.trailFile); err != nil {
		return flagError("trail.file", err)
	}
	return nil
}

// handleHangups reopens files on each SIGHUP, after which rotated files are no longer written, and
// reloads the leak assessments.
func (e *exporter) handleHangups(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.hangup:
		}
		e.reopenTrail()
		e.reopenRawFiles()
		_ = e.leak.reload(e.logger) // logs its error
	}
}

func (e *exporter) reopenRawFiles() {
	if e.leak == nil || e.leak.raw == nil {
		return
	}
	if err := e.leak.raw.Reopen(); err != nil {
		e.logger.Error("Cannot reopen all raw files, response times go to the old ones", "err", OneLine(err))
		return
	}
	e.logger.Info("Raw files reopened")
}

func (e *exporter) reopenTrail() {
	if e.trail == nil {
		return
	}
	if err := e.trail.Reopen(); err != nil {
		e.logger.Error("Cannot reopen the audit trail, records go to the old file", "err", err)
		return
	}
	e.logger.Info("Audit trail reopened")
}

// newRecorder returns a function that calls write and logs the first failure after a success,
// and the first success after a failure. Without a trail it does nothing.
func newRecorder(records *trail.Trail, logger *slog.Logger) func(write func() error) {
	if records == nil {
		return func(func() error) {}
	}
	var isLosing atomic.Bool
	return func(write func() error) {
		err := write()
		wasLosing := isLosing.Swap(err != nil)
		switch {
		case err != nil && !wasLosing:
			logger.Error("Audit trail records are lost", "err", err)
		case err == nil && wasLosing:
			logger.Info("Audit trail records are written again", "lost", records.WriteErrors())
		}
	}
}
