// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/baselinefile"
	"github.com/xdp-audit/xdp_audit_exporter/internal/excess"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

var hosts = []string{"host1", "host2", "host3"}

const (
	plantedHost  = "host2"
	plantedAlert = "XDPAuditFlagBurst"

	// The traffic of each host. A packet is flagged when it is late by more than 40 ms. Even a busy
	// machine delays few packets that long.
	clients        = 40
	clientInterval = 40 * time.Millisecond
	clientSpread   = 10 * time.Millisecond
	plantLateness  = 60 * time.Millisecond
	plantPeriod    = 10 // packets of a client from one late packet to the next, on average

	// usualFlags of the packets of a minute are in the past of each host, give or take flagsSpread,
	// as on a virtual machine that waits for its CPU now and then.
	pastMinutes = 1440
	usualFlags  = 60
	flagsSpread = 30

	ordinaryTime = 6 * time.Second // before the plant
	alertTime    = 2 * time.Minute // from the plant to the alert
	settleTime   = 5 * time.Second // in which other alerts would fire, too

	runbookLines = 10
)

// member is a host of the fleet.
type member struct {
	*stage
	name   string
	sender *sender
}

// crew is the fleet with its Prometheus.
type crew struct {
	members    []*member
	prometheus *prometheus
	failed     chan error // has an error when a part has ended too early
	isEnding   chan struct{}
}

// showFleet shows the alert on an anomaly of one of three hosts.
func showFleet(ctx context.Context, exporter, server, rules, runbooks string, listeners []*net.TCPListener) (err error) {
	// The last port is that of Prometheus, which opens it itself.
	last := len(listeners) - 1
	page := listeners[last].Addr().String()
	if err := listeners[last].Close(); err != nil {
		return err
	}
	if err := announce(page, rules, listeners); err != nil {
		return err
	}
	c := &crew{failed: make(chan error, len(hosts)+1), isEnding: make(chan struct{})}
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = errInterrupted
		}
		err = errors.Join(err, c.close())
	}()
	if err := c.start(ctx, exporter, listeners[:last]); err != nil {
		return err
	}
	if c.prometheus, err = startPrometheus(server, rules, page, c.members, c.failed, c.isEnding); err != nil {
		return err
	}
	begin := time.Now()
	say := func(format string, args ...any) {
		fmt.Printf("%4.0f s  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	}
	err = c.await(ctx, patience, "Prometheus has not scraped all hosts", func(ctx context.Context) error {
		return c.prometheus.expect(ctx, `count(up == 1)`, float64(len(hosts)))
	})
	if err != nil {
		return err
	}
	say("Prometheus has scraped the %d hosts", len(hosts))
	if err := c.pause(ctx, ordinaryTime); err != nil {
		return err
	}
	before, err := c.prometheus.alerts(ctx)
	if err != nil {
		return err
	}
	if len(before) > 0 {
		return fmt.Errorf("%v, before anything is late on purpose", before[0])
	}
	say("no alerts; from now on about one of %d packets to %s is %v late", plantPeriod, plantedHost, plantLateness)
	planted := time.Now()
	for _, m := range c.members {
		m.sender.isLate.Store(m.name == plantedHost)
	}
	fired, err := c.awaitAlert(ctx)
	if err != nil {
		return err
	}
	took := time.Since(planted)
	say("%s fires, %.0f seconds after the first late packet", plantedAlert, took.Seconds())
	if err := c.pause(ctx, settleTime); err != nil {
		return err
	}
	if err := c.expectNoOthers(ctx); err != nil {
		return err
	}
	if err := c.report(ctx, fired, runbooks); err != nil {
		return err
	}
	fmt.Printf("\n%s of %s fired %.0f seconds after the first late packet, and no alert of the other hosts did.\n",
		plantedAlert, plantedHost, took.Seconds())
	return nil
}

// announce says what the demo does, and which addresses it has.
func announce(page, rules string, listeners []*net.TCPListener) error {
	fmt.Printf(`Open http://%s/alerts

Three hosts, each in a network namespace of its own, receive the packets of %d clients: one of each about
every %v, with a standard deviation of %v. Each has an exporter with a baseline file, as it would be
after a day of such packets: the demo has written the file. Prometheus scrapes the exporters every %v, with
the rules of %s as they are.

After %v about one of %d packets to %s is sent %v late on purpose. An exporter compares each minute
with the past, so the alert %s is to fire within %v. The demo shows it with its runbook, and ends.

`, page, clients, clientInterval, clientSpread, scrapeInterval, rules, ordinaryTime, plantPeriod, plantedHost, plantLateness, plantedAlert, alertTime)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "  alerts\thttp://%s/alerts\n", page)
	for i, name := range hosts {
		fmt.Fprintf(table, "  %s\thttp://%s/\n", name, listeners[i].Addr())
	}
	fmt.Fprintf(table, "  end\tby itself, or Ctrl-C\n\n")
	return table.Flush()
}

// awaitAlert waits for the alert on the host with the anomaly.
func (c *crew) awaitAlert(ctx context.Context) (fired alert, err error) {
	err = c.await(ctx, alertTime, plantedAlert+" of "+plantedHost+" was not seen", func(ctx context.Context) error {
		alerts, err := c.prometheus.alerts(ctx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(alerts, func(a alert) bool {
			return a.State == "firing" && a.Labels["alertname"] == plantedAlert && a.Labels["instance"] == plantedHost
		})
		if i < 0 {
			score, err := c.prometheus.query(ctx, fmt.Sprintf("xdp_audit_flag_excess_score{instance=%q}", plantedHost))
			return errors.Join(fmt.Errorf("its score is %.1f, and 6 fires", score), err)
		}
		fired = alerts[i]
		return nil
	})
	return fired, err
}

// expectNoOthers returns an error if an alert fires on a host without an anomaly.
func (c *crew) expectNoOthers(ctx context.Context) error {
	others, err := c.prometheus.alerts(ctx)
	if err != nil {
		return err
	}
	for _, a := range others {
		if a.State == "firing" && a.Labels["instance"] != plantedHost {
			return fmt.Errorf("%v, on which nothing is late on purpose: is this machine busy?", a)
		}
	}
	return nil
}

// start starts the hosts.
func (c *crew) start(ctx context.Context, exporter string, listeners []*net.TCPListener) error {
	baseline := filepath.Join(folder, "hosts", "baseline.json")
	if err := os.Mkdir(filepath.Dir(baseline), 0o700); err != nil {
		return err
	}
	if err := writePast(baseline); err != nil {
		return err
	}
	for i, name := range hosts {
		s, err := newNetwork(listeners[i])
		if err != nil {
			return err
		}
		m := &member{stage: s, name: name}
		c.members = append(c.members, m)
		if err := s.start(exporter, listeners[i:i+1], "--audit.baseline-file="+baseline); err != nil {
			return err
		}
		go func() {
			defer close(s.ended)
			_, _ = io.Copy(io.Discard, s.trail)
			if s.endErr = s.exporter.Wait(); !isClosed(c.isEnding) {
				c.failed <- fmt.Errorf("%s: %w", name, s.exporterError())
			}
		}()
	}
	for i, m := range c.members {
		if err := m.awaitExporter(ctx); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		sender, err := startSender(m.stage, uint64(i))
		if err != nil {
			return err
		}
		m.sender = sender
	}
	return nil
}

// writePast writes the baseline file of a host after a day of ordinary traffic.
func writePast(path string) error {
	const samples = 8192
	learnt := timing.Learnt{State: timing.State{
		N: samples, MeanQ16: uint64(clientInterval) << 16,
		M2: timing.Uint128{Lo: samples - 1}.Mul64(uint64(clientSpread)).Mul64(uint64(clientSpread)),
	}}
	var past excess.Device
	packets := uint64(clients * time.Minute / clientInterval)
	for i := range pastMinutes {
		flags := usualFlags - flagsSpread
		if i%2 == 1 {
			flags = usualFlags + flagsSpread
		}
		past.AddMinute(packets, uint64(flags))
	}
	return baselinefile.Write(path, &baselinefile.File{
		Terms:   baselinefile.Terms{Domain: timing.Linear, Threshold: 4, Clock: "ktime", IdleTimeout: time.Second},
		Saved:   time.Now(),
		Devices: map[string]timing.Learnt{device: learnt},
		Pasts:   map[string]excess.Past{device: past.Past()},
	})
}

// await calls ready until it returns nil. When it does not in time, the error says what was not
// seen.
func (c *crew) await(ctx context.Context, limit time.Duration, notSeen string, ready func(context.Context) error) error {
	waiting, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		last := ready(waiting)
		if last == nil {
			return nil
		}
		err := c.pause(waiting, pollInterval)
		switch {
		case err == nil:
		case ctx.Err() == nil && waiting.Err() != nil:
			return fmt.Errorf("%s within %v: %w", notSeen, limit, last)
		default:
			return err
		}
	}
}

var errInterrupted = errors.New("interrupted before " + plantedAlert + " of " + plantedHost + " was shown")

const pollInterval = 200 * time.Millisecond

// pause waits, unless a part of the fleet or the context ends.
func (c *crew) pause(ctx context.Context, d time.Duration) error {
	select {
	case err := <-c.failed:
		return err
	case <-ctx.Done():
		return errInterrupted
	case <-time.After(d):
		return nil
	}
}

// report writes the alert as Prometheus has it, the beginning of its runbook, and what all hosts
// have counted.
func (c *crew) report(ctx context.Context, a alert, runbooks string) error {
	fmt.Printf("\nThe alert:\n\n%s", a.text())
	anchor := a.Annotations["runbook_url"]
	lines, err := runbook(runbooks, anchor[strings.LastIndexByte(anchor, '#')+1:])
	if err != nil {
		return err
	}
	fmt.Printf("\nThe beginning of its runbook:\n\n%s\n\n", lines)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "host\tpackets\tflagged\tscore (6 fires)\talerts")
	alerts, err := c.prometheus.alerts(ctx)
	if err != nil {
		return err
	}
	for _, m := range c.members {
		var row [3]float64
		for i, query := range []string{`sum(xdp_audit_packets_total{%s})`, `sum(xdp_audit_leak_flags_total{%s})`, `xdp_audit_flag_excess_score{%s}`} {
			if row[i], err = c.prometheus.query(ctx, fmt.Sprintf(query, fmt.Sprintf("instance=%q", m.name))); err != nil {
				return err
			}
		}
		var names []string
		for _, a := range alerts {
			if a.Labels["instance"] == m.name {
				names = append(names, a.Labels["alertname"]+" "+a.State)
			}
		}
		fmt.Fprintf(table, "%s\t%.0f\t%.0f\t%.1f\t%s\n", m.name, row[0], row[1], math.Floor(row[2]*10)/10, strings.Join(names, ", "))
	}
	return table.Flush()
}

// runbook returns the first lines of the section with that anchor.
func runbook(path, anchor string) (string, error) {
	text, err := os.ReadFile(path) //nolint:gosec // the user names the file
	if err != nil {
		return "", err
	}
	var lines []string
	isInside := false
	for line := range strings.Lines(string(text)) {
		heading, isHeading := strings.CutPrefix(line, "## ")
		switch {
		case isHeading && isInside:
			return strings.TrimSpace(strings.Join(lines, "")), nil
		case isHeading:
			isInside = strings.EqualFold(strings.TrimSpace(heading), anchor)
		case isInside && len(lines) == runbookLines:
			return strings.TrimSpace(strings.Join(lines, "")) + "\n...", nil
		case isInside:
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return "", fmt.Errorf("%s has no section for %s", path, anchor)
	}
	return strings.TrimSpace(strings.Join(lines, "")), nil
}

// close ends everything that was started.
func (c *crew) close() error {
	close(c.isEnding)
	var errs []error
	errs = append(errs, c.prometheus.close())
	for _, m := range c.members {
		if m.sender != nil {
			errs = append(errs, m.sender.close())
		}
		if m.exporter.Process != nil {
			_ = m.exporter.Process.Signal(syscall.SIGTERM)
			select {
			case <-m.ended:
			case <-time.After(patience):
				errs = append(errs, fmt.Errorf("the exporter of %s does not end", m.name))
			}
		}
		m.close()
	}
	return errors.Join(errs...)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
