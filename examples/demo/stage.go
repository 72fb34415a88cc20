// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

const (
	device = "audited0"

	// patience is the time that the exporter may take to start, to answer and to end.
	patience = 20 * time.Second
)

// stage holds the network, the exporter in it, and the sockets of sender and receiver.
type stage struct {
	page     string // address of the pages
	audited  netlab.End
	sender   netlab.End
	conn     net.Conn
	receiver net.PacketConn
	exporter *exec.Cmd
	trail    io.Reader    // the exporter's standard output
	log      bytes.Buffer // read after the exporter has ended
	ended    chan struct{}
	endErr   error // how the exporter ended
}

// newStage creates the network and starts the exporter in it. It takes over the listener.
func newStage(exporter string, listener *net.TCPListener) (_ *stage, err error) {
	s, err := newNetwork(listener)
	if err != nil {
		return nil, err
	}
	if err = s.openSockets(); err == nil {
		err = s.start(exporter, []*net.TCPListener{listener}, "--audit.min-samples=100", "--audit.event-rate=1000",
			// More packets are late than the flow has tokens for. Report all flagged packets.
			"--audit.calibrate=0", "--trail.file=-")
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// newNetwork joins two namespaces by a pair of devices.
func newNetwork(listener *net.TCPListener) (_ *stage, err error) {
	s := &stage{page: "http://" + listener.Addr().String() + "/", ended: make(chan struct{})}
	s.audited, s.sender, err = netlab.NewPair(device, "sender0")
	return s, err
}

// openSockets opens a socket at each end. The receiver does not read: when its socket is full, the
// kernel drops the packets.
func (s *stage) openSockets() error {
	var err error
	s.receiver, err = s.audited.Namespace.ListenPacket(netip.AddrPortFrom(s.audited.IPv4.Addr(), 0).String())
	if err != nil {
		return fmt.Errorf("opening a socket: %w", err)
	}
	if s.conn, err = s.sender.Namespace.Dial(context.Background(), "udp", s.receiver.LocalAddr().String()); err != nil {
		return fmt.Errorf("opening a socket: %w", err)
	}
	return nil
}

// start starts the exporter as systemd does: with the sockets as file descriptors from 3 on, and
// with the process id of the exporter in LISTEN_PID. A shell sets it and becomes the exporter.
func (s *stage) start(exporter string, listeners []*net.TCPListener, flags ...string) (err error) {
	flags = append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, exporter, "--audit.device=" + device, "--audit.mode=drv", "--web.systemd-socket"}, flags...)
	s.exporter = exec.Command("/bin/sh", flags...) //nolint:gosec // the user names the exporter
	s.exporter.Env = append(os.Environ(), fmt.Sprintf("LISTEN_FDS=%d", len(listeners)))
	for _, listener := range listeners {
		socket, err := listener.File()
		if err != nil {
			return fmt.Errorf("handing over the socket: %w", err)
		}
		defer socket.Close()
		defer listener.Close()
		s.exporter.ExtraFiles = append(s.exporter.ExtraFiles, socket)
	}
	s.exporter.Stderr = &s.log
	// In a process group of its own, the exporter does not get Ctrl-C: the demo ends it.
	s.exporter.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if s.trail, err = s.exporter.StdoutPipe(); err != nil {
		return fmt.Errorf("reading the trail: %w", err)
	}
	if err := s.audited.Namespace.Start(s.exporter); err != nil {
		return fmt.Errorf("starting the exporter: %w", err)
	}
	return nil
}

func (s *stage) close() {
	for _, socket := range []io.Closer{s.conn, s.receiver} {
		if socket != nil {
			_ = socket.Close()
		}
	}
	for _, end := range []netlab.End{s.audited, s.sender} {
		if end.Namespace != nil {
			end.Namespace.Close()
		}
	}
}

// play sends packets and prints reports until the context ends, and then prints a summary.
func (s *stage) play(ctx context.Context) error {
	tally := newTally()
	go func() {
		defer close(s.ended)
		records := bufio.NewScanner(s.trail)
		for records.Scan() {
			tally.record(records.Text())
		}
		s.endErr = s.exporter.Wait()
	}()
	if err := s.awaitExporter(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // the demo ended first
		}
		return err
	}

	sent := make(chan struct{})
	var sendErr error
	go func() {
		defer close(sent)
		sendErr = s.send(ctx, tally)
	}()

	ticker := time.NewTicker(reportEvery)
	defer ticker.Stop()
	for {
		select {
		case <-s.ended:
			return s.exporterError()
		case <-sent:
			if sendErr != nil {
				return fmt.Errorf("sending: %w", sendErr)
			}
			return s.finish(tally)
		case <-ticker.C:
			series, err := s.scrape(context.WithoutCancel(ctx))
			if err != nil {
				return err
			}
			fmt.Print(tally.report(series))
		}
	}
}

// finish waits until every flag has been reported, ends the exporter and prints the summary.
func (s *stage) finish(tally *tally) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var last series
	err := netlab.Poll(ctx, func() (err error) {
		if last, err = s.scrape(ctx); err != nil {
			return err
		}
		if n := tally.records(); last.flags != float64(n) {
			return fmt.Errorf("the exporter flagged %v packets, and the trail has %d", last.flags, n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.exporter.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("ending the exporter: %w", err)
	}
	select {
	case <-s.ended:
	case <-ctx.Done():
		return errors.New("the exporter does not end")
	}
	if s.endErr != nil {
		return s.exporterError()
	}
	fmt.Print(tally.summary(last))
	return nil
}

// awaitExporter waits until the exporter answers.
func (s *stage) awaitExporter(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("the exporter does not answer"))
	defer cancel()
	answers := make(chan error, 1)
	go func() {
		answers <- netlab.Poll(ctx, func() error {
			_, err := s.scrape(ctx)
			return err
		})
	}()
	select {
	case err := <-answers:
		return err
	case <-s.ended:
		return s.exporterError()
	}
}

// exporterError returns an error with the last line of the exporter's log.
func (s *stage) exporterError() error {
	lines := strings.Split(strings.TrimSpace(s.log.String()), "\n")
	if s.endErr == nil {
		return fmt.Errorf("the exporter ended: %s", lines[len(lines)-1])
	}
	return fmt.Errorf("the exporter ended: %w: %s", s.endErr, lines[len(lines)-1])
}

// send sends packets at steady intervals until the context ends.
func (s *stage) send(ctx context.Context, tally *tally) error {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // nothing secret
	payload := []byte("steady as she goes")
	gap := func(i int) time.Duration {
		wait := interval + time.Duration(random.NormFloat64()*float64(spread))
		if isPlanted(i) {
			wait += lateness
		}
		return max(wait, 0)
	}
	return netlab.Pace(ctx, gap, func(i int) error {
		before := time.Now()
		if _, err := s.conn.Write(payload); err != nil {
			return err
		}
		tally.sent(isPlanted(i), before, time.Now())
		return nil
	})
}

// isPlanted reports whether the i-th packet, from 0, is sent late on purpose.
func isPlanted(i int) bool {
	n := i + 1
	return n >= firstLate && (n-firstLate)%latePeriod == 0
}

// series holds the metrics that the report shows.
type series struct {
	events, flags, lastScore float64
}

// scrape reads the metrics of the exporter.
func (s *stage) scrape(ctx context.Context) (series, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.page+"metrics", nil) //nolint:gosec // the user chooses the address
	if err != nil {
		return series{}, fmt.Errorf("reading the metrics of the exporter: %w", err)
	}
	response, err := http.DefaultClient.Do(request) //nolint:gosec // the user chooses the address
	if err != nil {
		return series{}, fmt.Errorf("reading the metrics of the exporter: %w", err)
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return series{}, fmt.Errorf("reading the metrics of the exporter: %s: %w", response.Status, err)
	}
	text := string(page)
	return series{
		events:    sum(text, "xdp_audit_events_total"),
		flags:     sum(text, "xdp_audit_leak_flags_total"),
		lastScore: sum(text, "xdp_audit_last_tscore"),
	}, nil
}

// sum returns the sum of all series with a name.
func sum(page, name string) (total float64) {
	for line := range strings.Lines(page) {
		if !strings.HasPrefix(line, name+"{") {
			continue
		}
		if value, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' ')+1:]), 64); err == nil {
			total += value
		}
	}
	return total
}
