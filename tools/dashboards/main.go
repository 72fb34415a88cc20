// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Command dashboards writes the dashboards of deploy/grafana/dashboards, in the types of Grafana's own schema: the first
// version of it, and not the second, which the SDK prefers and only the newest Grafana knows.
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
		return fmt.Errorf("%d arguments, want 1: the folder to write the dashboards to", len(args))
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
