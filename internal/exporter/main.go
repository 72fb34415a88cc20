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
)

// memoryLimit is the soft memory limit of the Go runtime, unless GOMEMLIMIT sets one. It is
// several times the memory in use, and keeps the compressors of many parallel scrapes from
// growing the heap.
const memoryLimit = 20 << 20

// Main is the main function of a command: it sets the memory limit and the signals of the
// operating-system process, and calls [Run]. It reports the error of Run in one line and returns
// the exit code. It must be called at most once in an operating-system process.
func Main(args []string, process Process) (exitCode int) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	// The first signal shuts the exporter down in order, the second kills it.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	// If the reader of the trail or of the log ends, the write fails and the audit goes on.
	signal.Ignore(syscall.SIGPIPE)

	if err := Run(ctx, args, process); err != nil {
		fmt.Fprintf(process.Stderr, "%s: error: %s\n", Name, OneLine(err))
		return 1
	}
	return 0
}
