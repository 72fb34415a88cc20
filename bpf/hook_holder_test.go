// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"strings"
	"testing"
)

// A proposed command is safe to copy into a shell, whatever the names of device and directory.
func TestProposedCommandsQuoteNames(t *testing.T) {
	for name, want := range map[string]string{
		"eth0":          "run ip link set dev eth0 xdp off",
		"$(reboot)":     "run ip link set dev '$(reboot)' xdp off",
		"a;reboot":      "run ip link set dev 'a;reboot' xdp off",
		"ba%ffd0":       `run ip link set dev $'ba\xffd0' xdp off`,
		"%1b]0;x%07":    `run ip link set dev $'\x1b]0;x\x07' xdp off`,
		"'%25$(reboot)": `run ip link set dev ''\''%$(reboot)' xdp off`,
	} {
		for _, h := range []hookHolder{{program: 1, isSure: true}, {program: 1}} {
			got := h.explain(name)
			if !strings.HasPrefix(got, "device "+name+" already holds XDP program 1: ") || !strings.Contains(got, want) {
				t.Errorf("%s: got %q, want %q", name, got, want)
			}
		}
	}
	h := hookHolder{program: 1, pinPath: "/sys/fs/bpf/a;reboot"}
	if got, want := h.explain("eth0"), "--bpf.pin-path='/sys/fs/bpf/a;reboot' --bpf.unpin"; !strings.Contains(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
