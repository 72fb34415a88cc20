// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package trail

import (
	"math"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
)

func TestCovertRecord(t *testing.T) {
	window := &bpf.Window{
		Flow: bpf.Flow{
			Device: "eth0", Source: netip.MustParseAddrPort("192.0.2.1:40000"), Destination: netip.MustParseAddrPort("198.51.100.7:443"),
			Protocol: bpf.ProtocolUDP, ProtocolNumber: 17,
		},
		Time:     time.Date(2026, 11, 23, 16, 4, 5, 120_000_000, time.UTC),
		DeltasNs: make([]uint32, 2000),
	}
	verdict := &covert.Verdict{
		Tests:  []covert.Test{covert.Symbols, covert.Entropy},
		Scores: covert.Scores{1.5, math.NaN(), 2.25, 0.5, 0.125}, Earlier: 12, Alarms: 3,
	}
	path := filepath.Join(t.TempDir(), "trail")
	trail := openTrail(t, path)
	if err := trail.WriteCovert(window, verdict); err != nil {
		t.Fatal(err)
	}
	window.VLAN, window.Protocol, window.ProtocolNumber = 12, bpf.ProtocolOther, 47
	if err := trail.WriteCovert(window, verdict); err != nil {
		t.Fatal(err)
	}
	const fields = "time=2026-11-23T16:04:05.120000000Z device=eth0 covert=symbols,entropy " +
		`meaning="a change, as a channel or an application that begins in the flow makes" ` +
		"symbols=1.500 entropy=2.250 information=0.500 " +
		"autocorrelation=0.125 deltas=2000 earlier_windows=12 alarms=3 source=192.0.2.1 source_port=40000 destination=198.51.100.7 " +
		"destination_port=443 "
	if got, want := read(t, path), fields+"protocol=udp\n"+fields+"protocol=47 vlan=12\n"; got != want {
		t.Errorf("got  %swant %s", got, want)
	}
	if trail.Records() != 2 {
		t.Errorf("%d records are counted, want 2", trail.Records())
	}
}
