// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/excess"
)

var excessScoreDesc = newDesc("flag_excess_score",
	"Score of the excess of flagged packets over the past of the device; 1 or more is an excess; 0 while the past is shorter than six hours.", "device")

// Excess compares the flagged packets of each minute with the past of their device. Its own clock
// divides the minutes, so scrapes do not change the score. Its methods are safe for concurrent use.
type Excess struct {
	mu      sync.Mutex
	saved   map[string]FlagsPast
	devices map[string]*deviceExcess
}

// FlagsPast is what a device has learnt of its flags.
type FlagsPast = excess.Past

// FlagBlocks are the sums of the complete blocks of one length of a past.
type FlagBlocks = excess.Blocks

// deviceExcess is the state of one device, and its counters at the end of the last minute.
type deviceExcess struct {
	score         excess.Device
	judged, flags uint64
}

// NewExcess returns an [Excess] whose devices begin with a saved past, by name, or without one.
// Every past must be valid. Call Run.
func NewExcess(saved map[string]FlagsPast) *Excess {
	return &Excess{saved: saved, devices: map[string]*deviceExcess{}}
}

// Pasts returns the pasts of the present devices by name.
func (e *Excess) Pasts() map[string]FlagsPast {
	e.mu.Lock()
	defer e.mu.Unlock()
	pasts := make(map[string]FlagsPast, len(e.devices))
	for name, device := range e.devices {
		pasts[name] = device.score.Past()
	}
	return pasts
}

// Run reads the counters of source at once and then once a minute, until the context is canceled.
func (e *Excess) Run(ctx context.Context, source Source) error {
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	e.addMinute(source.Counters())
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			e.addMinute(source.Counters())
		}
	}
}

// addMinute takes the counters at the end of a minute. The first ones of a device are where its
// first minute begins, because pinned counters continue those of an earlier exporter. A counter
// that falls belongs to a device that was attached again, which begins with the saved past.
func (e *Excess) addMinute(counters []bpf.Counters) {
	e.mu.Lock()
	defer e.mu.Unlock()
	devices := make(map[string]*deviceExcess, len(counters))
	for i := range counters {
		name, packets := counters[i].Device, &counters[i].Packets
		flags := packets.Outcome(bpf.OutcomeFlaggedEarly) + packets.Outcome(bpf.OutcomeFlaggedLate)
		judged := packets.Outcome(bpf.OutcomeJudged) + flags
		device := e.devices[name]
		if device == nil || judged < device.judged || flags < device.flags {
			device = &deviceExcess{}
			if past, ok := e.saved[name]; ok {
				device.score = excess.Continue(past)
			}
		} else {
			device.score.AddMinute(judged-device.judged, flags-device.flags)
		}
		device.judged, device.flags = judged, flags
		devices[name] = device
	}
	e.devices = devices
}

// send sends the score of a device, and nothing for a nil Excess.
func (e *Excess) send(ch chan<- prometheus.Metric, device *dto.LabelPair) {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	score := 0.0
	if known := e.devices[device.GetValue()]; known != nil {
		score = known.score.Score()
	}
	ch <- gauge(excessScoreDesc, score, device)
}
