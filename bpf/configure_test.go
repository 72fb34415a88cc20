// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"math/bits"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// The object of a device has the configuration, the index of the device, and the tables of the
// arithmetic.
func TestConfigureSetsAllVariables(t *testing.T) {
	config := testConfig()
	config.Devices = []string{"test0", "test1"}
	config.Domain, config.Baseline, config.Watches = DomainLog2, BaselineDevice, 1
	config.Frozen = map[string]Learnt{"test1": {State: State{N: 1000, MeanQ16: 7 << 16, M2: Uint128{Hi: 3, Lo: 5}}}}
	config.FrozenSince = time.Unix(1e9, 0)
	audit := loadTest(t, config)
	entries := audit.maps.devices.entries
	for index, modes := range []uint32{
		modeLog2 | modeDevice | modeWatch, modeLog2 | modeDevice | modeWatch | modeFrozen,
	} {
		spec, err := audit.maps.programSpec(config, audit.maps.devices.identity(index))
		if err != nil {
			t.Fatal(err)
		}
		var got programAuditConfig
		if err := spec.Variables[programVarConfig].Get(&got); err != nil {
			t.Fatal(err)
		}
		if got.FirstBlock != uint32(index*audit.maps.cpus) || got.HashKeys != entries[index].keys || got.Owner != audit.maps.devices.owner(index) {
			t.Errorf("device %d: first block %d, keys %x, owner %#x", index, got.FirstBlock, got.HashKeys, got.Owner)
		}
		if got.Modes != modes || got.ClockSource != clockSourceMetadata || got.IdleTimeoutNs != uint64(config.IdleTimeout) {
			t.Errorf("device %d: got %+v", index, got)
		}
		want := programBaseline{}
		if modes&modeFrozen != 0 {
			saved := config.params().Clipped(config.Frozen["test1"].State)
			want = programBaseline{N: 1000, MeanQ16: 7 << 16, M2High: uint32(saved.M2.Hi), M2Low: saved.M2.Lo}
		}
		if got.Frozen != want {
			t.Errorf("device %d: saved baseline %+v, want %+v", index, got.Frozen, want)
		}

		var logarithms [1 << 14]uint8
		if err := spec.Variables[programVarLog2Table].Get(&logarithms); err != nil {
			t.Fatal(err)
		}
		for _, v := range []uint{1, 2, 3, 4, 255, 256, 1<<14 - 1} {
			if int(logarithms[v]) != bits.Len(v)-1 {
				t.Errorf("logarithm of %d: got %d, want %d", v, logarithms[v], bits.Len(v)-1)
			}
		}
		var cuts [timing.LinearCells]uint32
		if err := spec.Variables[programVarHistogramCuts].Get(&cuts); err != nil {
			t.Fatal(err)
		}
		if cuts != *timing.Cuts() {
			t.Error("the cuts of the histogram are not those of the model")
		}
		var fractions [timing.LogEntries]uint32
		if err := spec.Variables[programVarLog2Fractions].Get(&fractions); err != nil {
			t.Fatal(err)
		}
		if fractions != timing.LogTable() {
			t.Error("the table of logarithms is not that of the model")
		}
	}
}
