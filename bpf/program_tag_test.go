// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"strings"
	"testing"
)

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

// Without response times, the object has nothing of their measurement.
func TestAuditAloneHasNothingOfResponseTimes(t *testing.T) {
	config := testConfig()
	names := func() (all []string) {
		spec, err := config.loadProgram()
		if err != nil {
			t.Fatal(err)
		}
		for name := range spec.Maps {
			all = append(all, name)
		}
		for name, program := range spec.Programs {
			all = append(all, name)
			for i := range program.Instructions {
				all = append(all, program.Instructions[i].Symbol(), program.Instructions[i].Reference())
			}
		}
		return all
	}
	count := func() (n int) {
		for _, name := range names() {
			if strings.Contains(name, "exchange") || name == exchangePortsName {
				n++
			}
		}
		return n
	}
	if n := count(); n != 0 {
		t.Errorf("%d names are of response times, want none", n)
	}
	config.ExchangeConnections = 4096
	if count() == 0 {
		t.Error("with response times there is no name of theirs")
	}
}
