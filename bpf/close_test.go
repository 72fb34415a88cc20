// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"context"
	"log/slog"
	"sync"
	"testing"
)

// Close unmaps the memory that the readers use. They must neither fail while it runs nor touch that
// memory afterwards.
func TestReadersDuringAndAfterClose(t *testing.T) {
	needBPF(t)
	config := testConfig()
	config.Baseline, config.Watches = BaselineDevice, 4
	audit, err := load(config, config.Devices, testKeys(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := audit.devices.load(audit.devices.listed[0], 0); err != nil {
		t.Fatal(err)
	}
	run(t, audit.program(0), udpFrame(), 1e12, 1)

	readers := map[string]func(){
		"Counters":    func() { audit.Counters() },
		"Learnt":      func() { audit.Learnt() },
		"DeviceSlots": func() { audit.DeviceSlots() },
		"EventCounts": func() { audit.EventCounts() },
		"WatchCounts": func() { audit.WatchCounts() },
		"ReadWindows": func() { audit.ReadWindows(1, func(*Window) {}) },
		"Hooks":       func() { audit.Hooks() },
		"Runs":        func() { _, _ = audit.Runs() },
		"rings":       func() { audit.ringlessEvents() },
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := audit.ReadEvents(ctx, func(*Event) {}); err != nil {
			t.Errorf("ReadEvents: %v", err)
		}
	})
	for _, read := range readers {
		read()
		running.Go(func() {
			for ctx.Err() == nil {
				read()
			}
		})
	}
	if err := audit.Close(); err != nil {
		t.Error(err)
	}
	for _, read := range readers {
		read()
	}
	stop()
	running.Wait()

	if got := audit.Counters(); len(got) != 0 {
		t.Errorf("counters of %d devices after Close", len(got))
	}
	if got := audit.DeviceSlots(); got != (DeviceSlots{}) {
		t.Errorf("device slots after Close: %+v", got)
	}
	if got := audit.EventCounts(); len(got.Received) != 0 {
		t.Errorf("events of devices after Close: %+v", got)
	}
}
