// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// TestMain is the exporter itself in the processes that TestExit starts.
func TestMain(m *testing.M) {
	if os.Getenv("XDP_AUDIT_TEST_MAIN") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestExit(t *testing.T) {
	tests := []struct {
		args           []string
		code           int
		stdout, stderr string // patterns
	}{
		{[]string{"--audit.flows=x"}, 1, `^$`, `^xdp_audit_exporter: error: --audit\.flows \(XDP_AUDIT_FLOWS\): "x" is not .*\n$`},
		{[]string{"--healthcheck", "--web.listen-address=127.0.0.1:1"}, 1, `^$`, `^xdp_audit_exporter: error: no healthy exporter on 127\.0\.0\.1:1: .*\n$`},
		{[]string{"--version"}, 0, `^xdp_audit_exporter, version `, `^$`},
		{[]string{"--help"}, 0, `(?s)^usage: xdp_audit_exporter .*\(\$XDP_INTERFACE\).*\(\$XDP_AUDIT_THRESHOLD\)`, `^$`},
	}
	for _, test := range tests {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			command := exec.Command(os.Args[0], test.args...)
			command.Env = append(os.Environ(), "XDP_AUDIT_TEST_MAIN=1")
			var stdout, stderr bytes.Buffer
			command.Stdout, command.Stderr = &stdout, &stderr
			_ = command.Run()
			if code := command.ProcessState.ExitCode(); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			if !regexp.MustCompile(test.stdout).Match(stdout.Bytes()) || !regexp.MustCompile(test.stderr).Match(stderr.Bytes()) {
				t.Errorf("printed %q and %q, want %s and %s", &stdout, &stderr, test.stdout, test.stderr)
			}
		})
	}
}
