// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"encoding/json"
	"testing"
)

// --check foretells in which mode a device of each kind that this kernel can make is audited, or
// that it is refused. With -short, mode auto is compared alone.
func TestCheckOfKinds(t *testing.T) {
	k := newKindLab(t)
	for i, one := range allKinds {
		if err := k.add(one, uint16(i+1)); err != nil {
			t.Errorf("%s: %v", one.name, err)
		}
	}
	k.bringUp()
	all := func(*kindDevice) bool { return true }
	modes := []string{"auto", "drv", "skb"}
	if testing.Short() {
		modes = modes[:1]
	}
	for _, mode := range modes {
		p := k.start(binaries.exporter, append(k.arguments(mode, all), "--check", "--log.format=json"))
		<-p.ended
		var report struct {
			Devices []struct{ Name, Mode, Error string }
		}
		if err := json.Unmarshal([]byte(p.stdout.String()), &report); err != nil {
			t.Fatalf("%v: %s%s", err, &p.stdout, &p.stderr)
		}
		e := k.startKinds(mode, all)
		for _, d := range report.Devices {
			got := ""
			if k.last.sum("hook_up", "device="+d.Name) == 1 {
				got = k.last.label(t, "hook_info", "mode", "device="+d.Name)
			}
			if got != d.Mode {
				t.Errorf("mode %s: %s is audited in mode %q, and --check says %q %s", mode, d.Name, got, d.Mode, d.Error)
			}
		}
		if len(report.Devices) < len(k.audited) {
			t.Errorf("mode %s: --check reports %d devices, want %d", mode, len(report.Devices), len(k.audited))
		}
		e.expectStopped()
	}
}
