// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

// packet is a packet and what the audit decided about it.
type packet struct {
	flow      int    // in the experiment, from 0 on
	number    int    // in its flow; 0 is the first packet, which has no delta
	atNs      uint64 // since the start of the experiment
	deltaNs   uint64
	isPlanted bool
	before    timing.State // the flow's baseline before it
	isJudged  bool
	isFlagged bool
	fate      bpf.Fate // of a flagged packet
	isEvent   bool     // becomes an event, whether or not events are sent
}

// score returns the exact t-score of a judged packet.
func (a *audited) score(p *packet) float64 {
	return a.params().Score(p.deltaNs, p.before)
}

// params returns the parameters of the model of the audit.
func (a *audited) params() timing.Params {
	return timing.Params{
		Threshold: a.config.Threshold, MinSamples: uint64(a.config.MinSamples), Window: uint64(a.config.Window), Domain: a.config.Domain,
		Clip: a.config.Clip,
	}
}

// stream is the state of a flow that is sent.
type stream struct {
	next      traffic.Planted
	sent      int    // packets
	lastNs    uint64 // time of the last packet
	atNs      uint64 // time of the next packet
	isPlanted bool   // whether the next packet is late on purpose
}

func (s *stream) advance() {
	delta, isPlanted := s.next()
	s.atNs, s.isPlanted = s.atNs+traffic.Round(delta), isPlanted
}

// flow sends a new flow with that many deltas and passes every packet with a delta to observe.
func (a *audited) flow(deltas int, next traffic.Planted, observe func(*packet)) error {
	return a.flows(deltas, []traffic.Planted{next}, observe)
}

// flows sends new flows whose first packets arrive together, and passes every packet with a
// delta to observe. Packets are sent in the order of their times, until the first flow has had
// that many deltas.
func (a *audited) flows(deltas int, next []traffic.Planted, observe func(*packet)) error {
	if len(next) > mostFlows {
		return fmt.Errorf("%d flows are more than %d", len(next), mostFlows)
	}
	return pinned(a.cpu, func() error { return a.flowsHere(deltas, next, observe) })
}

func (a *audited) flowsHere(deltas int, next []traffic.Planted, observe func(*packet)) error {
	frame := makeFrame(a.flowsSent)
	a.flowsSent += uint32(len(next))
	// Makes the last packets of these flows differ in time from those of earlier flows.
	a.nowNs += uint64(time.Hour)
	before := a.audit.Counters()[0]
	streams, err := a.begin(frame, next)
	if err != nil {
		return err
	}
	e := exchange{audited: a, startNs: a.nowNs, streams: streams, planted: make([]bool, batchPackets), observe: observe}
	e.tally[bpf.OutcomeNewFlow] = uint64(len(streams))
	for streams[0].sent <= deltas {
		if err := e.send(frame, deltas); err != nil {
			return err
		}
	}
	for _, s := range streams {
		a.nowNs = max(a.nowNs, s.lastNs)
	}
	after := a.audit.Counters()[0]
	return a.checkTally(&e.tally, &before, &after)
}

// begin sends the first packet of each flow, a nanosecond after that of the flow before.
func (a *audited) begin(frame []byte, next []traffic.Planted) ([]stream, error) {
	streams := make([]stream, len(next))
	for i := range streams {
		at := a.nowNs + uint64(i)
		a.replayer.times[i], a.replayer.flows[i] = at, uint64(i)
		streams[i] = stream{next: next[i], sent: 1, lastNs: at, atNs: at}
		streams[i].advance()
	}
	return streams, errors.Join(a.replayer.send(frame, len(streams)), a.replayer.follow(a.nowNs, len(streams)))
}

// exchange is the packets of several flows.
type exchange struct {
	*audited
	startNs uint64
	streams []stream
	planted []bool // of the packets of a batch
	tally   tally
	observe func(*packet)
}

// send sends a batch of packets, as long as the first flow has not had that many deltas.
func (e *exchange) send(frame []byte, deltas int) error {
	numbers, last := make([]int, len(e.streams)), make([]uint64, len(e.streams))
	for i, s := range e.streams {
		numbers[i], last[i] = s.sent, s.lastNs
	}
	n := 0
	for ; n < batchPackets && e.streams[0].sent <= deltas; n++ {
		flow := e.earliest()
		s := &e.streams[flow]
		e.replayer.times[n], e.replayer.flows[n], e.planted[n] = s.atNs, uint64(flow), s.isPlanted
		s.sent++
		s.lastNs = s.atNs
		s.advance()
	}
	if err := e.replayer.send(frame, n); err != nil {
		return err
	}
	return e.replay(n, numbers, last)
}

// earliest returns the flow of the next packet.
func (e *exchange) earliest() int {
	first := 0
	for i := range e.streams {
		if e.streams[i].atNs < e.streams[first].atNs {
			first = i
		}
	}
	return first
}

// replay evaluates the records of the first n packets. It gets the number of the next packet of
// each flow, and the time of the last one.
func (e *exchange) replay(n int, numbers []int, lastNs []uint64) error {
	counted := e.audit.Counters()[0]
	end := replayRecord{Flags: counted.Packets.Outcome(bpf.OutcomeFlaggedEarly) + counted.Packets.Outcome(bpf.OutcomeFlaggedLate)}
	for fate, n := range counted.Fates {
		end.Fates[fate] = uint32(n)
	}
	records := e.replayer.records[:n]
	for i := range records {
		record, after := &records[i], &end
		if i+1 < n {
			after = &records[i+1]
		}
		flow, at := e.replayer.flows[i], e.replayer.times[i]
		p := packet{
			flow: int(flow), number: numbers[flow], atNs: at - e.startNs, deltaNs: at - lastNs[flow], isPlanted: e.planted[i],
			before: record.Baseline.state(), isFlagged: after.Flags != record.Flags,
		}
		numbers[flow]++
		lastNs[flow] = at
		if p.isFlagged {
			p.fate = record.fate(after)
			p.isEvent = p.fate != bpf.FateSuppressed
			if p.fate == bpf.NumFates {
				return fmt.Errorf("packet %d of flow %d was flagged, but no fate was counted", p.number, p.flow)
			}
		}
		e.decide(&p)
		e.observe(&p)
	}
	return nil
}

// fate returns the fate whose counter differs before and after a flagged packet.
func (r *replayRecord) fate(after *replayRecord) bpf.Fate {
	for fate := range bpf.NumFates {
		if after.Fates[fate] != r.Fates[fate] {
			return fate
		}
	}
	return bpf.NumFates
}

// decide counts the outcome of a packet.
func (e *exchange) decide(p *packet) {
	switch {
	case p.deltaNs > uint64(e.config.IdleTimeout):
		e.tally[bpf.OutcomeIdleGap]++
	case p.before.N < uint64(e.config.MinSamples):
		e.tally[bpf.OutcomeMinSamples]++
	default:
		p.isJudged = true
		if p.isFlagged {
			e.tally[bpf.OutcomeFlaggedLate]++
		} else {
			e.tally[bpf.OutcomeJudged]++
		}
	}
}
