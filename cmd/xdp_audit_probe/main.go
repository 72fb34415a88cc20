// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Command xdp_audit_probe sends requests of two classes in random order to a service, and says
// whether the response time depends on the class.
package main

import (
	"os"

	"github.com/xdp-audit/xdp_audit_exporter/internal/probe"
)

func main() { os.Exit(probe.Main(os.Args[1:], os.Stdout, os.Stderr)) }
