// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/prometheus/common/promslog"

	"github.com/xdp-audit/xdp_audit_exporter/internal/logging"
)

// Main is the main function of a command: it sets the signals of the operating-system process,
// lets [Run] set the soft memory limit unless GOMEMLIMIT sets one, and calls Run. It reports the
// error of Run in one line, which is JSON if the log is, without waiting long for a reader that
// does not read, and returns the exit code. It must be called at most once in an operating-system
// process.
func Main(args []string, process Process) (exitCode int) {
	if os.Getenv("GOMEMLIMIT") == "" {
		process.setMemoryLimit = func(bytes int64) { debug.SetMemoryLimit(bytes) }
	}
	// The first signal shuts the exporter down in order, the second kills it.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	// If the reader of the trail or of the log ends, the write fails and the audit goes on.
	signal.Ignore(syscall.SIGPIPE)

	end := newEnding(ctx)
	if err := Run(ctx, args, process); err != nil {
		logging.WriteWithin(process.Stderr, lastLine(err, isJSON(args)), end.limit(reportingUntil, flushTimeout))
		return 1
	}
	return 0
}

// lastLine returns the line about the error that ends the exporter: text, or a line of the log in
// JSON.
func lastLine(err error, inJSON bool) string {
	if !inJSON {
		return fmt.Sprintf("%s: error: %s\n", Name, OneLine(err))
	}
	var line strings.Builder
	format := promslog.NewFormat()
	_ = format.Set("json") // is a format
	promslog.New(&promslog.Config{Format: format, Writer: &line}).Error("Exiting", "err", OneLine(err))
	return line.String()
}

// isJSON reports whether the arguments choose JSON as the format of the log. It needs no valid
// arguments, so that an error in them is logged in this format, too.
func isJSON(args []string) (is bool) {
	const flag, format = "--log.format", "json"
	for i, arg := range args {
		switch {
		case arg == "--":
			return is
		case arg == flag && i+1 < len(args):
			is = args[i+1] == format
		case strings.HasPrefix(arg, flag+"="):
			is = arg == flag+"="+format
		}
	}
	return is
}
