// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// target is a pair with a generator on the sender's end.
type target struct {
	*pair
	generator *generator
}

// newTargets returns n pairs with a generator each. The first is the lab's own pair.
func (l *lab) newTargets(n int, options generatorOptions) (targets []*target) {
	l.t.Helper()
	for i := range n {
		audited, sender := l.audited, l.sender
		if i > 0 {
			audited, sender = l.connect(fmt.Sprintf("audited%d", i), fmt.Sprintf("sender%d", i), byte(i))
		}
		targets = append(targets, &target{l.pairs[audited.IPv4.Addr()], newGenerator(l.t, sender, options)})
	}
	return targets
}

// auditFlags returns the flags that audit the devices of targets.
func auditFlags(targets []*target) (flags []string) {
	for _, p := range targets {
		flags = append(flags, "--audit.device="+p.audited.Device)
	}
	return flags
}

// send sends a frame n times or more, and returns the number of frames sent.
func (p *target) send(frame []byte, n int) (sent uint64) {
	p.lab.t.Helper()
	before, err := p.generator.sent()
	if err == nil {
		err = p.generator.send(frame, n)
	}
	after, err2 := p.generator.sent()
	if err := errors.Join(err, err2); err != nil {
		p.lab.t.Fatal(err)
	}
	return after - before
}

// crowd is a number of clients that scrape an exporter and check the results.
type crowd struct {
	stop    func()
	running sync.WaitGroup

	mu        sync.Mutex
	durations []time.Duration
	errs      []error
}

// startCrowd starts clients that scrape once per interval each.
func (e *exporter) startCrowd(clients int, interval time.Duration) *crowd {
	ctx, stop := context.WithCancel(e.lab.ctx)
	c := &crowd{stop: stop}
	for range clients {
		client := &exporter{e.process, e.lab.client(), e.scheme}
		c.running.Go(func() {
			ticker := time.NewTicker(interval)
			defer ticker.Stop()
			defer client.client.CloseIdleConnections()
			var last float64
			for {
				select {
				case <-ctx.Done():
					return
				case <-ticker.C:
				}
				c.add(client.scrapeUnderLoad(&last))
			}
		})
	}
	e.lab.t.Cleanup(func() {
		c.stop()
		c.running.Wait()
	})
	return c
}

// scrapeUnderLoad scrapes once, and checks the conditions that hold at any time. last is the
// number of packets in the scrape before, and is updated.
func (e *exporter) scrapeUnderLoad(last *float64) (time.Duration, error) {
	begin := time.Now()
	status, page, err := e.ask("/metrics")
	duration := time.Since(begin)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", status, page)
	}
	if err != nil {
		return duration, err
	}
	s, err := parsePage(page)
	if err != nil {
		return duration, err
	}
	packets, before := s.sum("packets_total"), *last
	*last = packets
	if packets < before {
		return duration, fmt.Errorf("the packets fell from %v to %v", before, packets)
	}
	return duration, s.checkIdentities()
}

func (c *crowd) add(duration time.Duration, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.durations = append(c.durations, duration)
	if err != nil {
		c.errs = append(c.errs, err)
	}
}

// end stops the crowd. It fails the test if a scrape was wrong or took longer than limit.
func (c *crowd) end(t *testing.T, limit time.Duration) (scrapes int) {
	t.Helper()
	c.stop()
	c.running.Wait()
	if len(c.errs) > 0 {
		t.Errorf("%d of %d scrapes were wrong, the first: %v", len(c.errs), len(c.durations), c.errs[0])
	}
	if len(c.durations) == 0 {
		t.Fatal("nobody scraped")
	}
	slices.Sort(c.durations)
	slowest := c.durations[len(c.durations)-1]
	if slowest > limit {
		t.Errorf("a scrape took %v, want at most %v", slowest, limit)
	}
	t.Logf("%d scrapes took %v in the median and %v at most", len(c.durations), median(c.durations).Round(time.Microsecond), slowest)
	return len(c.durations)
}

// usage is the resource usage of a process.
type usage struct {
	peakBytes   uint64 // of resident memory, so far
	cpu         time.Duration
	descriptors int
}

// usage is the resource usage of the exporter, without the connection that its client keeps.
func (e *exporter) usage() usage {
	e.client.CloseIdleConnections()
	return e.process.usage()
}

// usage reads /proc. The exporter opens its last socket, which reports changes of devices, shortly
// after it serves.
func (p *process) usage() (u usage) {
	p.lab.t.Helper()
	folder := filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid))
	p.lab.poll(func() error {
		sockets, err := os.ReadFile(filepath.Join(folder, "net", "netlink"))
		if err == nil && !regexp.MustCompile(`(?m)^\S+ +0 +\d+ +00000001 `).Match(sockets) {
			err = errors.New("no socket reports changes of devices")
		}
		return err
	})
	status, err1 := os.ReadFile(filepath.Join(folder, "status"))
	stat, err2 := os.ReadFile(filepath.Join(folder, "stat"))
	descriptors, err3 := os.ReadDir(filepath.Join(folder, "fd"))
	if err := errors.Join(err1, err2, err3); err != nil {
		p.lab.t.Fatal(err)
	}
	for line := range bytes.Lines(status) {
		if value, ok := bytes.CutPrefix(line, []byte("VmHWM:")); ok {
			kibibytes, err := strconv.ParseUint(string(bytes.TrimSuffix(bytes.TrimSpace(value), []byte(" kB"))), 10, 64)
			if err != nil {
				p.lab.t.Fatal(err)
			}
			u.peakBytes = kibibytes << 10
		}
	}
	// In proc_pid_stat(5), utime and stime are the 12th and 13th fields after the name in
	// parentheses, in USER_HZ.
	const userHZ = 100
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	for _, field := range fields[11:13] {
		ticks, err := strconv.Atoi(string(field))
		if err != nil {
			p.lab.t.Fatal(err)
		}
		u.cpu += time.Duration(ticks) * time.Second / userHZ
	}
	u.descriptors = len(descriptors)
	return u
}

func median[T ~int64 | ~float64](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
