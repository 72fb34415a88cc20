// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"testing"

	"github.com/cilium/ebpf"
)

// constantMark is CONSTANT_MARK of maps.h, without the lower half.
const constantMark = 0x5eedc0de

// An instruction that still names a member of the configuration would be a wrong number and no error.
func TestEachConstantIsWritten(t *testing.T) {
	audit := loadTest(t, testConfig())
	spec, err := loadProgram()
	if err != nil {
		t.Fatal(err)
	}
	if named(spec) < 20 {
		t.Errorf("%d instructions name a constant: too few for this to be the program", named(spec))
	}
	if err := audit.maps.configure(spec, audit.config, 0); err != nil {
		t.Fatal(err)
	}
	if left := named(spec); left != 0 {
		t.Errorf("%d instructions name a constant after all were written", left)
	}
}

func named(spec *ebpf.CollectionSpec) (n int) {
	for _, program := range spec.Programs {
		for _, ins := range program.Instructions {
			if uint64(ins.Constant)>>32 == constantMark {
				n++
			}
		}
	}
	return n
}
