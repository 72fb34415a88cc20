// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package leaklab plants delays in real servers and looks for them with the kernel's measurement
// of response times and the judge of leak assessments. A client on the other end of a pair of
// virtual devices sends the requests of both classes.
//
// The server is net/http, or nginx as a proxy of it. Each runs in a process of its own. What was
// really planted is measured independently: by the clock of the handler, and for nginx by a capture
// of packets at the device.
package leaklab

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
)

// The environment of a process that is the application.
const (
	asApplication = "LEAKLAB_APPLICATION" // its address
	controlledBy  = "LEAKLAB_CONTROL"     // the path of the socket that gives its times
)

func TestMain(m *testing.M) {
	if address := os.Getenv(asApplication); address != "" {
		fmt.Fprintln(os.Stderr, serve(address, os.Getenv(controlledBy)))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// cannotRun returns why experiments cannot run here, or nil.
func cannotRun() error {
	if os.Geteuid() != 0 {
		return errors.New("only root may make network namespaces and load BPF programs")
	}
	if err := features.HaveProgramType(ebpf.XDP); err != nil {
		return fmt.Errorf("XDP programs cannot be loaded: %w", err)
	}
	return nil
}

// require skips a test for a missing requirement. REQUIRE_BPF=1 turns the skip into a failure.
func require(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if os.Getenv("REQUIRE_BPF") == "1" {
		t.Fatalf("REQUIRE_BPF=1, but %v", err)
	}
	t.Skip(err)
}
