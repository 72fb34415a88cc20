// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// The metrics that a soak watches, and the limit for the rise of the line through the second
// half of their values. The memory limits exceed the variation by garbage collection within a
// minute; over ten minutes they reveal a leak of a kilobyte per scrape.
var soakLimits = []struct {
	name, metric string
	perUnit      float64 // of the metric
	unit         string
	maxRise      float64 // in units
}{
	{"resident memory", "process_resident_memory_bytes", 1 << 20, "MiB", 4},
	{"heap in use", "go_memstats_heap_inuse_bytes", 1 << 20, "MiB", 2},
	{"goroutines", "go_goroutines", 1, "", 2},
	{"descriptors", "process_open_fds", 1, "", 1},
}

// soakCycle is a period of steady traffic that ends with a flood.
const (
	soakCycle = 5 * time.Second
	soakFlood = time.Second
)

// TestSoak watches the exporter for the duration SOAK, under mixed traffic with floods, while
// clients scrape.
func TestSoak(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("SOAK is not set: make soak sets it")
	}
	duration, err := time.ParseDuration(os.Getenv("SOAK"))
	if err != nil || duration < 2*soakCycle {
		t.Fatalf("SOAK=%s is not a duration of at least %v", os.Getenv("SOAK"), 2*soakCycle)
	}
	l := newLab(t)
	target := l.newTargets(1, generatorOptions{random: true})[0]
	e := l.startExporter("--audit.device="+device, "--audit.min-samples=10", "--audit.threshold=2", "--audit.event-rate=10000", "--audit.calibrate=0",
		"--trail.file="+os.DevNull)
	before := e.usage()
	crowd := e.startCrowd(4, 200*time.Millisecond)
	traffic := l.startTraffic(target)

	samples := make([][]float64, len(soakLimits))
	ctx, cancel := context.WithTimeout(l.ctx, duration)
	defer cancel()
	ticker := time.NewTicker(max(duration/1000, 50*time.Millisecond))
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-ticker.C:
			s := e.scrape()
			for i, limit := range soakLimits {
				samples[i] = append(samples[i], s.sum(limit.metric)/limit.perUnit)
			}
		}
	}
	if err := traffic.end(); err != nil {
		t.Error(err)
	}
	s := e.endLoad(crowd, before)

	for i, limit := range soakLimits {
		second := samples[i][len(samples[i])/2:]
		rise, mean := lineThrough(second)
		t.Logf("%s: %.1f %s on average, and over the second half %+.2f", limit.name, mean, limit.unit, rise)
		if rise > limit.maxRise {
			t.Errorf("%s rose by %.2f %s in the second half of %v, want at most %v", limit.name, rise, limit.unit, duration, limit.maxRise)
		}
	}
	if received, counted := float64(target.frames().received), s.sum("packets_total"); received != counted {
		t.Errorf("%v packets were counted, and the driver received %v", counted, received)
	}
	t.Logf("%v of %v packets were flagged, and %v events received", s.sum("leak_flags_total"), s.sum("packets_total"), s.sum("events_total"))
	for _, protocol := range []string{"udp", "tcp"} {
		if s.sum("packets_total", "protocol="+protocol) == 0 {
			t.Errorf("no packet of %s was counted", protocol)
		}
	}
	e.expectStopped()
}

// lineThrough returns the rise of the least-squares line through equidistant values from the
// first to the last, and the mean of the values.
func lineThrough(values []float64) (rise, mean float64) {
	n := float64(len(values))
	for _, v := range values {
		mean += v / n
	}
	var covariance, variance float64
	for i, v := range values {
		x := float64(i) - (n-1)/2
		covariance += x * (v - mean)
		variance += x * x
	}
	return covariance / variance * (n - 1), mean
}

func TestLineThrough(t *testing.T) {
	for _, test := range []struct {
		values     []float64
		rise, mean float64
	}{
		{[]float64{5, 5, 5, 5}, 0, 5},
		{[]float64{1, 2, 3, 4, 5}, 4, 3},
		{[]float64{1, 0, 2, 1}, 0.6, 1}, // 6·Σ x·y / (n·(n+1)) with x = −1.5 … 1.5
	} {
		if rise, mean := lineThrough(test.values); math.Abs(rise-test.rise) > 1e-9 || math.Abs(mean-test.mean) > 1e-9 {
			t.Errorf("%v: rise %v and mean %v, want %v and %v", test.values, rise, mean, test.rise, test.mean)
		}
	}
}

// traffic is traffic from the sender's namespace.
type traffic struct {
	stop    func()
	running sync.WaitGroup
	mu      sync.Mutex
	err     error
}

// startTraffic starts UDP over IPv4 and IPv6, successive TCP connections, and the floods.
func (l *lab) startTraffic(flooded *target) *traffic {
	l.t.Helper()
	ctx, stop := context.WithCancel(l.ctx)
	traffic := &traffic{stop: stop}
	for i, to := range []netip.Addr{l.audited.IPv4.Addr(), l.audited.IPv6.Addr()} {
		f := l.newFlow(to)
		random := rand.New(rand.NewPCG(1, uint64(i)))
		traffic.run(func() error {
			return netlab.Pace(ctx, func(int) time.Duration {
				return time.Millisecond + time.Duration(random.NormFloat64()*50e3)
			}, func(int) error {
				_, err := f.client.Write(make([]byte, payloadBytes))
				return err
			})
		})
	}
	traffic.run(func() error {
		return every(ctx, time.Second, func() error { return transfer(l, 1<<20) })
	})
	traffic.run(func() error {
		return every(ctx, soakCycle, func() error {
			for begin := time.Now(); time.Since(begin) < soakFlood && ctx.Err() == nil; {
				if err := flooded.generator.send(generatedFrame(), 200_000); err != nil {
					return err
				}
			}
			return nil
		})
	})
	l.t.Cleanup(func() { _ = traffic.end() })
	return traffic
}

// every calls f once per interval until the context ends or f fails.
func every(ctx context.Context, interval time.Duration, f func() error) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := f(); err != nil {
			return err
		}
	}
}

func (t *traffic) run(f func() error) {
	t.running.Go(func() {
		err := f()
		t.mu.Lock()
		defer t.mu.Unlock()
		t.err = errors.Join(t.err, err)
	})
}

// end stops the traffic and returns its errors.
func (t *traffic) end() error {
	t.stop()
	t.running.Wait()
	if t.err != nil {
		return fmt.Errorf("sending: %w", t.err)
	}
	return nil
}
