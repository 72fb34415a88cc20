// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// All waits share the time since the signal, however many there are, and the last leaves some
// of it.
func TestWaitsShareTheTimeSinceTheSignal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		end := newEnding(ctx)
		time.Sleep(time.Minute)
		if got := end.limit(servingUntil, time.Hour); got != time.Hour {
			t.Errorf("without a signal: got %v", got)
		}
		cancel()
		synctest.Wait()
		begin := time.Now()
		for _, until := range []time.Duration{servingUntil, flushingUntil, reportingUntil} {
			time.Sleep(end.limit(until, time.Hour))
			if took := time.Since(begin); took != until {
				t.Errorf("a wait ended after %v, want %v", took, until)
			}
		}
		if time.Since(begin) >= shutdownTimeout {
			t.Errorf("all waits took %v", time.Since(begin))
		}
		time.Sleep(time.Minute)
		if got := end.limit(flushingUntil, time.Hour); got != leastFlushing {
			t.Errorf("late: got %v, want %v", got, leastFlushing)
		}
	})
}
