// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Command demo shows the exporter at work. It sends packets at steady intervals from one network
// namespace to another, delays some of them on purpose, and reports which of them the exporter
// flags. Its only argument is the path of the exporter.
//
// With the path of the probe as another argument it shows a leak assessment instead: of a server
// that compares a token byte by byte, and of one that compares it in constant time.
//
// Three environment variables configure it: DEMO_SECONDS limits the time that it runs, or that an
// assessment takes, DEMO_LISTEN is the address on which the exporter serves its metrics, and
// DEMO_SEED repeats the order of requests. The demo leaves nothing on the machine, however it ends.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
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
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo: error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 1 && len(args) != 2 {
		return errors.New("usage: demo PATH-OF-THE-EXPORTER [PATH-OF-THE-PROBE]")
	}
	target := [...]string{"demo", "demo-leak"}[len(args)-1]
	if os.Geteuid() != 0 {
		return errors.New("creating network namespaces and loading BPF programs requires root: run sudo make " + target)
	}
	limit, err := seconds(os.Getenv("DEMO_SECONDS"))
	if err != nil {
		return err
	}
	listener, err := listen(os.Getenv("DEMO_LISTEN"))
	if err != nil {
		return err
	}
	if len(args) == 2 {
		return assess(ctx, args[0], args[1], listener, limit)
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	stage, err := newStage(args[0], listener)
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

// listen opens the socket on which the exporter serves. It is opened outside of the exporter's
// namespace, so that a browser on this machine reaches it.
func listen(address string) (*net.TCPListener, error) {
	if address == "" {
		address = defaultListen
	}
	listener, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("address %s is already in use: choose another address, such as DEMO_LISTEN=127.0.0.1:9401", address)
	}
	if err != nil {
		return nil, fmt.Errorf("DEMO_LISTEN=%s: %w", address, err)
	}
	tcp, ok := listener.(*net.TCPListener)
	if !ok {
		return nil, fmt.Errorf("DEMO_LISTEN=%s is not a TCP address", address)
	}
	return tcp, nil
}
