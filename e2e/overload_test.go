// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// Limits for the exporter under any load, with 65,536 slots and 4 devices.
const (
	overloadDevices = 4
	maxResident     = 40 << 20
	maxScrape       = 10 * time.Second // the default scrape_timeout of Prometheus

	clients        = 20
	clientInterval = 100 * time.Millisecond
)

// Every packet belongs to a new flow. Four devices receive as many as one core can send, while
// twenty clients scrape.
func TestFloodOfNewFlows(t *testing.T) {
	const (
		duration = 3 * time.Second
		burst    = 200_000
	)
	l := newLab(t)
	targets := l.newTargets(overloadDevices, generatorOptions{random: true, realtime: true})
	e := l.startExporter(auditFlags(targets)...)
	before := e.usage()
	crowd := e.startCrowd(clients, clientInterval)

	protocols := []struct {
		name   string
		number byte
	}{{"udp", unix.IPPROTO_UDP}, {"tcp", unix.IPPROTO_TCP}, {"sctp", unix.IPPROTO_SCTP}}
	sent := map[string]map[string]uint64{} // by device and protocol
	begin := time.Now()
	for i := 0; time.Since(begin) < duration; i++ {
		p, protocol := targets[i%len(targets)], protocols[i%len(protocols)]
		if sent[p.audited.Device] == nil {
			sent[p.audited.Device] = map[string]uint64{}
		}
		sent[p.audited.Device][protocol.name] += p.send(makeFrame(protocol.number, 53), burst)
	}
	s := e.endLoad(crowd, before)

	for _, p := range targets {
		var all uint64
		now := p.frames()
		for _, protocol := range protocols {
			n := sent[p.audited.Device][protocol.name]
			all += n
			got := s.sum("packets_total", "device="+p.audited.Device, "family=ipv4", "protocol="+protocol.name)
			if want := float64(n); got != want && now.dropped == 0 {
				t.Errorf("%v packets of %s were counted on %s, want %v", got, protocol.name, p.audited.Device, want)
			}
		}
		p.expectCounted(s, all)
	}
	if slots, used := s.sum("flow_table_slots"), s.sum("flow_table_slots_used"); used != slots || slots != 65536 {
		t.Errorf("%v of %v slots are used, want all 65536", used, slots)
	}
	inserts, evictions := s.sum("flow_inserts_total"), s.sum("flow_evictions_total")
	if flows := s.sum("outcomes_total", "outcome=new_flow"); inserts != flows || inserts-evictions != 65536 {
		t.Errorf("%v packets of a new flow, %v flows inserted, %v evicted; want as many inserted as new, and all but 65536 evicted",
			flows, inserts, evictions)
	}
	e.expectCheapScrapes(51, scrapeCost{bpfCalls: 2 + 2*overloadDevices, systemCalls: 400, allocations: 10_000, bytes: 1 << 20})
	e.expectStopped()
}

// Nearly every packet is flagged. A baseline adapts quickly, so flows begin, are flagged until
// their baseline has adapted, and end: three packets a microsecond apart, and then one per
// second. Times are injected, so the model gives the exact number of flagged packets.
func TestStormOfFlags(t *testing.T) {
	const (
		flows    = 2048 // at a time
		rounds   = 66   // packets of each: one more, and their baselines would restart
		storms   = 32
		interval = uint64(time.Second) // the longest delta that does not count as a pause
	)
	params := timing.Params{Threshold: 4, MinSamples: 2, Window: 8192, Clip: 1.8}
	times, flagged := make([]uint64, rounds), 0
	var baseline timing.State
	for i := 1; i < rounds; i++ {
		delta := interval
		if i <= int(params.MinSamples) {
			delta = 1000
		}
		times[i] = times[i-1] + delta
		if decision := params.Observe(&baseline, delta); decision == timing.Early || decision == timing.Late {
			flagged++
		}
	}

	l := newLab(t)
	targets := l.newTargets(overloadDevices, generatorOptions{flows: flows, times: times, realtime: true})
	e := l.startExporter(append(auditFlags(targets), "--audit.clock=metadata",
		"--audit.threshold=4", "--audit.min-samples=2", "--audit.event-rate=1000000", "--audit.calibrate=0")...)
	before := e.usage()
	crowd := e.startCrowd(clients, clientInterval)
	sent := map[*target]uint64{}
	for storm := range storms {
		p := targets[storm%len(targets)]
		// Later than all earlier packets, so that the flows of earlier storms are evicted.
		if err := p.generator.restart(uint64(storm+1) * rounds * interval); err != nil {
			t.Fatal(err)
		}
		sent[p] += p.send(makeFrame(unix.IPPROTO_UDP, uint16(storm+1)), flows*rounds)
	}
	s := e.endLoad(crowd, before)

	for _, p := range targets {
		if want := uint64(storms / overloadDevices * flows * rounds); sent[p] != want {
			t.Errorf("%d frames were sent to %s, want %d", sent[p], p.audited.Device, want)
		}
		if dropped := p.frames().dropped; dropped > 0 {
			t.Errorf("%d frames were lost on the way to %s: nobody can tell what is flagged", dropped, p.audited.Device)
		}
		p.expectCounted(s, sent[p])
		want := float64(sent[p] / rounds * uint64(flagged))
		if got := s.sum("leak_flags_total", "device="+p.audited.Device); got != want {
			t.Errorf("%v packets were flagged on %s, want %v", got, p.audited.Device, want)
		}
	}
	flags := s.sum("leak_flags_total")
	t.Logf("%.1f %% of the packets were flagged: %v events sent and received, %v found their ring full, %v came too often",
		100*flags/s.sum("packets_total"), s.sum("events_total"),
		s.sum("event_fates_total", "fate=ring_full"), s.sum("event_fates_total", "fate=rate_limit"))
	if s.sum("events_total") == 0 {
		t.Error("no event was received")
	}
	e.expectStopped()
}

// endLoad stops a crowd, checks the resource usage of the exporter, and returns a scrape at
// rest.
func (e *exporter) endLoad(c *crowd, before usage) scrape {
	t := e.lab.t
	t.Helper()
	during := e.usage()
	scrapes := c.end(t, maxScrape)
	s := e.atRest()
	cpu := during.cpu - before.cpu
	t.Logf("%v packets; the exporter had %.1f MiB at most, before %.1f MiB, and took %v of CPU time, %v a scrape",
		s.sum("packets_total"), mebibytes(during.peakBytes), mebibytes(before.peakBytes), cpu, cpu/time.Duration(scrapes))
	if during.peakBytes > maxResident {
		t.Errorf("the exporter had %.1f MiB resident, want at most %.1f MiB", mebibytes(during.peakBytes), mebibytes(maxResident))
	}
	e.lab.poll(func() error {
		if now := e.usage().descriptors; now > before.descriptors {
			return fmt.Errorf("the exporter has %d descriptors, and had %d before the load", now, before.descriptors)
		}
		return nil
	})
	return s
}

// scrapeCost is what a scrape costs, in numbers that are the same on every machine. CPU time is
// not: another guest of the machine may double it.
type scrapeCost struct {
	bpfCalls    float64 // of bpf(2)
	systemCalls float64
	allocations float64
	bytes       float64 // allocated
}

// expectCheapScrapes expects scrapes at rest to cost at most most, in the median: once in a while
// the exporter also looks at all devices.
func (e *exporter) expectCheapScrapes(scrapes int, most scrapeCost) {
	t := e.lab.t
	t.Helper()
	calls := countSystemCalls(t, e.process)
	var bpfCalls, systemCalls, allocations, bytes []float64
	last, lastCalls := e.scrape(), calls()
	for range scrapes {
		now, nowCalls := e.scrape(), calls()
		bpfCalls = append(bpfCalls, float64(nowCalls.bpf-lastCalls.bpf))
		systemCalls = append(systemCalls, float64(nowCalls.all-lastCalls.all))
		allocations = append(allocations, now.sum("go_memstats_mallocs_total")-last.sum("go_memstats_mallocs_total"))
		bytes = append(bytes, now.sum("go_memstats_alloc_bytes_total")-last.sum("go_memstats_alloc_bytes_total"))
		last, lastCalls = now, nowCalls
	}
	cost := scrapeCost{median(bpfCalls), median(systemCalls), median(allocations), median(bytes)}
	t.Logf("a scrape makes %.0f calls of bpf(2), %.0f system calls and %.0f allocations of %.0f bytes",
		cost.bpfCalls, cost.systemCalls, cost.allocations, cost.bytes)
	if cost.bpfCalls > most.bpfCalls || cost.systemCalls > most.systemCalls {
		t.Errorf("a scrape makes %.0f calls of bpf(2) and %.0f system calls, want at most %v and %v",
			cost.bpfCalls, cost.systemCalls, most.bpfCalls, most.systemCalls)
	}
	if cost.allocations > most.allocations || cost.bytes > most.bytes {
		t.Errorf("a scrape makes %.0f allocations of %.0f bytes, want at most %v of %v",
			cost.allocations, cost.bytes, most.allocations, most.bytes)
	}
}

func mebibytes(bytes uint64) float64 { return float64(bytes) / (1 << 20) }
