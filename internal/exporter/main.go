// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/xdp-audit/xdp_audit_exporter/internal/logging"
)

// Main is the main function of a command: it sets the signals of the operating-system process,
// lets [Run] set the soft memory limit unless GOMEMLIMIT sets one, and calls Run. It reports the
// error of Run in one line, without waiting long for a reader that does not read, and returns the
// exit code. It must be called at most once in an operating-system process.
func Main(args []string, process Process) (exitCode int) {
	if os.Getenv("GOMEMLIMIT") == "" {
		process.setMemoryLimit = func(bytes int64) { debug.SetMemoryLimit(bytes) }
	}
	// The first signal shuts the exporter down in order, the second kills it.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	// If the reader of the trail or of the log ends, the write fails and the audit goes on.
	signal.Ignore(syscall.SIGPIPE)

	if err := Run(ctx, args, process); err != nil {
		logging.WriteWithin(process.Stderr, fmt.Sprintf("%s: error: %s\n", Name, OneLine(err)), flushTimeout)
		return 1
	}
	return 0
}
