// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/promslog"
	promslogflag "github.com/prometheus/common/promslog/flag"
	"github.com/prometheus/common/version"
	"github.com/prometheus/exporter-toolkit/web"
	"github.com/prometheus/exporter-toolkit/web/kingpinflag"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/collector"
)

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

	app := kingpin.New(Name, "Audits packet timing with an XDP program, and exports what it finds to Prometheus.")
	app.HelpFlag.Short('h')
	app.UsageWriter(stdout)
	app.Version(version.Print(Name))
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
