// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"time"
	"unicode"

	"github.com/cilium/ebpf"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

// lab has one device for each requested configuration of the audit. The devices are in network
// namespaces of their own and carry only replayed packets.
type lab struct {
	audited, far *netlab.Namespace
	devices      int                 // so far
	shared       map[string]*audited // by their flags
}

// audited is the audit of a device to which nothing else sends packets.
type audited struct {
	audit    *bpf.Audit
	config   bpf.Config
	replayer *replayer
	flows    uint32 // so far
	nowNs    uint64 // on the audit clock
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

// open starts the audit of a new device. The lab sets the devices and the clock of the
// configuration.
func (l *lab) open(config bpf.Config) (a *audited, err error) {
	near := netlab.End{Namespace: l.audited, Device: fmt.Sprintf("audited%d", l.devices)}
	far := netlab.End{Namespace: l.far, Device: fmt.Sprintf("far%d", l.devices)}
	l.devices++
	if err := netlab.Connect(near, far, 0); err != nil {
		return nil, err
	}
	config.Devices, config.Clock = []string{near.Device}, bpf.ClockMetadata
	// In native mode the program may be bound to its device, and then no other can call it.
	config.Mode = bpf.ModeGeneric
	a = &audited{config: config}
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

// packet is a packet and what the audit decided about it.
type packet struct {
	number    int // in its flow; 0 is the first packet, which has no delta
	deltaNs   uint64
	isPlanted bool
	before    timing.State // the flow's baseline before it
	isJudged  bool
	isFlagged bool
	isEvent   bool // becomes an event, whether or not events are sent
}

// score returns the exact t-score of a judged packet.
func (a *audited) score(p *packet) float64 { return a.config.Domain.Score(p.deltaNs, p.before) }

// flow sends a new flow with that many deltas and passes every packet with a delta to observe.
func (a *audited) flow(deltas int, next traffic.Planted, observe func(*packet)) error {
	return pinned(func() error { return a.flowHere(deltas, next, observe) })
}

func (a *audited) flowHere(deltas int, next traffic.Planted, observe func(*packet)) error {
	frame := makeFrame(a.flows)
	a.flows++
	a.nowNs += uint64(time.Hour) // makes the last packets of different flows differ in time
	a.replayer.times[0] = a.nowNs
	before := a.audit.Counters()[0].Packets
	if err := errors.Join(a.replayer.send(frame, 1), a.replayer.follow(a.nowNs)); err != nil {
		return err
	}
	tally := map[bpf.Outcome]uint64{bpf.OutcomeNewFlow: 1}
	planted := make([]bool, min(deltas, batchPackets))
	for sent := 0; sent < deltas; {
		n := min(deltas-sent, batchPackets)
		first := a.nowNs
		for i := range n {
			delta, isPlanted := next()
			a.nowNs += traffic.Round(delta)
			a.replayer.times[i], planted[i] = a.nowNs, isPlanted
		}
		if err := a.replayer.send(frame, n); err != nil {
			return err
		}
		a.replay(n, sent+1, first, planted, tally, observe)
		sent += n
	}
	after := a.audit.Counters()[0].Packets
	return a.checkTally(tally, &before, &after)
}

// replay evaluates the records of a batch of packets.
func (a *audited) replay(n, number int, lastNs uint64, planted []bool, tally map[bpf.Outcome]uint64, observe func(*packet)) {
	counted := a.audit.Counters()[0]
	flags := counted.Packets.Outcome(bpf.OutcomeFlaggedEarly) + counted.Packets.Outcome(bpf.OutcomeFlaggedLate)
	suppressed := counted.Fates[bpf.FateSuppressed]
	records := a.replayer.records[:n]
	var pauses, few, flagged uint64
	for i := range records {
		record := &records[i]
		p := packet{
			number: number + i, deltaNs: a.replayer.times[i] - lastNs, isPlanted: planted[i],
			before: record.Baseline.state(),
		}
		lastNs = a.replayer.times[i]
		flagsAfter, suppressedAfter := flags, suppressed
		if i+1 < n {
			flagsAfter, suppressedAfter = records[i+1].Flags, records[i+1].Suppressed
		}
		p.isFlagged = flagsAfter != record.Flags
		p.isEvent = p.isFlagged && suppressedAfter == record.Suppressed
		switch {
		case p.deltaNs > uint64(a.config.IdleTimeout):
			pauses++
		case p.before.N < uint64(a.config.MinSamples):
			few++
		default:
			p.isJudged = true
			if p.isFlagged {
				flagged++
			}
		}
		observe(&p)
	}
	tally[bpf.OutcomeIdleGap] += pauses
	tally[bpf.OutcomeMinSamples] += few
	tally[bpf.OutcomeFlaggedLate] += flagged
	tally[bpf.OutcomeJudged] += uint64(n) - pauses - few - flagged
}

// checkTally returns an error unless the audit counted the packets as they were recorded. The
// tally counts flags of both directions as late.
func (a *audited) checkTally(tally map[bpf.Outcome]uint64, before, after *bpf.Packets) error {
	for o := range bpf.NumOutcomes {
		counted := after.Outcome(o) - before.Outcome(o)
		switch o {
		case bpf.OutcomeFlaggedEarly:
			continue
		case bpf.OutcomeFlaggedLate:
			counted += after.Outcome(bpf.OutcomeFlaggedEarly) - before.Outcome(bpf.OutcomeFlaggedEarly)
		}
		if counted != tally[o] {
			return fmt.Errorf("the audit counted %d packets with outcome %v, but %d were recorded", counted, o, tally[o])
		}
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
