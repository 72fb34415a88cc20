// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

const (
	// tokenBytes is the size of a token: a long one, so that a comparison that ends early can be
	// seen in a minute on a machine with other work.
	tokenBytes = 16 << 10

	assessTime = time.Minute // of an assessment
	askRate    = 2000        // requests a second
)

// checker is a way to compare tokens, without regard to case.
type checker struct {
	name, words string
	isEqual     func(a, b []byte) bool
}

var checkers = []checker{
	{"byte_by_byte", "byte by byte, until one differs", func(a, b []byte) bool {
		if len(a) != len(b) {
			return false
		}
		for i := range a {
			if unicode.ToLower(rune(a[i])) != unicode.ToLower(rune(b[i])) {
				return false
			}
		}
		return true
	}},
	{"constant_time", "in constant time", func(a, b []byte) bool { return subtle.ConstantTimeCompare(bytes.ToLower(a), bytes.ToLower(b)) == 1 }},
}

// outcome is what the demo reads of the probe's result.
type outcome struct {
	Sentence string       `json:"sentence"`
	Verdict  leak.Verdict `json:"verdict"`
	Client   leak.Report  `json:"client"`
	Kernel   struct {
		Report leak.Report `json:"report"`
	} `json:"kernel"`
}

// assess lets the probe ask two servers for a time each.
func assess(ctx context.Context, exporter, probe string, listener *net.TCPListener, limit time.Duration) error {
	s, err := newNetwork(listener)
	if err != nil {
		return err
	}
	defer s.close()
	urls, err := s.serve()
	if err != nil {
		return err
	}
	reported, err := s.listen()
	if err != nil {
		return err
	}
	report := "http://" + reported.Addr().String()
	if err := s.start(exporter, []*net.TCPListener{listener, reported}, "--leak.config.file="+filepath.Join(folder, "leak.yml")); err != nil {
		return err
	}
	go func() {
		defer close(s.ended)
		_, _ = io.Copy(io.Discard, s.trail)
		s.endErr = s.exporter.Wait()
	}()
	if err := s.awaitExporter(ctx); err != nil {
		return err
	}
	limit = cmp.Or(limit, assessTime)
	fmt.Printf(`Two HTTP servers check a token of %d bytes. One stops at the first letter that differs, the other compares
in constant time. The probe sends each %d requests a second for at most %v: in random order with a
token whose first byte is wrong, and with one whose last byte is wrong. Does the response time tell which?

  page     %sleak
  end      Ctrl-C

`, tokenBytes, askRate, limit, s.page)
	outcomes := make([]outcome, len(checkers))
	for i, c := range checkers {
		fmt.Printf("A token is compared %s:\n", c.words)
		if err := s.ask(ctx, probe, urls[i], report, limit, &outcomes[i]); err != nil {
			return err
		}
		fmt.Println()
		if ctx.Err() != nil {
			return nil
		}
	}
	return conclude(outcomes)
}

// listen opens a socket at the audited device.
func (s *stage) listen() (listener *net.TCPListener, err error) {
	err = s.audited.Namespace.Do(func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.audited.IPv4.Addr(), 0)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("opening a socket: %w", err)
	}
	return listener, nil
}

// serve starts the servers, and writes the configuration of their assessments and the tokens.
func (s *stage) serve() (urls []string, err error) {
	config := "assessments:\n"
	token := []byte(strings.Repeat("s", tokenBytes))
	for _, c := range checkers {
		listener, err := s.listen()
		if err != nil {
			return nil, err
		}
		server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			given := make([]byte, tokenBytes)
			if _, err := io.ReadFull(r.Body, given); err != nil || !c.isEqual(token, given) {
				http.Error(w, "wrong token", http.StatusForbidden)
			}
		})}
		go func() { _ = server.Serve(listener) }()
		urls = append(urls, "http://"+listener.Addr().String()+"/session")
		_, port, _ := net.SplitHostPort(listener.Addr().String())
		config += fmt.Sprintf("  - {name: %s, protocol: tcp, port: %s, order: blocks, target: 10us, classes: {first_byte_wrong: {dscp: 8}, last_byte_wrong: {dscp: 16}}}\n", c.name, port)
	}
	return urls, os.WriteFile(filepath.Join(folder, "leak.yml"), []byte(config), 0o600)
}

// ask runs the probe, whose result appears as for every user.
func (s *stage) ask(ctx context.Context, probe, url, report string, limit time.Duration, o *outcome) error {
	result := filepath.Join(folder, "result.json")
	first, last := "x"+strings.Repeat("s", tokenBytes-1), strings.Repeat("s", tokenBytes-1)+"x"
	cmd := exec.Command(probe, "--url="+url, "--x.data="+first, "--y.data="+last, "--report="+report, "--json="+result, //nolint:gosec // the user names the probe
		fmt.Sprintf("--rate=%d", askRate), fmt.Sprintf("--duration=%v", limit), "--requests=10000000", "--seed="+cmp.Or(os.Getenv("DEMO_SEED"), "0"))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // the demo ends it
	if err := s.sender.Namespace.Start(cmd); err != nil {
		return fmt.Errorf("starting the probe: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	ended := cmd.Wait()
	text, err := os.ReadFile(result)
	if err == nil {
		err = json.Unmarshal(text, o)
	}
	if err != nil {
		return fmt.Errorf("the probe has no result: %w", errors.Join(ended, err))
	}
	return nil
}

// conclude writes the verdicts, and the intervals of the kernel and the client next to each other.
func conclude(outcomes []outcome) error {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(table, "comparison\tverdict\tkernel's interval\tclient's interval")
	for i, o := range outcomes {
		fmt.Fprintf(table, "%s\t%v\t%s\t%s\n", strings.ReplaceAll(checkers[i].name, "_", " "), o.Verdict, intervalOf(&o.Kernel.Report), intervalOf(&o.Client))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for i, o := range outcomes {
		fmt.Printf("\n%s: %s\n", strings.ReplaceAll(checkers[i].name, "_", " "), o.Sentence)
	}
	return nil
}

func intervalOf(r *leak.Report) string {
	if !r.HasInterval {
		return "-"
	}
	return leak.FormatNs(r.LowNs) + " to " + leak.FormatNs(r.HighNs)
}
