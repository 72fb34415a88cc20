// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/promslog"
	promslogflag "github.com/prometheus/common/promslog/flag"
	"github.com/prometheus/common/version"
	"github.com/prometheus/exporter-toolkit/web"
	"github.com/prometheus/exporter-toolkit/web/kingpinflag"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/collector"
	"github.com/xdp-audit/xdp_audit_exporter/internal/assessment"
	"github.com/xdp-audit/xdp_audit_exporter/internal/assessmentfile"
	"github.com/xdp-audit/xdp_audit_exporter/internal/flagvalue"
	"github.com/xdp-audit/xdp_audit_exporter/internal/manpage"
	"github.com/xdp-audit/xdp_audit_exporter/internal/pages"
)

// options are the values of the flags.
type options struct {
	devices         []string // names and globs; a value may hold several, separated by commas
	isModeGiven     bool
	follow          bool
	isFollowGiven   bool
	unpin           bool
	check           bool
	audit           bpf.Config // complete after validate
	baselineFile    string
	savedPasts      map[string]collector.FlagsPast // of baselineFile
	isBaselineGiven bool

	covertFlows            uint32
	trailFile              string
	leakFile               string
	leak                   *assessmentfile.File // content of leakFile after readLeak; nil for none
	leakConnections        uint32
	rawFile                string
	rawFormat              assessment.RawFormat
	canReload              bool
	collectors             []string
	telemetryPath          string
	maxRequests            uint32
	maxConnections         uint32
	withoutExporterMetrics bool
	withoutPages           bool
	showFlows              bool
	settings               []pages.Setting // all flags with their values
	healthcheck            bool
	keepPrivileges         bool
	sending                sendingLimits     // has no flags
	variables              map[string]string // environment variables by flag
	web                    *web.FlagConfig
	log                    promslog.Config
}

// parseFlags returns nil without an error after it has answered --help or --version.
func parseFlags(args []string, stdout io.Writer) (*options, error) {
	o := &options{
		audit: bpf.DefaultConfig(), covertFlows: 64, leakConnections: 65536, maxRequests: 40, maxConnections: 256, sending: defaultSending,
	}

	app := kingpin.New(Name, "Audits packet timing with an XDP program and exports the results to Prometheus.")
	app.HelpFlag.Short('h')
	app.HelpFlag.Help("Show this help.")
	app.UsageWriter(stdout).UsageTemplate(helpTemplate).UsageFuncs(helpFuncs())
	app.Version(version.Print(Name))
	isAnswered := false
	app.Terminate(func(int) { isAnswered = true })

	// --help lists the flags of a group in this order.
	o.addAuditFlags(app)
	app.Flag("trail.file",
		"File to which the audit trail is appended, - for standard output. SIGHUP reopens the file.").
		PlaceHolder("PATH").StringVar(&o.trailFile)
	o.addLeakFlags(app)
	chosen := addCollectorFlags(app)
	flagvalue.Add(app, "collector.covert.flows", "",
		"Number of the busiest flows that the covert collector judges, 1 to 255.", &o.covertFlows, flagvalue.Uint32)
	o.addWebFlags(app)
	promslogflag.AddFlags(app, &o.log)

	if slices.Contains(args, "--help-man") { // kingpin's own page has no valid title
		return nil, manpage.Write(app, stdout, manTemplate, helpFuncs())
	}
	_, err := app.Parse(args)
	if isAnswered {
		return nil, nil
	}
	if err != nil {
		return nil, explainFlags(app, args, err)
	}
	if err := checkEnvironment(app, os.Environ()); err != nil {
		return nil, err
	}
	o.variables = map[string]string{}
	for _, flag := range app.Model().Flags {
		o.variables[flag.Name] = flag.Envar
	}
	// IsSetByUser does not see an environment variable.
	o.isBaselineGiven = o.isBaselineGiven || os.Getenv("XDP_AUDIT_BASELINE") != ""
	o.isModeGiven = o.isModeGiven || os.Getenv("XDP_MODE") != ""
	o.isFollowGiven = o.isFollowGiven || os.Getenv("XDP_AUDIT_FOLLOW") != ""
	o.collectors = chosen()
	o.settings = settingsOf(app, args)
	return o, nil
}

// addAuditFlags adds the flags of the audit itself.
func (o *options) addAuditFlags(app *kingpin.Application) {
	c := &o.audit
	app.Flag("audit.device",
		"Network device to audit, by name or as a glob. Repeatable; a value may hold several, separated by commas. "+
			"In it, % and two hexadecimal digits stand for a byte of the name. "+
			"By default the devices that hold a default route, in mode skb unless --audit.mode is given.").
		Envar("XDP_INTERFACE").PlaceHolder("NAME").StringsVar(&o.devices)
	app.Flag("audit.follow",
		"Attach to devices that appear or are recreated later. If given, the exporter also starts without any device. "+
			"Enabled by default if --audit.device has a glob or is not given.").
		Envar("XDP_AUDIT_FOLLOW").IsSetByUser(&o.isFollowGiven).
		SetValue(boolValue{flagvalue.New("audit.follow", "XDP_AUDIT_FOLLOW", &o.follow, boolean)})
	flagvalue.Add(app, "audit.max-devices", "XDP_AUDIT_MAX_DEVICES",
		"Maximum number of devices at a time when devices are followed or maps are pinned. "+
			"Each device takes 12.6 KiB per possible CPU.", &c.MaxDevices, flagvalue.Uint32)
	app.Flag("bpf.pin-path",
		"Directory in a bpf file system, such as /sys/fs/bpf/xdp_audit, in which maps and hooks outlive the exporter "+
			"until the next exporter takes them over.").
		Envar("XDP_AUDIT_PIN_PATH").PlaceHolder("PATH").StringVar(&c.PinPath)
	app.Flag("bpf.unpin", "Remove everything that is pinned at --bpf.pin-path, and exit.").BoolVar(&o.unpin)
	flagvalue.Add(app, "audit.mode", "XDP_MODE",
		"XDP mode: drv (native), hw (offloaded), skb (generic), or auto (drv, then skb).", &c.Mode, flagvalue.Text)
	app.GetFlag("audit.mode").IsSetByUser(&o.isModeGiven)
	flagvalue.Add(app, "audit.threshold", "XDP_AUDIT_THRESHOLD",
		"Absolute t-score at which a packet is flagged, at least 2.", &c.Threshold, flagvalue.Number)
	flagvalue.Add(app, "audit.clip", "XDP_AUDIT_CLIP",
		"Largest deviation from the mean that a packet adds to a baseline, in standard deviations, 1 to 16; 0 for no limit.",
		&c.Clip, flagvalue.Number)
	flagvalue.Add(app, "audit.min-samples", "XDP_AUDIT_MIN_SAMPLES",
		"Number of samples that a baseline needs before packets are scored.", &c.MinSamples, flagvalue.Uint32)
	flagvalue.Add(app, "audit.baseline", "XDP_AUDIT_BASELINE",
		"Baseline that packets are scored against: flow, or device (one per CPU, merged at the scrape).",
		&c.Baseline, flagvalue.Text)
	app.Flag("audit.baseline-file",
		"File with saved baselines of devices. If the file exists, packets are scored against these baselines and do "+
			"not change them; otherwise the exporter learns baselines and writes the file. "+
			"Implies --audit.baseline=device.").
		Envar("XDP_AUDIT_BASELINE_FILE").PlaceHolder("PATH").StringVar(&o.baselineFile)
	app.GetFlag("audit.baseline").IsSetByUser(&o.isBaselineGiven)
	flagvalue.Add(app, "audit.window", "XDP_AUDIT_WINDOW",
		"Baseline window: at twice this many samples the count is halved.", &c.Window, flagvalue.Uint32)
	flagvalue.Add(app, "audit.domain", "XDP_AUDIT_DOMAIN",
		"Scale of the inter-arrival times in a score: linear, or log2 (binary logarithm).", &c.Domain, flagvalue.Text)
	flagvalue.Add(app, "audit.calibrate", "XDP_AUDIT_CALIBRATE",
		"Number of events that a flow earns for each of its scored packets, in addition to eight an hour; "+
			"0 reports all flagged packets.",
		&c.Calibrate, flagvalue.Number)
	flagvalue.Add(app, "audit.idle-timeout", "XDP_AUDIT_IDLE_TIMEOUT",
		"Longest inter-arrival time of a flow. A longer silence is a pause, and is not scored.",
		&c.IdleTimeout, flagvalue.Duration)
	flagvalue.Add(app, "audit.flows", "XDP_AUDIT_FLOWS",
		"Number of slots in the flow table, rounded up to a power of two.", &c.Flows, flagvalue.Uint32)
	flagvalue.Add(app, "audit.event-rate", "XDP_AUDIT_EVENT_RATE",
		"Maximum number of perf events per second and CPU, half of it for events that flows have not earned; "+
			"0 sends none and needs no perf rings.", &c.EventRate, flagvalue.Uint32)
	flagvalue.Add(app, "audit.clock", "XDP_AUDIT_CLOCK",
		"Source of packet times: ktime, or metadata (nanoseconds that an earlier XDP program puts in front of the packet).",
		&c.Clock, flagvalue.Text)
}

// addLeakFlags adds the flags of leak assessments.
func (o *options) addLeakFlags(app *kingpin.Application) {
	app.Flag(leakFlag,
		"File with leak assessments, which judge whether response times of a service depend on the class of the request. "+
			"SIGHUP reads the file again.").
		PlaceHolder("PATH").StringVar(&o.leakFile)
	flagvalue.Add(app, "leak.connections", "",
		"Maximum number of connections whose response times are measured at a time, 8 to 4194304, rounded up to a power of two.",
		&o.leakConnections, flagvalue.Uint32)
	app.Flag(rawFlag,
		"File to which each response time is appended, - for standard output. In its name, "+assessment.RawName+
			" stands for the name of the assessment. SIGHUP reopens the file.").
		PlaceHolder("PATH").StringVar(&o.rawFile)
	flagvalue.Add(app, "leak.raw-format", "",
		"Format of the raw file: csv (class and nanoseconds, as RTLF and SILENT read it), or tlsfuzzer (for its --raw-times).",
		&o.rawFormat, rawFormat)
}

// addWebFlags adds the flags of the web server, and those of the process.
func (o *options) addWebFlags(app *kingpin.Application) {
	app.Flag("web.telemetry-path", "Path at which to expose metrics, without the paths beneath it.").
		Default("/metrics").StringVar(&o.telemetryPath)
	flagvalue.Add(app, "web.max-requests", "",
		"Maximum number of scrape requests that wait or are gathered. Use 0 to disable.", &o.maxRequests, flagvalue.Uint32)
	flagvalue.Add(app, "web.max-connections", "",
		"Maximum number of open connections, an eighth of them from one address. Use 0 to disable.",
		&o.maxConnections, flagvalue.Uint32)
	app.Flag("web.disable-exporter-metrics",
		"Exclude metrics about the exporter itself (promhttp_*, process_*, go_*).").BoolVar(&o.withoutExporterMetrics)
	app.Flag("web.disable-ui", "Serve a landing page instead of the pages and their API.").BoolVar(&o.withoutPages)
	app.Flag("web.show-flows",
		"Show the addresses and ports of flagged packets on the page of the flags, to everybody who reaches the port.").
		BoolVar(&o.showFlows)
	app.Flag("web.enable-lifecycle", "Enable reloading of the leak assessments with a POST to "+reloadPath+".").BoolVar(&o.canReload)
	app.Flag("check",
		"Check whether the exporter would start with these flags, without attaching anything, and exit with 0 or 1. "+
			"Print what the kernel says of the devices and of the host, as JSON with --log.format=json.").BoolVar(&o.check)
	app.Flag("healthcheck",
		"Check whether the exporter on the first listen address is healthy, and exit with 0 or 1. "+
			"A password or client-certificate challenge counts as healthy.").BoolVar(&o.healthcheck)
	app.Flag("privileges.keep",
		"Keep all privileges after the start, for setups in which the exporter fails without them.").
		BoolVar(&o.keepPrivileges)
	o.web = kingpinflag.AddFlags(app, ":9400")
	app.GetFlag("web.listen-address").Help(
		"Addresses on which to expose metrics. Repeatable. Examples: `:9400` or `[::1]:9400` for http, `0.0.0.0:9400` " +
			"for IPv4 only, `unix:/run/xdp_audit_exporter/web.sock` for a Unix socket, `vsock://:9400` for vsock.")
}

// addCollectorFlags adds the flags that enable and disable collectors. The returned function
// gives the names of the enabled collectors after the flags are parsed.
func addCollectorFlags(app *kingpin.Application) (enabled func() []string) {
	withoutDefaults := app.Flag("collector.disable-defaults", "Set all collectors to disabled by default.").Bool()
	type state struct {
		isEnabled *bool
		isGiven   bool
	}
	states := map[string]*state{}
	for _, name := range collector.Names() {
		byDefault, word := false, "disabled"
		if slices.Contains(collector.Defaults(), name) {
			byDefault, word = true, "enabled"
		}
		s := &state{}
		help := fmt.Sprintf("Enable the %s collector (default: %s).", name, word)
		if name == "covert" {
			help += " It looks for covert timing channels in the busiest flows, and is for hosts whose applications you know: " +
				"some applications have the timing of a channel."
		}
		s.isEnabled = app.Flag("collector."+name, help).
			Default(strconv.FormatBool(byDefault)).IsSetByUser(&s.isGiven).Bool()
		states[name] = s
	}
	return func() []string {
		names := []string{}
		for _, name := range collector.Names() {
			if s := states[name]; *s.isEnabled && (s.isGiven || !*withoutDefaults) {
				names = append(names, name)
			}
		}
		return names
	}
}

// boolValue is the value of a flag without an argument.
type boolValue struct{ flagvalue.Value[bool] }

// IsBoolFlag makes kingpin take the flag without an argument, and negated.
func (boolValue) IsBoolFlag() bool { return true }

func rawFormat(s string) (assessment.RawFormat, error) {
	format, err := assessment.ParseRawFormat(s)
	if err != nil {
		return 0, errors.New("is not a format: use csv or tlsfuzzer")
	}
	return format, nil
}

// flagError names the flag whose value causes an error.
func flagError(flag string, err error) error { return fmt.Errorf("--%s: %w", flag, err) }

// flagError names the flag whose value causes an error, and its environment variable.
func (o *options) flagError(flag string, err error) error {
	return fmt.Errorf("%s: %w", flagvalue.Title(flag, o.variables[flag]), err)
}
