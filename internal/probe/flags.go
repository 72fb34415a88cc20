// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package probe

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/config"
	"github.com/prometheus/common/version"
	"golang.org/x/net/http/httpguts"

	"github.com/xdp-audit/xdp_audit_exporter/internal/flagvalue"
	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
	"github.com/xdp-audit/xdp_audit_exporter/internal/manpage"
)

// What the flags allow, so that the probe disturbs nobody.
const (
	safeRate       = 2000 // requests a second, without --rate.unsafe
	mostRate       = 1_000_000
	mostRequests   = 100_000_000
	mostConns      = 100
	mostWarmup     = 10_000
	longestTimeout = 5 * time.Minute
)

// orderOfExporter is the value of --order that takes the order of the exporter, and blocks without
// one.
const orderOfExporter = "auto"

// options are the values of the flags.
type options struct {
	url     string
	method  string
	headers []string
	data    string
	hasData bool
	classes [2]classOptions

	rawEnd   string
	rawQuiet time.Duration

	tls config.TLSConfig

	label       string
	orderName   string
	order       leak.Order // complete after adopt
	targetNs    time.Duration
	isTargetSet bool
	alpha       float64
	isAlphaSet  bool

	requests    uint64
	duration    time.Duration
	rate        float64
	isUnsafe    bool
	connections uint64
	warmup      uint64
	timeout     time.Duration
	seed        uint64
	stops       bool

	report        string
	reportConfig  string
	assessment    string
	json, junit   string
	showsProgress bool
}

// classOptions are the values of the flags of one class.
type classOptions struct {
	path      string
	headers   []string
	data      string
	hasData   bool
	raw       string
	dscp      uint64
	isDSCPSet bool
	ports     portRange
	arePorts  bool
}

// portRange is a range of source ports.
type portRange struct{ first, last uint16 }

func (r portRange) String() string {
	if r.first == r.last {
		return strconv.Itoa(int(r.first))
	}
	return fmt.Sprintf("%d-%d", r.first, r.last)
}

func parsePorts(s string) (portRange, error) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	a, err := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	if err != nil || err2 != nil || a == 0 || a > b {
		return portRange{}, errors.New("is not a port or a range of ports such as 10000-19999")
	}
	return portRange{uint16(a), uint16(b)}, nil
}

const about = "Sends requests of two classes in random order to a service, and says whether the response time " +
	"depends on the class. Only for services that you are allowed to test: it sends to the named host " +
	"and to no other, and follows no redirect.\n\n" +
	"Exit codes: 0 no leak, 1 leak, 2 error or data that cannot be judged, 3 no verdict yet."

// parseFlags returns nil without an error after it has answered --help or --version.
func parseFlags(args []string, stdout io.Writer) (*options, error) {
	o := &options{
		rawQuiet: 20 * time.Millisecond, label: labelDSCP, orderName: orderOfExporter, targetNs: time.Microsecond, alpha: 1e-5,
		requests: 10_000, rate: 200, connections: 1, warmup: 20, timeout: 10 * time.Second,
	}
	o.classes[leak.X] = classOptions{dscp: 8, ports: portRange{10_000, 19_999}}
	o.classes[leak.Y] = classOptions{dscp: 16, ports: portRange{20_000, 29_999}}

	app := kingpin.New(Name, about)
	app.HelpFlag.Short('h')
	app.HelpFlag.Help("Show this help.")
	app.UsageWriter(stdout)
	app.Version(version.Print(Name))
	isAnswered := false
	app.Terminate(func(int) { isAnswered = true })

	// --help lists the flags in this order.
	o.addRequestFlags(app)
	o.addTLSFlags(app)
	o.addOrderFlags(app)
	o.addLimitFlags(app)
	o.addReportFlags(app)

	if slices.Contains(args, "--help-man") { // kingpin's own page has no valid title
		return nil, manpage.Write(app, stdout, manTemplate, nil)
	}
	_, err := app.Parse(args)
	if isAnswered {
		return nil, nil
	}
	if err == nil {
		err = o.validate()
	}
	if err != nil {
		return nil, fmt.Errorf("%w, try --help", err)
	}
	return o, nil
}

func (o *options) addRequestFlags(app *kingpin.Application) {
	app.Flag("url", "Service: http://, https://, or tcp:// and tls:// with --x.raw and --y.raw. "+
		"In this and in paths, headers, data and raw files, {{random 16}} stands for 16 random letters and digits.").
		PlaceHolder("URL").StringVar(&o.url)
	app.Flag("method", "HTTP method; POST by default if there is data, GET otherwise.").PlaceHolder("METHOD").StringVar(&o.method)
	app.Flag("header", "Header of all requests. Repeatable.").PlaceHolder("NAME:VALUE").StringsVar(&o.headers)
	app.Flag("data", "Body of all requests.").IsSetByUser(&o.hasData).PlaceHolder("TEXT").StringVar(&o.data)
	for i, name := range classNames {
		c := &o.classes[i]
		flag := func(flag, help, placeholder string) *kingpin.FlagClause {
			return app.Flag(name+"."+flag, fmt.Sprintf(help, strings.ToUpper(name))).PlaceHolder(placeholder)
		}
		flag("path", "Path and query of requests of class %s instead of those of --url.", "PATH").StringVar(&c.path)
		flag("header", "Header of requests of class %s. Repeatable.", "NAME:VALUE").StringsVar(&c.headers)
		flag("data", "Body of requests of class %s.", "TEXT").IsSetByUser(&c.hasData).StringVar(&c.data)
		flag("raw", "File with the bytes of a request of class %s.", "FILE").StringVar(&c.raw)
	}
	app.Flag("raw.end", `Text that ends an answer to a raw request, such as '\r\n', as in a Go string; by default an answer ends when the service is quiet.`).
		PlaceHolder("TEXT").StringVar(&o.rawEnd)
	flagvalue.Add(app, "raw.quiet", "", "Time without bytes after which an answer to a raw request is complete.", &o.rawQuiet, flagvalue.Duration)
}

func (o *options) addTLSFlags(app *kingpin.Application) {
	app.Flag("tls.ca", "File with the certificates of authorities that the service is checked against.").PlaceHolder("FILE").StringVar(&o.tls.CAFile)
	app.Flag("tls.cert", "File with the client's certificate.").PlaceHolder("FILE").StringVar(&o.tls.CertFile)
	app.Flag("tls.key", "File with the client's key.").PlaceHolder("FILE").StringVar(&o.tls.KeyFile)
	app.Flag("tls.server-name", "Name of the service in TLS (SNI) and in its certificate.").PlaceHolder("NAME").StringVar(&o.tls.ServerName)
	app.Flag("tls.insecure-skip-verify", "Accept any certificate of the service.").BoolVar(&o.tls.InsecureSkipVerify)
}

func (o *options) addOrderFlags(app *kingpin.Application) {
	flagvalue.Add(app, "order", "", "Order of the classes: blocks (random blocks of two on each connection), random (a fair coin), observed "+
		"(as random, but without the words of a leak), or auto (that of the exporter; blocks without one).", &o.orderName, flagvalue.Text)
	flagvalue.Add(app, "label", "", "What tells the classes apart on the way: dscp, port (source ports; a new connection for each request), or none.",
		&o.label, flagvalue.Text)
	for i, name := range classNames {
		c := &o.classes[i]
		flagvalue.Add(app, name+".dscp", "", fmt.Sprintf("DSCP of requests of class %s, 1 to 63; that of the exporter with --report.", strings.ToUpper(name)),
			&c.dscp, flagvalue.Uint64).IsSetByUser(&c.isDSCPSet)
		flagvalue.Add(app, name+".port", "", fmt.Sprintf("Source ports of class %s with --label=port; those of the exporter with --report.", strings.ToUpper(name)),
			&c.ports, parsePorts).IsSetByUser(&c.arePorts)
	}
	flagvalue.Add(app, "target", "", "Differences up to this do not matter; that of the exporter with --report.", &o.targetNs, flagvalue.Duration).
		IsSetByUser(&o.isTargetSet)
	flagvalue.Add(app, "alpha", "", "Probability of enough evidence without a difference; that of the exporter with --report.", &o.alpha, flagvalue.Number).
		IsSetByUser(&o.isAlphaSet)
}

func (o *options) addLimitFlags(app *kingpin.Application) {
	flagvalue.Add(app, "requests", "", "Greatest number of requests; two are a pair with blocks, four on average otherwise.", &o.requests, flagvalue.Uint64)
	flagvalue.Add(app, "duration", "", "Longest time; 0s for no limit.", &o.duration, flagvalue.Duration)
	app.Flag("stop", "End at a verdict. With --no-stop all requests are sent.").Default("true").BoolVar(&o.stops)
	flagvalue.Add(app, "rate", "", "Requests a second, of all connections together.", &o.rate, flagvalue.Number)
	app.Flag("rate.unsafe", fmt.Sprintf("Allow a rate of more than %d.", safeRate)).BoolVar(&o.isUnsafe)
	flagvalue.Add(app, "connections", "", fmt.Sprintf("Connections at the same time, 1 to %d.", mostConns), &o.connections, flagvalue.Uint64)
	flagvalue.Add(app, "warmup", "", "Requests of each connection before the first that counts; without marks.", &o.warmup, flagvalue.Uint64)
	flagvalue.Add(app, "timeout", "", "Longest time until a connection or an answer.", &o.timeout, flagvalue.Duration)
	flagvalue.Add(app, "seed", "", "Seed of the order and of {{random}}; 0 for a new one, which is printed.", &o.seed, flagvalue.Uint64)
}

func (o *options) addReportFlags(app *kingpin.Application) {
	app.Flag("report", "URL of an exporter that measures the service with --leak.config.file. Its verdict decides.").
		PlaceHolder("URL").StringVar(&o.report)
	app.Flag("report.http-config", "File with Prometheus's http_config for the exporter: users, TLS.").PlaceHolder("FILE").StringVar(&o.reportConfig)
	app.Flag("assessment", "Name of the exporter's assessment; by default the one of the port of --url.").PlaceHolder("NAME").StringVar(&o.assessment)
	app.Flag("json", "File for the result as JSON, - for standard output.").PlaceHolder("FILE").StringVar(&o.json)
	app.Flag("junit", "File for the result as JUnit XML.").PlaceHolder("FILE").StringVar(&o.junit)
	app.Flag("progress", "Show the progress if standard error is a terminal.").Default("true").BoolVar(&o.showsProgress)
}

// classNames are the prefixes of the flags of the classes.
var classNames = [2]string{"x", "y"}

// validate checks values that depend on each other.
func (o *options) validate() error {
	for _, check := range []func() error{o.validateRequests, o.validateOrder, o.validateLimits} {
		if err := check(); err != nil {
			return err
		}
	}
	if o.json != "" && o.json == o.junit {
		return fmt.Errorf("--junit: %q is the file of --json, too: use two files", o.junit)
	}
	if o.report == "" {
		if o.assessment != "" || o.reportConfig != "" {
			return errors.New("--assessment and --report.http-config are of an exporter: give --report as well")
		}
		return nil
	}
	u, err := url.Parse(o.report)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("--report: %q is not the URL of an exporter, such as http://server:9400", redacted(o.report))
	}
	return nil
}

// redacted returns a URL without its password.
func redacted(address string) string {
	if u, err := url.Parse(address); err == nil {
		return u.Redacted()
	}
	return address[strings.LastIndex(address, "@")+1:]
}

func (o *options) validateRequests() error {
	scheme, host, _ := strings.Cut(o.url, "://")
	isRaw := scheme == "tcp" || scheme == "tls"
	x, y := &o.classes[leak.X], &o.classes[leak.Y]
	switch {
	case o.url == "":
		return errors.New("--url is missing: name the service, such as --url=https://example.org/login")
	case !isRaw && scheme != "http" && scheme != "https":
		return fmt.Errorf("--url: %q does not begin with http://, https://, tcp:// or tls://", o.url)
	case isRaw && (x.raw == "" || y.raw == ""):
		return fmt.Errorf("--url: %q sends bytes: give them with --x.raw and --y.raw", o.url)
	case isRaw && strings.ContainsAny(host, "/?#@"):
		return fmt.Errorf("--url: %q is more than a host and a port, such as %s://host:1234", o.url, scheme)
	case isRaw && (o.method != "" || o.hasData || len(o.headers)+len(x.headers)+len(y.headers) > 0 || x.hasData || y.hasData || x.path+y.path != ""):
		return fmt.Errorf("--url: %q sends the bytes of --x.raw and --y.raw only: methods, paths, headers and data need http:// or https://", o.url)
	case !isRaw && (x.raw != "" || y.raw != "" || o.rawEnd != ""):
		return fmt.Errorf("--x.raw, --y.raw and --raw.end need a --url with tcp:// or tls://, and it is %q", o.url)
	case o.method != "" && !httpguts.ValidHeaderFieldName(o.method):
		return fmt.Errorf("--method: %q is not a method such as GET", o.method)
	case o.hasData && (x.hasData || y.hasData):
		return errors.New("--data is the body of both classes: remove it, or --x.data and --y.data")
	case x.hasData != y.hasData:
		return errors.New("only one class has data: give both --x.data and --y.data")
	case o.rawQuiet <= 0:
		return fmt.Errorf("--raw.quiet: %v is not a time above 0", o.rawQuiet)
	}
	if o.rawEnd != "" {
		end, err := strconv.Unquote(`"` + strings.ReplaceAll(o.rawEnd, `"`, `\"`) + `"`)
		if err != nil || end == "" {
			return fmt.Errorf("--raw.end: %q is not a text with escapes of Go, such as \\r\\n", o.rawEnd)
		}
		o.rawEnd = end
	}
	if (o.tls != config.TLSConfig{}) && scheme != "https" && scheme != "tls" {
		return fmt.Errorf("--tls flags need a --url with https:// or tls://, and it is %q", o.url)
	}
	return nil
}

func (o *options) validateOrder() error {
	if o.orderName != orderOfExporter {
		order, err := leak.ParseOrder(o.orderName)
		if err != nil {
			return fmt.Errorf("--order: %w", err)
		}
		o.order = order
	}
	switch o.label {
	case labelDSCP, labelPort, labelNone:
	default:
		return fmt.Errorf("--label: %q is not dscp, port or none", o.label)
	}
	for i, name := range classNames {
		if o.classes[i].dscp > 63 {
			return fmt.Errorf("--%s.dscp: %d is not a DSCP: use 1 to 63", name, o.classes[i].dscp)
		}
	}
	switch {
	case o.label == labelNone && o.report != "":
		return errors.New("--label=none: without marks the exporter cannot tell the classes apart: use dscp or port with --report")
	case !(o.alpha > 0 && o.alpha < 1):
		return fmt.Errorf("--alpha: %v is not a probability between 0 and 1, such as 1e-5", o.alpha)
	case o.targetNs < 0:
		return fmt.Errorf("--target: %v is below 0", o.targetNs)
	}
	return nil
}

func (o *options) validateLimits() error {
	switch {
	case o.requests < 1 || o.requests > mostRequests:
		return fmt.Errorf("--requests: %d is not from 1 to %d", o.requests, mostRequests)
	case o.duration < 0:
		return fmt.Errorf("--duration: %v is below 0", o.duration)
	case !(o.rate > 0 && o.rate <= mostRate):
		return fmt.Errorf("--rate: %v is not a number of requests a second above 0, up to %d", o.rate, mostRate)
	case o.rate > safeRate && !o.isUnsafe:
		return fmt.Errorf("--rate: %v requests a second can disturb a service: use at most %d, or --rate.unsafe", o.rate, safeRate)
	case o.connections < 1 || o.connections > mostConns:
		return fmt.Errorf("--connections: %d is not from 1 to %d", o.connections, mostConns)
	case o.warmup > mostWarmup:
		return fmt.Errorf("--warmup: %d is more than %d", o.warmup, mostWarmup)
	case o.timeout <= 0 || o.timeout > longestTimeout:
		return fmt.Errorf("--timeout: %v is not above 0, up to %v", o.timeout, longestTimeout)
	}
	return nil
}
