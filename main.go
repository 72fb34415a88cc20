// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Command xdp_audit_exporter audits packet timing with an XDP program, and exports what it finds to Prometheus.
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

// memoryLimit is the soft limit of Go's memory unless GOMEMLIMIT sets one: several times what is in use, and short of
// what the compressors of many scrapes at a time would let the heap grow to before it is collected.
const memoryLimit = 20 << 20

func main() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	// The first signal ends the exporter in order, the second at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	// The end of whoever reads the trail or the log is an error of the write, and not the end of the audit.
	signal.Ignore(syscall.SIGPIPE)

	if err := exporter.Run(ctx, os.Args[1:], exporter.Process{Stdout: os.Stdout, Stderr: os.Stderr}); err != nil {
		fmt.Fprintf(os.Stderr, "%s: error: %s\n", exporter.Name, exporter.OneLine(err))
		os.Exit(1)
	}
}
