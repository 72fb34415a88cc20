// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Command dashboards generates the dashboards of deploy/grafana/dashboards. It uses the types
// of version 1 of the Grafana dashboard schema: only the newest Grafana reads version 2, which
// the SDK prefers.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("got %d arguments, want 1: the output directory", len(args))
	}
	for name, make := range map[string]func() cog.Builder[dashboard.Dashboard]{"fleet.json": fleet, "device.json": device} {
		built, err := make().Build()
		if err != nil {
			return fmt.Errorf("building %s: %w", name, err)
		}
		text, err := json.MarshalIndent(built, "", "  ")
		if err != nil {
			return fmt.Errorf("encoding %s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(args[0], name), append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	return nil
}
