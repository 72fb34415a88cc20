// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/common/config"
	"go.yaml.in/yaml/v3"

	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

const (
	leakPath = "/leak.json"
	// mostPage is the number of bytes of a page from which it is not one of an exporter.
	mostPage = 1 << 26
	// fetchTimeout is the longest time until the exporter has answered.
	fetchTimeout = 10 * time.Second
	// restTimeout is the longest time until the exporter has judged the last request, which waits
	// for others for up to two seconds.
	restTimeout  = 10 * time.Second
	restInterval = 300 * time.Millisecond
	// mostFailures is the number of answers in a row, at the end of a run, that may be missing.
	mostFailures = 5
	// mostRedirects is the number of redirects to other paths of the exporter.
	mostRedirects = 5
	// patience is the time without an answer after which a run ends.
	patience = 10 * time.Second
)

// assessment is the state of an assessment of an exporter, as on its page of assessments.
type assessment struct {
	Name     string            `json:"name"`
	Device   string            `json:"device,omitempty"`
	Protocol string            `json:"protocol"`
	Port     uint16            `json:"port"`
	Classes  [2]string         `json:"classes"`
	Requests uint64            `json:"requests"`
	Held     uint64            `json:"held"`
	Excluded map[string]uint64 `json:"excluded"`
	Report   leak.Report       `json:"report"`
}

// classified returns the requests that have had the mark of each class.
func (a *assessment) classified() (n [2]uint64) {
	for i := range n {
		n[i] = a.Report.Classes[i].Responses + a.Report.Classes[i].Excluded
	}
	return n
}

// exporter reads the page of an exporter.
type exporter struct {
	client *http.Client
	url    *url.URL
	name   string // of the assessment
	port   uint16
}

// errOtherHost is the error of a redirect to another host than the one that the user names.
var errOtherHost = errors.New("it redirects to another host: name that one")

func newExporter(o *options, port uint16) (*exporter, error) {
	settings := &config.DefaultHTTPClientConfig
	if o.reportConfig != "" {
		var err error
		if settings, _, err = config.LoadHTTPConfigFile(o.reportConfig); err != nil {
			return nil, fmt.Errorf("--report.http-config: %s: %w", o.reportConfig, err)
		}
	}
	client, err := config.NewClientFromConfig(*settings, Name)
	if err != nil {
		return nil, fmt.Errorf("--report.http-config: %s: %w", o.reportConfig, err)
	}
	u, err := url.Parse(o.report)
	if err != nil {
		return nil, fmt.Errorf("--report: %q is not a URL", redacted(o.report))
	}
	client.CheckRedirect = func(request *http.Request, via []*http.Request) error {
		switch {
		case request.URL.Host != u.Host:
			return errOtherHost
		case len(via) > mostRedirects || !settings.FollowRedirects:
			return http.ErrUseLastResponse
		}
		return nil
	}
	if !strings.HasSuffix(u.Path, leakPath) {
		u = u.JoinPath(leakPath)
	}
	return &exporter{client: client, url: u, name: o.assessment, port: port}, nil
}

// fetch returns the state of the assessment.
func (e *exporter) fetch(ctx context.Context) (*assessment, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("--report: %w", err)
	}
	response, err := e.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("--report: %w", err) // has the URL, without a password
	}
	defer response.Body.Close()
	var page struct {
		Assessments []assessment `json:"assessments"`
	}
	switch response.StatusCode {
	case http.StatusOK:
		if err = json.NewDecoder(io.LimitReader(response.Body, mostPage)).Decode(&page); err != nil {
			err = fmt.Errorf("it is not the page of an exporter: %w", err)
		}
	case http.StatusNotFound:
		err = errors.New("the status is 404: start the exporter with --leak.config.file")
	case http.StatusUnauthorized:
		err = errors.New("the status is 401: give the user with --report.http-config")
	default:
		err = fmt.Errorf("the status is %s", response.Status)
	}
	if err != nil {
		return nil, fmt.Errorf("--report: %s: %w", e.url.Redacted(), err)
	}
	return e.choose(page.Assessments)
}

// choose returns the assessment of the name, or of the port.
func (e *exporter) choose(all []assessment) (*assessment, error) {
	var known []string
	for i := range all {
		a := &all[i]
		if e.name == a.Name || e.name == "" && a.Port == e.port && a.Protocol == "tcp" {
			return a, nil
		}
		known = append(known, fmt.Sprintf("%s (%s port %d)", a.Name, a.Protocol, a.Port))
	}
	if e.name != "" {
		return nil, fmt.Errorf("--assessment: %q is not an assessment of the exporter, which has: %s", e.name, list(known))
	}
	return nil, fmt.Errorf("--report: the exporter has no assessment of TCP port %d, it has: %s: use --assessment if a proxy changes the port", e.port, list(known))
}

func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// mark is what a class of an exporter matches.
type mark struct {
	DSCP       *uint64 `yaml:"dscp"`
	SourcePort string  `yaml:"source_port"`
}

// adopt takes from the exporter what the flags do not give, and returns an error if they contradict
// the exporter.
func (o *options) adopt(a *assessment) error {
	order, err := leak.ParseOrder(a.Report.Order)
	if err != nil {
		return fmt.Errorf("--report: assessment %s: %w", a.Name, err)
	}
	if o.orderName != orderOfExporter && o.order != order {
		return fmt.Errorf("--order: %v is not the order of the exporter's assessment %s: use --order=%v, or change its configuration", o.order, a.Name, order)
	}
	o.order = order
	if !o.isTargetSet {
		o.targetNs = time.Duration(a.Report.TargetNs)
	}
	if !o.isAlphaSet {
		o.alpha = a.Report.Alpha
	}
	for i, text := range a.Classes {
		var class map[string]mark
		if err := yaml.Unmarshal([]byte(text), &class); err != nil {
			return fmt.Errorf("--report: class %q of assessment %s: %w", text, a.Name, err)
		}
		for _, m := range class {
			if err := o.adoptMark(i, text, &m); err != nil {
				return err
			}
		}
	}
	return nil
}

func (o *options) adoptMark(class int, text string, m *mark) error {
	c, name := &o.classes[class], classNames[class]
	contradicts := func(flag string, value any) error {
		return fmt.Errorf("--%s.%s: %v is not in the exporter's class %s: remove the flag, or change the configuration of the exporter", name, flag, value, text)
	}
	switch o.label {
	case labelDSCP:
		switch {
		case m.DSCP == nil:
			return fmt.Errorf("--label=dscp: the exporter's class %s has no dscp: use another --label, or change the configuration of the exporter", text)
		case c.isDSCPSet && c.dscp != *m.DSCP:
			return contradicts("dscp", c.dscp)
		}
		c.dscp = *m.DSCP
	case labelPort:
		ports, err := parsePorts(m.SourcePort)
		if err != nil {
			return fmt.Errorf("--label=port: the exporter's class %s has no source_port: use another --label, or change the configuration of the exporter", text)
		}
		if c.arePorts && (c.ports.first < ports.first || c.ports.last > ports.last) {
			return contradicts("port", c.ports)
		}
		if !c.arePorts {
			c.ports = ports
		}
	}
	return nil
}

// atRest returns the state after all requests have been judged.
func (e *exporter) atRest(ctx context.Context) (*assessment, error) {
	ctx, cancel := context.WithTimeout(ctx, restTimeout)
	defer cancel()
	var before *assessment
	for failures := 0; ; {
		now, err := e.fetch(ctx)
		switch {
		case err == nil && before != nil && now.Held == 0 && now.Requests == before.Requests:
			return now, nil
		case err == nil:
			before, failures = now, 0
		default:
			if failures++; failures >= mostFailures || ctx.Err() != nil && before == nil {
				return nil, err
			}
		}
		select {
		case <-ctx.Done():
			if before == nil {
				return nil, err
			}
			return before, nil // others send as well
		case <-time.After(restInterval):
		}
	}
}

// beganAgain is the fault of an assessment that has lost what it had.
var beganAgain = fault{"exporter", "the exporter or its assessment began again during the run: run the probe again"}

// continues reports whether a state can follow an earlier one of the same assessment.
func (a *assessment) continues(before *assessment) bool {
	had, has := before.classified(), a.classified()
	return a.Requests >= before.Requests && has[leak.X] >= had[leak.X] && has[leak.Y] >= had[leak.Y] && a.Report.Order == before.Report.Order
}

// mustBeOpen returns an error if an assessment has a verdict before the first request of a run,
// which would be that of other requests.
func (a *assessment) mustBeOpen() error {
	switch a.Report.Verdict {
	case leak.Waiting, leak.Inconclusive:
		return nil
	}
	return fmt.Errorf("--report: assessment %s of the exporter already is %v, by %s pairs of earlier requests: change its name and reload the configuration to begin again",
		a.Name, a.Report.Verdict, leak.FormatCount(a.Report.Pairs))
}

// markFaults returns what is wrong with the marks of a run. The exporter had counted some requests
// before it.
func markFaults(before, after *assessment, c *counts) (faults []fault, notes []string) {
	had, has := before.classified(), after.classified()
	arrived, sent := [2]uint64{}, c.Sent
	for i := range has {
		arrived[i] = has[i] - min(has[i], had[i])
	}
	all := arrived[leak.X] + arrived[leak.Y]
	text := fmt.Sprintf("the exporter counted %d requests of %d to X, and %d of %d to Y", arrived[leak.X], sent[leak.X], arrived[leak.Y], sent[leak.Y])
	slack := uint64(mostLost*float64(c.sent())) + leastFaults
	switch {
	case all+slack < c.sent():
		faults = append(faults, fault{"marks", text + ": marks are lost on the way, or other packets are measured; " +
			"use --label=port where a router or a proxy changes the DSCP, and see device and port of the assessment"})
	case all > c.sent()+slack:
		notes = append(notes, text+": others send requests with these marks, which are judged as well.")
	}
	return faults, notes
}
