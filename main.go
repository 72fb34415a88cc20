// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Command xdp_audit_exporter audits packet timing with an XDP program and exports
// the results to Prometheus.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/xdp-audit/xdp_audit_exporter/internal/exporter"
)

// memoryLimit is the soft memory limit of the Go runtime, unless GOMEMLIMIT sets one. It is
// several times the memory in use, and keeps the compressors of many parallel scrapes from
// growing the heap.
const memoryLimit = 20 << 20

func main() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	// The first signal shuts the exporter down in order, the second kills it.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	// If the reader of the trail or of the log ends, the write fails and the audit goes on.
	signal.Ignore(syscall.SIGPIPE)

	if err := exporter.Run(ctx, os.Args[1:], exporter.Process{Stdout: os.Stdout, Stderr: os.Stderr}); err != nil {
		fmt.Fprintf(os.Stderr, "%s: error: %s\n", exporter.Name, exporter.OneLine(err))
		os.Exit(1)
	}
}
