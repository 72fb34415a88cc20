// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
	"github.com/xdp-audit/xdp_audit_exporter/internal/covert/trial"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

const (
	tableLegitimate = "covert: legitimate traffic"
	tableChannels   = "covert: channels"

	columnByFirst = "by the first 16" // judged by the first 16 windows only
	columnInTurn  = "in turn"         // judged by all windows before, as the exporter does

	// mostWatched is the number of flows that are watched at a time.
	mostWatched = 64
	// unsampled is the number of packets a flow sends before it must be watched. The program
	// samples one packet in 16 to find busy flows: so many packets without a sample are improbable.
	unsampled = 500
)

// covertWindows measures which windows of watched flows raise an alarm, after the first 16
// windows of their cover.
func covertWindows() []experiment {
	const legitimate, ofAChannel = 1000, 500
	var all []experiment
	add := func(table, row string, windows int, measure func(*lab, run) (alarms, error), bounds alarmBounds) {
		config := bpf.DefaultConfig()
		config.Watches = mostWatched
		for _, column := range []string{columnByFirst, columnInTurn} {
			b, isAsked := bounds[column]
			if !isAsked {
				continue
			}
			all = append(all, experiment{
				table: table, row: row, column: column, config: config, packets: windows * covert.WindowLength, bound: b,
				measure: pick(measure, func(found alarms) figure { return shareFigure(found[column]) }),
			})
		}
	}
	of := func(f trial.Flows) func(*lab, run) (alarms, error) {
		return once(func(l *lab, r run) (alarms, error) { return measureWindows(l, r, f) })
	}
	for _, f := range trial.Legitimate() {
		add(tableLegitimate, f.Name, legitimate, of(f), alarmBounds{columnByFirst: atMost(0.02), columnInTurn: atMost(0.02)})
	}
	for _, c := range trial.Symbols() {
		add(tableChannels, c.Name, ofAChannel, of(c.Flows), boundsOf(c.Flows, atLeast(0.99), atLeast(0.99)))
	}
	var disguised []func(*lab, run) (alarms, error)
	for _, c := range trial.Disguised() {
		measure := of(c.Flows)
		if c.Cover == nil {
			add(tableChannels, c.Name, ofAChannel, measure, alarmBounds{columnInTurn: atLeast(0.9)})
			continue
		}
		disguised = append(disguised, measure)
		add(tableChannels, c.Name, ofAChannel, measure, alarmBounds{columnByFirst: {}, columnInTurn: {}})
	}
	add(tableChannels, "replayed cover, model-based and phase with a past, combined", ofAChannel*len(disguised),
		func(l *lab, r run) (alarms, error) { return measureCombined(l, r, disguised) },
		alarmBounds{columnByFirst: atLeast(0.9), columnInTurn: atLeast(0.9)})
	for _, f := range slices.Concat(trial.Faint(), trial.Unseen()) {
		add(tableChannels, f.Name, ofAChannel, of(f), boundsOf(f, bound{}, bound{}))
	}
	return slices.Concat(all, simulatedWindows())
}

// alarms are the fractions of windows with an alarm, by column.
type alarms map[string]share

// alarmBounds are the bounds of the requested columns.
type alarmBounds map[string]bound

// boundsOf returns the bounds of both columns. Flows without a cover have no first 16 windows
// to be judged by.
func boundsOf(f trial.Flows, byFirst, inTurn bound) alarmBounds {
	bounds := alarmBounds{columnByFirst: byFirst, columnInTurn: inTurn}
	if f.Cover == nil {
		delete(bounds, columnByFirst)
	}
	return bounds
}

// measureCombined adds up the windows of several experiments.
func measureCombined(l *lab, r run, parts []func(*lab, run) (alarms, error)) (alarms, error) {
	r.packets /= len(parts)
	sums := alarms{}
	for _, measure := range parts {
		found, err := measure(l, r)
		if err != nil {
			return nil, err
		}
		for column, s := range found {
			sum := sums[column]
			sums[column] = share{sum.Hits + s.Hits, sum.Trials + s.Trials, max(sum.Clustering, s.Clustering)}
		}
	}
	return sums, nil
}

// watchedFlow is a flow whose windows are read.
type watchedFlow struct {
	frame       []byte
	random      *rand.Rand
	next        traffic.Source
	recorded    []uint32 // deltas expected in the next window
	past, first covert.Past
}

// newWatchedFlow starts a flow, with its cover if there is one.
func newWatchedFlow(kind trial.Flows, seed uint64, number int) *watchedFlow {
	flow := &watchedFlow{frame: makeFrame(uint32(number)), random: traffic.Rand(seed, fmt.Sprint(kind.Name, number))}
	begin := kind.Cover
	if begin == nil {
		begin = kind.Then
	}
	flow.next = begin(flow.random)
	return flow
}

// measureWindows sends flows of a kind and judges every window.
func measureWindows(l *lab, r run, kind trial.Flows) (alarms, error) {
	flows := make([]*watchedFlow, max(1, r.packets/covert.WindowLength/trial.WindowsOfFlow))
	byFirst, inTurn := counter{packets: len(flows) * trial.WindowsOfFlow}, counter{packets: len(flows) * trial.WindowsOfFlow}
	meter := covert.NewMeter()
	isAlarm := func(past *covert.Past, s covert.Statistics) bool { return len(meter.Judge(past, s).Alarms()) > 0 }
	err := l.alone(r.config, func(a *audited) error {
		for i := range flows {
			flows[i] = newWatchedFlow(kind, r.seed, i)
		}
		if err := a.watch(flows); err != nil {
			return err
		}
		if kind.Cover != nil {
			for range trial.TrainingWindows {
				err := a.windows(flows, func(i int, deltas []uint32) { isAlarm(&flows[i].past, meter.Measure(deltas)) })
				if err != nil {
					return err
				}
			}
		}
		for _, flow := range flows {
			flow.first = flow.past
			if kind.Then != nil {
				flow.next = kind.Then(flow.random)
			}
		}
		for number := range trial.WindowsOfFlow {
			err := a.windows(flows, func(i int, deltas []uint32) {
				statistics, first := meter.Measure(deltas), flows[i].first
				byFirst.add(i*trial.WindowsOfFlow+number, isAlarm(&first, statistics))
				inTurn.add(i*trial.WindowsOfFlow+number, isAlarm(&flows[i].past, statistics))
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	return alarms{columnByFirst: byFirst.share(), columnInTurn: inTurn.share()}, err
}

// watch sends packets of each flow until the program watches it.
func (a *audited) watch(flows []*watchedFlow) error {
	for i, flow := range flows {
		if err := a.sendDeltas(flow, unsampled); err != nil {
			return err
		}
		a.audit.ReadWindows(covert.WindowLength, func(*bpf.Window) {})
		if counts, want := a.audit.WatchCounts(), (bpf.WatchCounts{Flows: i + 1}); counts != want {
			return fmt.Errorf("after %d flows the audit reports the watch counts %+v, want %+v", i+1, counts, want)
		}
		flow.recorded = flow.recorded[:0]
	}
	return nil
}

// windows sends the packets of the next window of each flow and passes each window with the
// number of its flow to judge. It returns an error unless the windows contain the deltas that
// were sent.
func (a *audited) windows(flows []*watchedFlow, judge func(flow int, deltas []uint32)) error {
	for _, flow := range flows {
		if err := a.sendDeltas(flow, covert.WindowLength); err != nil {
			return err
		}
	}
	var errs []error
	a.audit.ReadWindows(covert.WindowLength, func(w *bpf.Window) {
		i := flowOf(w.Source)
		if i >= len(flows) || !slices.Equal(w.DeltasNs, flows[i].recorded) {
			errs = append(errs, fmt.Errorf("a window of %v does not have the deltas that were sent", w.Flow))
			return
		}
		flows[i].recorded = flows[i].recorded[:0]
		judge(i, w.DeltasNs)
	})
	for i, flow := range flows {
		if len(flow.recorded) > 0 {
			errs = append(errs, fmt.Errorf("the window of flow %d was not read", i))
		}
	}
	return errors.Join(errs...)
}

// sendDeltas sends packets of a flow until they have that many deltas. The first packet, and
// each packet after a pause, has no delta.
func (a *audited) sendDeltas(flow *watchedFlow, deltas int) error {
	return pinned(a.cpu, func() error {
		a.nowNs += uint64(time.Hour)
		a.replayer.times[0] = a.nowNs
		packets := 1
		for ; len(flow.recorded) < deltas; packets++ {
			if packets == batchPackets {
				return fmt.Errorf("a flow has %d deltas in %d packets", len(flow.recorded), packets)
			}
			delta := traffic.Round(flow.next())
			a.nowNs += delta
			a.replayer.times[packets] = a.nowNs
			if delta <= uint64(a.config.IdleTimeout) {
				flow.recorded = append(flow.recorded, uint32(delta))
			}
		}
		return a.replayer.send(flow.frame, packets)
	})
}

// flowOf returns the number of the flow to which makeFrame gave this address.
func flowOf(source netip.AddrPort) int {
	address := source.Addr().As4()
	return int(address[1])<<16 | int(address[2])<<8 | int(address[3])
}
