// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"unicode"

	"github.com/cilium/ebpf"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// lab has one device for each requested configuration of the audit. The devices are in network
// namespaces of their own and carry only replayed packets.
type lab struct {
	audited, far *netlab.Namespace
	cpu          int                 // number of the CPU that sends packets
	devices      int                 // so far
	shared       map[string]*audited // by their flags
}

// audited is the audit of a device to which nothing else sends packets.
type audited struct {
	audit     *bpf.Audit
	cpu       int // as in lab
	config    bpf.Config
	replayer  *replayer
	flowsSent uint32
	nowNs     uint64 // on the audit clock
}

func newLab() (*lab, error) {
	near, err := netlab.NewNamespace()
	if err != nil {
		return nil, err
	}
	far, err := netlab.NewNamespace()
	if err != nil {
		near.Close()
		return nil, err
	}
	return &lab{audited: near, far: far, shared: map[string]*audited{}}, nil
}

func (l *lab) close() error {
	var errs []error
	for _, a := range l.shared {
		errs = append(errs, a.close())
	}
	l.audited.Close()
	l.far.Close()
	return errors.Join(errs...)
}

// audit returns the audit with that configuration. Experiments share it; each has flows of its
// own.
func (l *lab) audit(config bpf.Config) (*audited, error) {
	flags := flagsOf(config)
	if a, ok := l.shared[flags]; ok {
		return a, nil
	}
	a, err := l.open(config)
	if err == nil {
		l.shared[flags] = a
	}
	return a, err
}

// alone calls f with the audit of a new device. It is for experiments on what a device learns
// from all its flows, and on watched flows.
func (l *lab) alone(config bpf.Config, f func(*audited) error) error {
	a, err := l.open(config)
	if err != nil {
		return err
	}
	return errors.Join(f(a), a.close())
}

// open starts the audit of a new device. The lab sets the devices, the clock and the default
// event rate of the configuration.
func (l *lab) open(config bpf.Config) (a *audited, err error) {
	near := netlab.End{Namespace: l.audited, Device: fmt.Sprintf("audited%d", l.devices)}
	far := netlab.End{Namespace: l.far, Device: fmt.Sprintf("far%d", l.devices)}
	l.devices++
	if err := netlab.Connect(near, far, 0); err != nil {
		return nil, err
	}
	config.Devices, config.Clock = []string{near.Device}, bpf.ClockMetadata
	// The event rate counts in real time, in which packets arrive about a thousand times as fast.
	if config.EventRate == bpf.DefaultConfig().EventRate {
		config.EventRate = bpf.MaxEventRate
	}
	// In native mode the program may be bound to its device, and then no other can call it.
	config.Mode = bpf.ModeGeneric
	a = &audited{config: config, cpu: l.cpu}
	err = l.audited.Do(func() (err error) {
		a.audit, err = bpf.Open(config, slog.New(slog.DiscardHandler))
		return err
	})
	if err != nil {
		return nil, err
	}
	if a.replayer, err = newReplayer(ebpf.ProgramID(a.audit.Hooks()[0].ProgramID)); err != nil {
		return nil, errors.Join(err, a.audit.Close())
	}
	if err := l.far.Do(func() error { return a.replayer.attach(far.Device) }); err != nil {
		return nil, errors.Join(err, a.close())
	}
	return a, nil
}

func (a *audited) close() error { return errors.Join(a.replayer.close(), a.audit.Close()) }

// tally counts packets by outcome. Flags of both directions are counted as late.
type tally [bpf.NumOutcomes]uint64

// checkTally returns an error unless the audit counted the packets as they were recorded, and
// counted a fate for each flagged packet.
func (a *audited) checkTally(recorded *tally, before, after *bpf.Counters) error {
	for o := range bpf.NumOutcomes {
		counted := after.Packets.Outcome(o) - before.Packets.Outcome(o)
		switch o {
		case bpf.OutcomeFlaggedEarly:
			continue
		case bpf.OutcomeFlaggedLate:
			counted += after.Packets.Outcome(bpf.OutcomeFlaggedEarly) - before.Packets.Outcome(bpf.OutcomeFlaggedEarly)
		}
		if counted != recorded[o] {
			return fmt.Errorf("the audit counted %d packets with outcome %v, but %d were recorded", counted, o, recorded[o])
		}
	}
	fates := uint64(0)
	for fate := range bpf.NumFates {
		fates += after.Fates[fate] - before.Fates[fate]
	}
	if flags := recorded[bpf.OutcomeFlaggedLate]; fates != flags {
		return fmt.Errorf("the audit counted %d fates of %d flagged packets", fates, flags)
	}
	return nil
}

// flagsOf returns the flags of a configuration that differ from the defaults, as the exporter
// takes them: MinSamples becomes --audit.min-samples.
func flagsOf(config bpf.Config) string {
	values, defaults := reflect.ValueOf(config), reflect.ValueOf(bpf.DefaultConfig())
	var flags []string
	for i := range values.NumField() {
		value := values.Field(i).Interface()
		if reflect.DeepEqual(value, defaults.Field(i).Interface()) {
			continue
		}
		if values.Type().Field(i).Name == "Watches" {
			flags = append(flags, fmt.Sprintf("--collector.covert --collector.covert.flows=%v", value))
			continue
		}
		var name strings.Builder
		for j, letter := range values.Type().Field(i).Name {
			if j > 0 && unicode.IsUpper(letter) {
				name.WriteByte('-')
			}
			name.WriteRune(unicode.ToLower(letter))
		}
		flags = append(flags, fmt.Sprintf("--audit.%s=%v", &name, value))
	}
	return strings.Join(flags, " ")
}
