// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"
	"math/bits"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// programSpec returns the program, configured for a device. If response times are measured, it is
// the program that does both, and the one of outgoing packets.
func (t *auditMaps) programSpec(config Config, id deviceIdentity) (*ebpf.CollectionSpec, error) {
	spec, err := config.loadProgram()
	if err != nil {
		return nil, err
	}
	p := spec.Programs[programProgXdpAudit]
	if !t.hasFrags {
		p.Flags &^= unix.BPF_F_XDP_HAS_FRAGS
	}
	if id.boundTo != 0 {
		p.Ifindex = uint32(id.boundTo)
		p.Flags |= unix.BPF_F_XDP_DEV_BOUND_ONLY
	} else {
		dropMetadataCalls(p)
	}
	return spec, t.configure(spec, config, id)
}

// dropMetadataCalls replaces the call that tells a VLAN tag by its error for no tag. The kernel
// rejects the call in a program that is not bound to a device, even where it cannot be reached, and
// without a JIT compiler.
func dropMetadataCalls(p *ebpf.ProgramSpec) {
	for i := range p.Instructions {
		if ins := &p.Instructions[i]; ins.IsKfuncCall() {
			*ins = asm.Mov.Imm(asm.R0, -int32(unix.ENODATA))
		}
	}
}

// configure configures a program for a device, and gives the shared maps their sizes.
func (t *auditMaps) configure(spec *ebpf.CollectionSpec, config Config, id deviceIdentity) error {
	values := config.programConfig()
	values.FirstBlock = uint32(id.index * t.cpus)
	values.HashKeys = id.keys
	values.Owner = id.owner()
	values.LinkLayer = uint32(id.linkLayer) // the numbers are those of enum link_layer
	if id.boundTo != 0 {
		values.LinkLayer = linkLayerStripped
	}
	if t.hasFrags {
		values.HasFrags = 1
	}
	if learnt, isFrozen := config.Frozen[id.name]; isFrozen {
		values.Modes |= modeFrozen
		saved := config.params().Clipped(learnt.State)
		values.Frozen = programBaseline{
			MeanQ16: saved.MeanQ16, M2Low: saved.M2.Lo, M2High: uint32(saved.M2.Hi), N: uint32(saved.N),
		}
		values.YoungSamples = 0
	}
	for name, m := range t.byName {
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	if config.measuresExchanges() {
		if err := t.configureExchanges(spec, config); err != nil {
			return err
		}
	}
	return setVariables(spec, values)
}

// setVariables writes a configuration, and the tables that the program's arithmetic needs, into the
// read-only data of an object that is not loaded yet.
func setVariables(spec *ebpf.CollectionSpec, values programAuditConfig) error {
	if err := spec.Variables[programVarConfig].Set(values); err != nil {
		return fmt.Errorf("configuring the program: %w", err)
	}
	if err := spec.Variables[programVarHistogramCuts].Set(timing.Cuts()); err != nil {
		return fmt.Errorf("configuring the histogram: %w", err)
	}
	if err := spec.Variables[programVarLog2Table].Set(log2Table()); err != nil {
		return fmt.Errorf("configuring the logarithm: %w", err)
	}
	if err := spec.Variables[programVarLog2Fractions].Set(timing.LogTable()); err != nil {
		return fmt.Errorf("configuring the domain log2: %w", err)
	}
	return nil
}

// log2Table returns ⌊log2 v⌋ at index v, and 0 at index 0.
func log2Table() (table [1 << 14]uint8) {
	for v := range table {
		table[v] = uint8(max(bits.Len(uint(v)), 1) - 1)
	}
	return table
}

// programConfig returns the part of a program's configuration that all devices share.
func (c Config) programConfig() programAuditConfig {
	params := c.params()
	mantissa, exponent := params.ThresholdSquared()
	shortcuts := params.Shortcuts()
	values := programAuditConfig{
		IdleTimeoutNs:      uint64(c.IdleTimeout),
		EventIntervalNs:    c.eventInterval(),
		EventBurstNs:       uint64(time.Second),
		SetMask:            c.sets() - 1,
		MinSamples:         c.MinSamples,
		BaselineHalvedAt:   2 * c.Window,
		Threshold2Mantissa: mantissa,
		Threshold2Exponent: exponent,
		ClipFactorQ2:       shortcuts.Clip,
		ShortcutFactorQ2:   shortcuts.Both,
		NearFactorQ2:       shortcuts.Near,
		NearScaleQ16:       params.NearScaleQ16(),
		ClipQ16:            params.ClipQ16(),
		VarianceFactorQ16:  params.VarianceFactor(),
		LearntFactorQ16:    params.LearntFactor(),
		RestartRun:         params.RestartRun(),
		ShareQ32:           params.EarnedShare(),
		YoungSamples:       params.YoungSamples(),
		Threshold2Q32:      params.CutFloor(),
		UnearnedBurstNs:    uint64(time.Second) * max(1, 2/max(uint64(c.EventRate), 1)),
	}
	if runtime.GOARCH == "amd64" {
		values.StoresAreOrdered = 1
	}
	if c.Clock == ClockMetadata {
		values.ClockSource = clockSourceMetadata
	}
	if c.Domain == DomainLog2 {
		values.Modes |= modeLog2
	}
	if c.Baseline == BaselineDevice {
		values.Modes |= modeDevice
	}
	if c.Watches > 0 {
		values.Modes |= modeWatch
	}
	return values
}

const (
	clockSourceMetadata = 1 // enum clock_source in xdp/layout.h

	linkLayerStripped = 2 // enum link_layer in xdp/layout.h

	// enum judging_mode in xdp/layout.h
	modeLog2   = 1
	modeDevice = 2
	modeFrozen = 4
	modeWatch  = 8
)
