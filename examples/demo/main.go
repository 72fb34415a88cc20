// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Command demo shows the exporter at work. It sends packets at steady intervals from one network
// namespace to another, delays some of them on purpose, and reports which of them the exporter
// flags. Its only argument is the path of the exporter.
//
// With the path of the probe as another argument it shows a leak assessment instead: of a server
// that compares a token byte by byte, and of one that compares it in constant time.
//
// With the paths of Prometheus, of the directory of the rules and of the runbooks as further
// arguments it shows a fleet: three exporters, an anomaly on one of them, and the alert.
//
// Three environment variables configure it: DEMO_SECONDS limits the time that it runs, or that an
// assessment takes; a fleet takes its time. DEMO_LISTEN is the address on which the exporter serves
// its metrics, in a fleet the first one: the others and Prometheus take the next ports. DEMO_SEED
// repeats the order of requests. The demo leaves nothing on the machine, however it ends.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	interval    = time.Millisecond
	spread      = 100 * time.Microsecond // standard deviation of the interval
	lateness    = 10 * time.Millisecond
	firstLate   = 1000 // packets before the first late one, for the baseline to learn
	latePeriod  = 200  // packets from one late packet to the next
	reportEvery = 5 * time.Second

	defaultListen = "127.0.0.1:9400"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo: error:", strings.ReplaceAll(err.Error(), "\n", ": "))
		code = 1
	}
	os.Exit(code)
}

// targets are those of make, by the number of arguments.
var targets = map[int]string{1: "demo", 2: "demo-leak", 4: "demo-fleet"}

func run(ctx context.Context, args []string) (code int, err error) {
	target, ok := targets[len(args)]
	if !ok {
		return 0, errors.New("usage: demo PATH-OF-THE-EXPORTER [PATH-OF-THE-PROBE | PATH-OF-PROMETHEUS DIRECTORY-OF-RULES RUNBOOKS]")
	}
	if os.Geteuid() != 0 {
		return 0, errors.New("creating network namespaces and loading BPF programs requires root: run sudo make " + target)
	}
	if os.Getenv(insideVariable) == "" {
		return runInside()
	}
	if err := makePrivate(); err != nil {
		return 0, err
	}
	limit, err := seconds(os.Getenv("DEMO_SECONDS"))
	if err != nil {
		return 0, err
	}
	number := 1
	if target == "demo-fleet" {
		number = len(hosts) + 1
	}
	listeners, err := listen(os.Getenv("DEMO_LISTEN"), number)
	if err != nil {
		return 0, err
	}
	switch target {
	case "demo-fleet":
		return 0, showFleet(ctx, args[0], args[1], args[2], args[3], listeners)
	case "demo-leak":
		return 0, assess(ctx, args[0], args[1], listeners[0], limit)
	}
	return 0, show(ctx, args[0], listeners[0], limit)
}

// show lets the exporter flag packets that are late on purpose.
func show(ctx context.Context, exporter string, listener *net.TCPListener, limit time.Duration) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	stage, err := newStage(exporter, listener)
	if err != nil {
		return err
	}
	defer stage.close()
	fmt.Printf(`Open %s

One network namespace sends another a UDP packet every %v, with a standard deviation of %v. The exporter
audits the packets where they arrive. From packet %d on, every %dth packet is sent %v late on purpose.
When this machine is busy, it delays other packets: the exporter flags these, too.

  page     %s
  metrics  %smetrics
  end      Ctrl-C

`, stage.page, interval, spread, firstLate, latePeriod, lateness, stage.page, stage.page)
	return stage.play(ctx)
}

// seconds returns a time limit, which is 0 for an empty text.
func seconds(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("DEMO_SECONDS=%s is not a number of seconds from 1 to 65535", text)
	}
	return time.Duration(n) * time.Second, nil
}

// listen opens that many sockets, at an address and at the ports after it. They are opened outside
// of the namespaces of the exporters, so that a browser on this machine reaches them.
func listen(address string, number int) (listeners []*net.TCPListener, err error) {
	if address == "" {
		address = defaultListen
	}
	first, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("DEMO_LISTEN=%s: %w", address, err)
	}
	for i := range number {
		next := *first
		if first.Port > 0 {
			next.Port += i
		}
		listener, err := net.ListenTCP("tcp", &next)
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("address %v is already in use: choose another address, such as DEMO_LISTEN=127.0.0.1:9501", &next)
		}
		if err != nil {
			return nil, fmt.Errorf("DEMO_LISTEN=%s: %w", address, err)
		}
		listeners = append(listeners, listener)
	}
	return listeners, nil
}
