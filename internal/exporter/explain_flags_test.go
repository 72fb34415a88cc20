// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"io"
	"testing"
)

func TestClosest(t *testing.T) {
	names := []string{"audit.device", "audit.follow", "no-audit.follow", "audit.mode", "audit.max-devices", "collector.covert", "web.max-requests"}
	for misspelled, want := range map[string]string{
		"audit.devise": "audit.device", "audit.devices": "audit.device", "device": "audit.device", "mode": "audit.mode",
		"collector.covrt": "collector.covert", "no-audit.folow": "no-audit.follow", "max-request": "web.max-requests",
		"colour": "", "x": "", "nope": "", "audit": "", "": "",
	} {
		if got := closest(misspelled, names); got != want {
			t.Errorf("%q is taken for %q, want %q", misspelled, got, want)
		}
	}
	for _, pair := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2}, {"same", "same", 0}} {
		if got := distance(pair.a, pair.b); got != pair.want {
			t.Errorf("the distance of %q and %q is %d, want %d", pair.a, pair.b, got, pair.want)
		}
	}
}

// Variables that are probably not meant for the exporter are ignored.
func TestOtherVariables(t *testing.T) {
	for _, name := range []string{
		"XDP_AUDIT_EXPORTER_PORT", "XDP_AUDIT_EXPORTER_SERVICE_HOST", "XDP_AUDIT_PORT_9400_TCP_ADDR", "XDP_PROGRAM", "XDP", "XDP_AUDIT_", "MODE",
	} {
		t.Setenv(name, "x")
	}
	if _, err := parseFlags(nil, io.Discard); err != nil {
		t.Error(err)
	}
}
