// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package probe is the command xdp_audit_probe: a client that sends requests of two classes in
// random order, and says whether the response time of the service depends on the class. It judges
// its own times, and reads the verdict of an exporter that measures in the kernel of the service.
package probe

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/common/config"

	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
)

// Name is the name of the command.
const Name = "xdp_audit_probe"

// lookInterval is the time between two looks at the verdict.
const lookInterval = 500 * time.Millisecond

// Main is the main function of the command, and returns the exit code. The first signal ends the
// run with the result so far, the second ends the process.
func Main(args []string, stdout, stderr io.Writer) (exitCode int) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	defer stop()
	exitCode, err := Run(ctx, args, stdout, stderr)
	if err != nil {
		fmt.Fprintf(stderr, "%s: error: %s\n", Name, printable.Line(strings.Join(strings.Fields(err.Error()), " ")))
		return exitError
	}
	return exitCode
}

// Run runs the command until all requests are sent, there is a verdict, or the context ends. It
// returns the exit code, or an error if there is no result.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) (exitCode int, err error) {
	o, err := parseFlags(args, stdout)
	if o == nil || err != nil {
		return exitNone, err
	}
	if o.seed == 0 {
		var seed [8]byte
		_, _ = rand.Read(seed[:]) // never fails
		// JSON has 53 bits.
		o.seed = binary.LittleEndian.Uint64(seed[:])>>11 | 1
	}
	r := &run{o: o, stderr: stderr}
	err = r.prepare(ctx)
	defer r.close()
	if err == nil {
		err = r.send(ctx)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return exitError, errors.New("interrupted before the first request")
	case err != nil:
		return exitError, err
	}
	result := r.result(ctx)
	if o.json != "-" {
		err = result.write(stdout)
	} else {
		err = result.writeJSON(stdout)
	}
	if r.json != nil {
		err = errors.Join(err, result.writeJSON(r.json))
	}
	if r.junit != nil {
		err = errors.Join(err, result.writeJUnit(r.junit))
	}
	return result.ExitCode, err
}

// run is one run of the command.
type run struct {
	o        *options
	stderr   io.Writer
	session  *session
	ledger   *ledger
	exporter *exporter   // nil for none
	before   *assessment // of the exporter, before the run
	seen     *assessment // of the exporter, last
	seenAt   time.Time
	notes    []string
	json     *os.File // nil for none
	junit    *os.File
	begin    time.Time
	isCut    bool // by a signal
	faults   []fault
	verdicts int // looks in a row with a verdict
}

// prepare checks everything that can be checked before the first request.
func (r *run) prepare(ctx context.Context) error {
	o := r.o
	messages, err := o.messages()
	if err != nil {
		return err
	}
	u, err := url.Parse(o.url)
	if err != nil || u.Hostname() == "" {
		return fmt.Errorf("--url: %q is not the URL of a host", o.url)
	}
	port := u.Port()
	if port == "" {
		port = defaultPorts[u.Scheme]
	}
	portNumber, err := strconv.ParseUint(port, 10, 16)
	if err != nil || portNumber == 0 {
		return fmt.Errorf("--url: %q has no port: give one from 1 to 65535, such as tcp://host:1234", o.url)
	}
	d := dialer{timeout: o.timeout}
	if u.Scheme == "https" || u.Scheme == "tls" {
		if d.tls, err = config.NewTLSConfig(&o.tls); err != nil {
			return fmt.Errorf("--tls: %w", err)
		}
		if d.tls.ServerName == "" {
			d.tls.ServerName = u.Hostname()
		}
		d.tls.NextProtos = nil // HTTP/1.1
	}
	if err := r.ask(ctx, uint16(portNumber)); err != nil {
		return err
	}
	if err := o.validateMarks(d.tls != nil); err != nil {
		return err
	}
	r.compare(messages)
	r.ledger, err = newLedger(leak.Config{
		Order: o.order, Classes: r.classes(), TargetNs: float64(o.targetNs), Alpha: o.alpha, TickNs: 1,
	})
	if err != nil {
		return err
	}
	if err := r.create(); err != nil {
		return err
	}
	first, err := d.first(ctx, u.Hostname(), port)
	if err != nil {
		return fmt.Errorf("--url: %w", err)
	}
	r.session = newSession(o, messages, d, r.ledger)
	r.session.opened.Store(first)
	r.announce(d.address)
	return nil
}

// ask asks the exporter, if there is one, for what it expects.
func (r *run) ask(ctx context.Context, port uint16) (err error) {
	if r.o.report == "" {
		if r.o.orderName == orderOfExporter {
			r.o.order = leak.Blocks
			if r.o.label == labelPort {
				r.o.order = leak.Random
			}
		}
		return nil
	}
	if r.exporter, err = newExporter(r.o, port); err != nil {
		return err
	}
	if r.before, err = r.exporter.fetch(ctx); err != nil {
		return err
	}
	r.exporter.name = r.before.Name
	r.seen, r.seenAt = r.before, time.Now()
	if err := r.before.mustBeOpen(); err != nil {
		return err
	}
	if pairs := r.before.Report.Pairs; pairs > 0 {
		r.notes = append(r.notes, fmt.Sprintf("assessment %s of the exporter had %s pairs of earlier requests, which count as well; change its name and reload the configuration to begin again.",
			r.before.Name, leak.FormatCount(pairs)))
	}
	return r.o.adopt(r.before)
}

// validateMarks checks the marks, once those of the exporter and the order are known.
func (o *options) validateMarks(isTLS bool) error {
	ofX, ofY := o.classes[leak.X].dscp, o.classes[leak.Y].dscp
	x, y := o.classes[leak.X].ports, o.classes[leak.Y].ports
	switch {
	case o.label == labelDSCP && ofX == ofY:
		return fmt.Errorf("--y.dscp: %d is that of class X, too: use two different ones", ofY)
	case o.label == labelDSCP && (ofX == 0 || ofY == 0):
		return errors.New("--label=dscp: 0 is the DSCP of packets without a mark, such as those of the warm-up: use 1 to 63, in the exporter's configuration as well")
	case o.label != labelPort:
		return nil
	case x.first <= y.last && y.first <= x.last:
		return fmt.Errorf("--x.port: %v has ports of --y.port %v: use ranges without common ports", x, y)
	case o.order == leak.Blocks:
		return errors.New("--label=port: a connection has one class, so there are no blocks: use --order=random, in the exporter's configuration as well")
	case isTLS && o.order == leak.Random:
		return errors.New("--label=port: the handshake of TLS would have the class of its request, so classes are not in random order: " +
			"use --label=dscp, or --order=observed, in the exporter's configuration as well, which keeps one connection for each class")
	}
	return nil
}

// compare notes what differs between the requests of the classes, other than what they ask.
func (r *run) compare(messages [2]message) {
	var requests [2][]byte
	for i := range messages {
		requests[i], _, _ = messages[i].bytes(generator(r.o.seed, 0)) // has been made before
	}
	x, y := requests[leak.X], requests[leak.Y]
	switch {
	case string(x) == string(y):
		r.notes = append(r.notes, "the requests of both classes are the same: this run tests the method, not the service.")
	case len(x) != len(y):
		r.notes = append(r.notes, fmt.Sprintf("requests to X have %d bytes and those to Y %d, so a difference may be that of their length.", len(x), len(y)))
	}
}

// classes returns the names of the classes: those of the exporter, or those of the flags.
func (r *run) classes() [2]string {
	if r.before == nil {
		return [2]string{"X", "Y"}
	}
	return [2]string{r.before.Report.Classes[leak.X].Name, r.before.Report.Classes[leak.Y].Name}
}

// announce says what is going to be sent.
func (r *run) announce(address string) {
	o := r.o
	marks := "without marks"
	switch o.label {
	case labelDSCP:
		marks = fmt.Sprintf("DSCP %d and %d", o.classes[leak.X].dscp, o.classes[leak.Y].dscp)
	case labelPort:
		marks = fmt.Sprintf("source ports %v and %v", o.classes[leak.X].ports, o.classes[leak.Y].ports)
	}
	fmt.Fprintf(r.stderr, "%s: %s at %s, order %v, %s, connections: %d, requests: %v a second, at most %d, seed %d\n",
		Name, o.url, address, o.order, marks, o.connections, o.rate, o.requests, o.seed)
}

// send sends requests until all are sent, there is a verdict or a fault, or the context ends.
func (r *run) send(ctx context.Context) error {
	r.begin = time.Now()
	sending, cancel := context.WithCancel(ctx)
	defer cancel()
	if r.o.duration > 0 {
		sending, cancel = context.WithTimeout(ctx, r.o.duration)
		defer cancel()
	}
	ended := make(chan error, 1)
	go func() { ended <- r.session.run(sending) }()
	bar := newProgress(r.stderr, r.o)
	defer bar.clear()
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	interrupted := ctx.Done()
	for {
		select {
		case <-interrupted:
			interrupted = nil
			bar.clear()
			fmt.Fprintf(r.stderr, "%s: interrupted: waiting up to %v for answers that are underway; interrupt again to end at once\n", Name, r.o.timeout)
		case err := <-ended:
			r.isCut = ctx.Err() != nil
			if s := r.ledger.standing(); err != nil && s.counts.sent() == 0 {
				return err
			}
			if err != nil {
				r.faults = append(r.faults, fault{"connections", "the service cannot be reached any more: " + err.Error()})
			}
			return nil
		case <-ticker.C:
			if r.look(sending, bar) {
				cancel()
			}
		}
	}
}

// look reports whether the run may end.
func (r *run) look(ctx context.Context, bar *progress) (isOver bool) {
	s := r.ledger.standing()
	report := &s.report
	isMarked := true
	if r.exporter != nil && ctx.Err() == nil {
		now, err := r.exporter.fetch(ctx)
		switch {
		case err != nil: // the last look reports it
			return ctx.Err() == nil && time.Since(r.seenAt) > patience
		case !now.continues(r.seen):
			r.faults = append(r.faults, beganAgain)
			return true
		}
		r.seen, r.seenAt = now, time.Now()
		report = &now.Report
		had, has := r.before.classified(), now.classified()
		isMarked = had != has || s.counts.sent() < leastMarked || time.Since(r.begin) < markTime
	}
	bar.show(&s.counts, report)
	if len(s.faults()) > 0 || !isMarked {
		return true
	}
	switch report.Verdict {
	case leak.Waiting, leak.Inconclusive:
		r.verdicts = 0
		return false
	case leak.Invalid:
		return true
	}
	r.verdicts++
	return r.o.stops && r.verdicts >= steadyVerdicts
}

// steadyVerdicts is the number of looks in a row with a verdict after which a run may end. With the
// requests that are underway a verdict may change.
const steadyVerdicts = 2

// The exporter must have seen the first mark after so many requests and so much time.
const (
	leastMarked = 100
	markTime    = 5 * time.Second
)

// result returns the outcome after all requests have ended.
func (r *run) result(ctx context.Context) *result {
	s := r.ledger.standing()
	result := &result{
		URL: r.o.url, Address: r.session.dialer.address, Order: r.o.order.String(), Label: r.o.label, Seed: r.o.seed,
		Begin: r.begin, Seconds: time.Since(r.begin).Seconds(), Interrupted: r.isCut,
		Requests: s.counts, Client: s.report, Faults: append([]fault{}, s.faults()...), Notes: append([]string{}, r.notes...),
	}
	result.Notes = append(result.Notes, s.counts.refused()...)
	result.Faults = append(result.Faults, r.faults...)
	if r.exporter != nil {
		after, err := r.exporter.atRest(context.WithoutCancel(ctx))
		switch {
		case err != nil:
			result.Faults = append(result.Faults, fault{"exporter", err.Error()})
		case slices.Contains(result.Faults, beganAgain):
			result.Kernel = after
		case !after.continues(r.seen):
			result.Faults = append(result.Faults, beganAgain)
			result.Kernel = after
		default:
			result.Kernel = after
			faults, notes := markFaults(r.before, after, &s.counts)
			result.Faults = append(result.Faults, faults...)
			result.Notes = append(result.Notes, notes...)
		}
	}
	if r.isCut {
		result.Notes = append(result.Notes, "the run was interrupted, and this is its result so far.")
	}
	result.decide()
	return result
}
