// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/excess"
)

// counted returns the counters of a device with that many scored packets, of which so many are
// flagged, half of them early.
func counted(device string, judged, flags uint64) bpf.Counters {
	return counters(device, func(c *bpf.Counters) {
		c.Packets[bpf.FamilyIPv4][bpf.ProtocolUDP][bpf.OutcomeJudged] = judged - flags
		c.Packets[bpf.FamilyIPv4][bpf.ProtocolTCP][bpf.OutcomeFlaggedEarly] = flags / 2
		c.Packets[bpf.FamilyIPv6][bpf.ProtocolUDP][bpf.OutcomeFlaggedLate] = flags - flags/2
		c.Packets[bpf.FamilyIPv4][bpf.ProtocolUDP][bpf.OutcomeMinSamples] = 1000
	})
}

// scoreOf is the score of a device in a scrape; -1 without a series.
func scoreOf(t *testing.T, e *Excess, device string) float64 {
	t.Helper()
	source := &fakeSource{counters: []bpf.Counters{{Device: device}}}
	set := newSet(t, source, Options{Collectors: []string{"flags"}, Excess: e})
	families, err := gatherer(t, set).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == "xdp_audit_flag_excess_score" {
			return family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	return -1
}

// excessDevice is a device that flags four of 60,000 packets in each minute.
type excessDevice struct {
	e             *Excess
	judged, flags uint64
}

func (d *excessDevice) addMinute(flags uint64) {
	d.judged += 60_000
	d.flags += flags
	d.e.addMinute([]bpf.Counters{counted("eth0", d.judged, d.flags)})
}

func (d *excessDevice) learn() {
	for range excess.MinMinutes + 1 {
		d.addMinute(4)
	}
}

func TestExcess(t *testing.T) {
	if got := scoreOf(t, nil, "eth0"); got != -1 {
		t.Errorf("without an Excess the score is %v", got)
	}
	if got := scoreOf(t, NewExcess(nil), "eth0"); got != 0 {
		t.Errorf("before the first minute the score is %v", got)
	}
	for _, test := range []struct {
		description string
		first       uint64 // flags before the first minute
		then        func(d *excessDevice)
		isExcess    bool
	}{
		{"usual flags", 0, func(d *excessDevice) { d.addMinute(4) }, false},
		{"50,000 flags in a minute", 0, func(d *excessDevice) { d.addMinute(50_000) }, true},
		{"the flags from before the start of the exporter, in pinned counters", 1 << 40, func(d *excessDevice) { d.addMinute(4) }, false},
		{"another exporter continues the counters after a burst", 0, func(d *excessDevice) {
			d.addMinute(50_000)
			d.e = NewExcess(nil)
			d.addMinute(4)
			d.addMinute(4)
		}, false},
		{"counters that begin at zero again, with 50,000 flags", 1 << 40, func(d *excessDevice) {
			d.judged, d.flags = 0, 0
			d.addMinute(50_000)
			d.addMinute(50_000)
		}, false},
		{"counters that begin at zero again and have more packets than before, but fewer flags", 1 << 40, func(d *excessDevice) {
			d.judged, d.flags = 2*d.judged, 0
			d.addMinute(4)
		}, false},
		{"a device that comes back after a minute", 0, func(d *excessDevice) {
			d.e.addMinute(nil)
			d.addMinute(50_000)
			d.addMinute(50_000)
		}, false},
		{"minutes without packets and then usual flags", 0, func(d *excessDevice) {
			for range 5 {
				d.e.addMinute([]bpf.Counters{counted("eth0", d.judged, d.flags)})
			}
			d.addMinute(4)
		}, false},
	} {
		t.Run(test.description, func(t *testing.T) {
			d := &excessDevice{e: NewExcess(nil), judged: 2 * test.first, flags: test.first}
			d.learn()
			test.then(d)
			got := scoreOf(t, d.e, "eth0")
			if isExcess := got >= 6; isExcess != test.isExcess || !isExcess && got >= 1 {
				t.Errorf("the score is %v", got)
			}
			if again := scoreOf(t, d.e, "eth0"); again != got {
				t.Errorf("a second scrape has the score %v, the first %v", again, got)
			}
		})
	}
}

// An exporter with the past of an earlier one judges from its first minute on. A device that is
// attached again, or appears later, begins with that past, too.
func TestSavedPast(t *testing.T) {
	learnt := &excessDevice{e: NewExcess(nil)}
	learnt.learn()
	pasts := learnt.e.Pasts()
	for _, test := range []struct {
		description string
		saved       map[string]FlagsPast
		then        func(d *excessDevice)
		isExcess    bool
	}{
		{"a burst in the first minute", pasts, func(d *excessDevice) { d.addMinute(50_000) }, true},
		{"usual flags in the first minute", pasts, func(d *excessDevice) { d.addMinute(4) }, false},
		{"a burst without a past", nil, func(d *excessDevice) { d.addMinute(50_000) }, false},
		{"a burst after the past of another device", map[string]FlagsPast{"eth1": pasts["eth0"]}, func(d *excessDevice) { d.addMinute(50_000) }, false},
		{"a burst of a device that was attached again", pasts, func(d *excessDevice) {
			d.addMinute(4)
			d.judged, d.flags = 0, 0
			d.e.addMinute([]bpf.Counters{counted("eth0", 0, 0)})
			d.addMinute(50_000)
		}, true},
	} {
		t.Run(test.description, func(t *testing.T) {
			d := &excessDevice{e: NewExcess(test.saved)}
			d.e.addMinute([]bpf.Counters{counted("eth0", 0, 0)}) // of the start
			test.then(d)
			if got := scoreOf(t, d.e, "eth0"); (got >= 6) != test.isExcess || !test.isExcess && got >= 1 {
				t.Errorf("the score is %v", got)
			}
		})
	}
}

func TestExcessScore(t *testing.T) {
	source := &fakeSource{counters: []bpf.Counters{{Device: "eth0"}}}
	set := newSet(t, source, Options{Collectors: []string{"flags"}, Excess: NewExcess(nil)})
	err := testutil.GatherAndCompare(gatherer(t, set), strings.NewReader(`
# HELP xdp_audit_flag_excess_score Score of the excess of flagged packets over the past of the device; 1 or more is an excess; 0 while the past is shorter than six hours.
# TYPE xdp_audit_flag_excess_score gauge
xdp_audit_flag_excess_score{device="eth0"} 0
`), "xdp_audit_flag_excess_score")
	if err != nil {
		t.Error(err)
	}
}

// Run reads at once and then once a minute, whatever the scrapes.
func TestExcessReadsOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &countingSource{}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute+time.Second)
		defer cancel()
		e := NewExcess(nil)
		var scrapes sync.WaitGroup
		scrapes.Go(func() {
			for ctx.Err() == nil {
				scoreOf(t, e, "eth0")
				time.Sleep(7 * time.Second)
			}
		})
		if err := e.Run(ctx, source); err != nil {
			t.Error(err)
		}
		scrapes.Wait()
		if source.reads != 11 {
			t.Errorf("%d reads in ten minutes, want 11", source.reads)
		}
	})
}
