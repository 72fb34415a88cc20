// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package testnumber reads how much a test does from the environment.
package testnumber

import (
	"os"
	"strconv"
	"testing"
)

// Of returns the number in an environment variable, or the usual number if the variable is not
// set. The test fails if it is not a number above 0.
func Of(t testing.TB, variable string, usual int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return usual
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s is not a number above 0", variable, text)
	}
	return n
}
