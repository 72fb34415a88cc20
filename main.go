// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Command xdp_audit_exporter audits packet timing with an XDP program and exports
// the results to Prometheus.
package main

import (
	"os"

	"github.com/xdp-audit/xdp_audit_exporter/internal/earlysignal"
	"github.com/xdp-audit/xdp_audit_exporter/internal/exporter"
)

func main() {
	os.Exit(exporter.Main(os.Args[1:], exporter.Process{Stdout: os.Stdout, Stderr: os.Stderr, Hangup: earlysignal.Hangup}))
}
