// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package awake keeps the CPUs of the machine awake while an experiment measures short times.
package awake

import (
	"os"
	"testing"
)

// Keep asks the kernel for a latency of 0 (PM QoS) until the test ends: idle CPUs poll instead of
// sleeping. On a virtual machine, an idle CPU takes tens of microseconds to wake up.
func Keep(t testing.TB) {
	t.Helper()
	file, err := os.OpenFile("/dev/cpu_dma_latency", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	if _, err := file.Write(make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
}
