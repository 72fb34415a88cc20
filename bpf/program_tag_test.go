// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import "testing"

// The tag names the program: it does not depend on the configuration, which is data.
func TestTagDoesNotDependOnConfiguration(t *testing.T) {
	other := testConfig()
	other.Threshold, other.Window, other.Domain, other.Baseline = 2, 64, DomainLog2, BaselineDevice
	first := sizeOf(t, loadTest(t, testConfig()).devices.listed[0])
	second := sizeOf(t, loadTest(t, other).devices.listed[0])
	if first.tag == "" || first.tag != second.tag {
		t.Errorf("tags are %q and %q, want the same", first.tag, second.tag)
	}
}
