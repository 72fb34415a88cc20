// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// A check names the programs that see what leaves a device, and says whether the one of response
// times can be attached.
func TestEgressFinding(t *testing.T) {
	needBPF(t)
	namespace, err := netlab.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(namespace.Close)
	attach := func() error {
		const loopback = 1
		program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "of_another", Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, tcxNext), asm.Return()},
		})
		if err != nil {
			return err
		}
		t.Cleanup(func() { program.Close() })
		l, err := link.AttachTCX(link.TCXOptions{Interface: loopback, Program: program, Attach: ebpf.AttachTCXEgress})
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	}
	attached := 0
	err = namespace.Do(func() error {
		for _, test := range []struct {
			programs       int
			areMeasured    bool
			state          FindingState
			value, meaning string
		}{
			{0, false, FindingOK, "no program", "for response times only"},
			{0, true, FindingOK, "no program", "can be attached"},
			{1, false, FindingOK, "of_another", "for response times only"},
			{1, true, FindingOK, "of_another", "before these"},
			{mostTCXPrograms, true, FindingFailure, "of_another", "has 63 programs"},
		} {
			for ; attached < test.programs; attached++ {
				if err := attach(); err != nil {
					return err
				}
			}
			c := &checker{}
			if test.areMeasured {
				c.config.ExchangeConnections = 64
			}
			d := madeUp("lo", 1, "device")
			f := c.egressFinding(&d)
			if f.State != test.state || !strings.Contains(f.Value, test.value) || !strings.Contains(f.Meaning, test.meaning) {
				t.Errorf("%d programs, response times %t: got %+v", test.programs, test.areMeasured, f)
			}
		}
		return nil
	})
	if errors.Is(err, ebpf.ErrNotSupported) {
		t.Skip("the kernel has no TCX")
	}
	if err != nil {
		t.Fatal(err)
	}
}
