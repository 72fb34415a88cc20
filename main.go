// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Command xdp_audit_exporter audits packet timing with an XDP program, and exports what it finds to Prometheus.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/promslog"
	promslogflag "github.com/prometheus/common/promslog/flag"
	"github.com/prometheus/common/version"
	"github.com/prometheus/exporter-toolkit/web"
	"github.com/prometheus/exporter-toolkit/web/kingpinflag"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/collector"
	"github.com/xdp-audit/xdp_audit_exporter/internal/privilege"
	"github.com/xdp-audit/xdp_audit_exporter/trail"
)

const (
	name = "xdp_audit_exporter"

	// memoryLimit is the soft limit of Go's memory unless GOMEMLIMIT sets one: several times what is in use, and short of
	// what the compressors of many scrapes at a time would let the heap grow to before it is collected.
	memoryLimit = 20 << 20
)

func main() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	// The first signal ends the exporter in order, the second at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	// The end of whoever reads the trail or the log is an error of the write, and not the end of the audit.
	signal.Ignore(syscall.SIGPIPE)

	open := func(config bpf.Config, logger *slog.Logger) (audit, error) { return bpf.Open(config, logger) }
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr, open, privilege.Drop); err != nil {
		fmt.Fprintf(os.Stderr, "%s: error: %s\n", name, oneLine(err))
		os.Exit(1)
	}
}

// oneLine returns the text of an error that may be several, or have a list in it.
func oneLine(err error) string {
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

type openFunc func(bpf.Config, *slog.Logger) (audit, error)

// run is the exporter from its arguments to its end, which is a canceled context or an error. Whatever can be wrong with
// the arguments is found before open attaches anything, and nothing is attached when run returns, but what is pinned for the
// exporter after this one. What the exporter then no longer needs is given up with drop, before it serves.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, open openFunc, drop dropFunc) (err error) {
	o, err := parseFlags(args, stdout)
	if err != nil || o == nil {
		return err
	}
	if o.healthcheck {
		return checkHealth(ctx, o.web)
	}
	o.log.Writer = stderr
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

	attached, err := open(config, logger)
	if err != nil {
		return err
	}
	end := attached.Abandon
	defer func() { err = errors.Join(err, end()) }()

	held, err := o.dropPrivileges(drop, records, logger)
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
	handler, err := newHandler(set, o, logger)
	if err != nil {
		return err
	}
	logger.Info("Starting "+name, "version", version.Info(), "build_context", version.BuildContext())

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

// options are the flags.
type options struct {
	devices         []string // names and globs, some of them joined by commas
	follow          bool
	isFollowGiven   bool
	unpin           bool
	audit           bpf.Config
	baselineFile    string
	isBaselineGiven bool

	covertFlows     uint32
	trailFile       string
	collectors      []string
	telemetryPath   string
	maxRequests     uint32
	maxConnections  uint32
	exporterMetrics bool
	healthcheck     bool
	keepPrivileges  bool
	web             *web.FlagConfig
	log             promslog.Config
}

// parseFlags returns nil without an error when --help or --version has been answered.
func parseFlags(args []string, stdout io.Writer) (*options, error) {
	o := &options{audit: bpf.DefaultConfig(), covertFlows: 64, maxRequests: 40, maxConnections: 256}
	c := &o.audit

	app := kingpin.New(name, "Audits packet timing with an XDP program, and exports what it finds to Prometheus.")
	app.HelpFlag.Short('h')
	app.UsageWriter(stdout)
	app.Version(version.Print(name))
	isAnswered := false
	app.Terminate(func(int) { isAnswered = true })

	app.Flag("audit.device", "Device to audit, by name or as a glob. Repeatable; several may be joined by commas.").
		Envar("XDP_INTERFACE").PlaceHolder("NAME").StringsVar(&o.devices)
	app.Flag("audit.follow", "Attach devices that appear or are made again later; if given, wait even for the first. "+
		"On by default where a glob is among the devices.").
		Envar("XDP_AUDIT_FOLLOW").IsSetByUser(&o.isFollowGiven).BoolVar(&o.follow)
	flagOf(app, "audit.max-devices", "XDP_AUDIT_MAX_DEVICES",
		"Devices at a time, where they are followed or pinned; each takes 16.5 KiB for each possible CPU.", &c.MaxDevices, wholeNumber)
	app.Flag("bpf.pin-path", "Folder of a bpf file system in which maps and hooks outlive the exporter, "+
		"for the next one to take over: /sys/fs/bpf/xdp_audit.").
		Envar("XDP_AUDIT_PIN_PATH").PlaceHolder("PATH").StringVar(&c.PinPath)
	app.Flag("bpf.unpin", "Remove what is pinned at --bpf.pin-path, and end.").BoolVar(&o.unpin)
	flagOf(app, "audit.mode", "XDP_MODE",
		"How to attach: drv (native), hw (offloaded), skb (generic), or auto (drv, then skb).", &c.Mode, text)
	flagOf(app, "audit.threshold", "XDP_AUDIT_THRESHOLD",
		"|t| at which a packet is flagged, at least 2.", &c.Threshold, number)
	flagOf(app, "audit.min-samples", "XDP_AUDIT_MIN_SAMPLES",
		"Samples that a baseline needs before it judges.", &c.MinSamples, wholeNumber)
	flagOf(app, "audit.baseline", "XDP_AUDIT_BASELINE",
		"Whose baseline a packet is scored against: flow, or device (one for each CPU, merged at the scrape).", &c.Baseline, text)
	app.Flag("audit.baseline-file", "File to audit against what was learnt of devices, without teaching it any more; it is written if there is none. "+
		"It implies --audit.baseline=device.").
		Envar("XDP_AUDIT_BASELINE_FILE").PlaceHolder("PATH").StringVar(&o.baselineFile)
	app.GetFlag("audit.baseline").IsSetByUser(&o.isBaselineGiven)
	flagOf(app, "audit.window", "XDP_AUDIT_WINDOW",
		"Samples after which a baseline starts to forget.", &c.Window, wholeNumber)
	flagOf(app, "audit.domain", "XDP_AUDIT_DOMAIN",
		"Scale on which deltas are judged: linear, or log2 (their logarithm).", &c.Domain, text)
	flagOf(app, "audit.calibrate", "XDP_AUDIT_CALIBRATE",
		"Share of the judged packets that may become events, at most: what is rare for the device; 0 for all that are flagged.", &c.Calibrate, number)
	flagOf(app, "audit.idle-timeout", "XDP_AUDIT_IDLE_TIMEOUT",
		"Silence of a flow that is a pause rather than a delta.", &c.IdleTimeout, duration)
	flagOf(app, "audit.flows", "XDP_AUDIT_FLOWS",
		"Slots of the flow table, rounded up to a power of two.", &c.Flows, wholeNumber)
	flagOf(app, "audit.event-rate", "XDP_AUDIT_EVENT_RATE",
		"Perf events per second and CPU.", &c.EventRate, wholeNumber)
	flagOf(app, "audit.clock", "XDP_AUDIT_CLOCK",
		"Where the time of a packet comes from: ktime, or metadata (nanoseconds that an earlier program put in front of it).", &c.Clock, text)

	app.Flag("trail.file", "File to append flagged packets to, - for standard output. It is reopened on SIGHUP.").
		PlaceHolder("PATH").StringVar(&o.trailFile)

	chosen := collectorFlags(app)
	flagOf(app, "collector.covert.flows", "",
		"Busiest flows whose deltas the covert collector judges, 1 to 255.", &o.covertFlows, wholeNumber)

	app.Flag("web.telemetry-path", "Path under which to expose metrics.").Default("/metrics").StringVar(&o.telemetryPath)
	flagOf(app, "web.max-requests", "", "Scrapes served at a time, 0 for any number.", &o.maxRequests, wholeNumber)
	flagOf(app, "web.max-connections", "", "Connections at a time, an eighth of them from one address, 0 for any number.",
		&o.maxConnections, wholeNumber)
	withoutExporterMetrics := app.Flag("web.disable-exporter-metrics",
		"Leave out metrics about the exporter itself (promhttp_*, process_*, go_*).").Bool()
	app.Flag("healthcheck", "Ask the exporter that runs on the first listen address whether it is healthy, and exit with 0 or 1. "+
		"That it wants a password or a client's certificate is healthy.").BoolVar(&o.healthcheck)
	app.Flag("privileges.keep", "Keep all privileges after the start, for when dropping them or confining file access stands in the way.").
		BoolVar(&o.keepPrivileges)
	o.web = kingpinflag.AddFlags(app, ":9400")
	promslogflag.AddFlags(app, &o.log)

	_, err := app.Parse(args)
	if isAnswered {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w, try --help", err)
	}
	o.isBaselineGiven = o.isBaselineGiven || os.Getenv("XDP_AUDIT_BASELINE") != ""
	o.isFollowGiven = o.isFollowGiven || os.Getenv("XDP_AUDIT_FOLLOW") != ""
	o.collectors = chosen()
	o.exporterMetrics = !*withoutExporterMetrics
	return o, nil
}

// collectorFlags adds the flags that choose collectors. The function that it returns gives the names of those that are
// enabled, once the flags are parsed.
func collectorFlags(app *kingpin.Application) (chosen func() []string) {
	withoutDefaults := app.Flag("collector.disable-defaults", "Disable all collectors that are not enabled by a flag.").Bool()
	type state struct {
		enabled *bool
		isGiven bool
	}
	states := map[string]*state{}
	for _, name := range collector.Names() {
		byDefault, word := false, "disabled"
		if slices.Contains(collector.Defaults(), name) {
			byDefault, word = true, "enabled"
		}
		s := &state{}
		s.enabled = app.Flag("collector."+name, fmt.Sprintf("Enable the %s collector (default: %s).", name, word)).
			Default(strconv.FormatBool(byDefault)).IsSetByUser(&s.isGiven).Bool()
		states[name] = s
	}
	return func() []string {
		enabled := []string{}
		for _, name := range collector.Names() {
			if s := states[name]; *s.enabled && (s.isGiven || !*withoutDefaults) {
				enabled = append(enabled, name)
			}
		}
		return enabled
	}
}

// flagOf adds a flag whose default is what target holds. envar is empty for a flag without an environment variable.
func flagOf[T any](app *kingpin.Application, name, envar, help string, target *T, parse func(string) (T, error)) {
	title := "--" + name
	if envar != "" {
		title += " (" + envar + ")"
	}
	app.Flag(name, help).Envar(envar).Default(fmt.Sprint(*target)).SetValue(flagValue[T]{title, target, parse})
}

// flagValue is a kingpin.Value that names its flag when it cannot be parsed.
type flagValue[T any] struct {
	title  string
	target *T
	parse  func(string) (T, error)
}

func (v flagValue[T]) String() string { return fmt.Sprint(*v.target) }

func (v flagValue[T]) Set(s string) (err error) {
	if *v.target, err = v.parse(s); err != nil {
		return fmt.Errorf("%s: %q %w", v.title, s, err)
	}
	return nil
}

func text[T ~string](s string) (T, error) { return T(s), nil }

func number(s string) (float64, error) {
	n, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return 0, errors.New("is not a number")
	}
	return n, nil
}

func wholeNumber(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, errors.New("is not a whole number from 0 to 4294967295")
	}
	return uint32(n), nil
}

func duration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, errors.New("is not a duration such as 1s or 250ms")
	}
	return d, nil
}

// auditConfig returns the configuration of the audit, checked as far as that is possible without the kernel.
func (o *options) auditConfig() (bpf.Config, error) {
	config := o.audit
	config.Devices, config.Globs = splitDevices(o.devices)
	if len(config.Devices) == 0 && len(config.Globs) == 0 {
		return config, errors.New("no device to audit: name at least one with --audit.device or XDP_INTERFACE")
	}
	config.Follow = o.follow || !o.isFollowGiven && len(config.Globs) > 0
	config.AllowNone = o.follow
	if slices.Contains(o.collectors, "covert") {
		if o.covertFlows == 0 {
			return config, errors.New("--collector.covert.flows: 0 flows cannot be judged: leave the covert collector out instead")
		}
		config.Watches = o.covertFlows
	}
	if err := config.Validate(); err != nil {
		return config, err
	}
	return config, o.applyBaselineFile(&config)
}

// unpin removes what is pinned.
func unpin(o *options) error {
	if o.audit.PinPath == "" {
		return errors.New("--bpf.unpin: name the folder with --bpf.pin-path")
	}
	return bpf.Unpin(o.audit.PinPath, promslog.New(&o.log))
}

// splitDevices splits values at commas into names and globs.
func splitDevices(values []string) (names, globs []string) {
	for _, value := range values {
		for device := range strings.SplitSeq(value, ",") {
			switch device = strings.TrimSpace(device); {
			case device == "":
			case strings.ContainsAny(device, "*?["):
				globs = append(globs, device)
			default:
				names = append(names, device)
			}
		}
	}
	return names, globs
}

// plainPath reports whether a path can be served as it is: absolute, clean, not a pattern, and not one of ours.
func plainPath(p string) bool {
	return regexp.MustCompile(`^/[\w.~/-]*$`).MatchString(p) && path.Clean(p) == p && p != healthyPath && p != readyPath
}
