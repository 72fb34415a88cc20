// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

const (
	// clockSlack is the tolerance between the time of a record and that of sending. Both are read
	// from the same clock, which may be adjusted between two readings.
	clockSlack = 300 * time.Microsecond

	// forgetAfter is the time within which a record must arrive.
	forgetAfter = 10 * time.Second

	// shownRecords is the number of records that the report quotes.
	shownRecords = 3
)

// tally compares sent packets with flagged packets. Its methods are safe for concurrent use.
type tally struct {
	mu      sync.Mutex
	begin   time.Time
	packets int
	planted int
	found   int // planted packets that were flagged
	others  int // flags of packets that were not planted
	open    []plant
	shown   []string // records of planted packets for the next report
	quoted  int
}

// plant is a packet that was sent late on purpose and has no record yet. The program runs between
// before and after.
type plant struct {
	before, after time.Time
}

func newTally() *tally { return &tally{begin: time.Now()} }

// sent counts a packet that was sent between two times.
func (t *tally) sent(isPlanted bool, before, after time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.packets++
	if !isPlanted {
		return
	}
	t.planted++
	for len(t.open) > 0 && before.Sub(t.open[0].before) > forgetAfter {
		t.open = t.open[1:]
	}
	t.open = append(t.open, plant{before, after})
}

// record counts a line of the trail. It belongs to a planted packet if it reports a late packet at
// the time at which the planted packet was sent.
func (t *tally) record(line string) {
	at, err := time.Parse(time.RFC3339Nano, value(line, "time"))
	if err != nil {
		return // not a record
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, p := range t.open {
		if value(line, "direction") != "late" || at.Before(p.before.Add(-clockSlack)) || at.After(p.after.Add(clockSlack)) {
			continue
		}
		t.open = append(t.open[:i], t.open[i+1:]...)
		t.found++
		if t.quoted < shownRecords {
			t.quoted++
			t.shown = append(t.shown, line)
		}
		return
	}
	t.others++
}

// records returns the number of records so far.
func (t *tally) records() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.found + t.others
}

// report returns a few lines about the packets so far.
func (t *tally) report(s series) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%4.0f s  sent %d   sent late %d   of them flagged %d   other flags %d\n",
		time.Since(t.begin).Seconds(), t.packets, t.planted, t.found, t.others)
	fmt.Fprintf(&b, "        xdp_audit_events_total %.0f   xdp_audit_leak_flags_total %.0f   xdp_audit_last_tscore %.2f\n",
		s.events, s.flags, s.lastScore)
	for _, record := range t.shown {
		fmt.Fprintf(&b, "        late by %v: %s\n", lateness, record)
	}
	t.shown = nil
	return b.String()
}

// summary returns the last lines of output.
func (t *tally) summary(s series) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return fmt.Sprintf(`
In %.0f seconds %d packets were sent, %d of them late on purpose, of which %d were flagged. Others flagged: %d.
xdp_audit_events_total %.0f   xdp_audit_leak_flags_total %.0f   xdp_audit_last_tscore %.2f
`, time.Since(t.begin).Seconds(), t.packets, t.planted, t.found, t.others, s.events, s.flags, s.lastScore)
}

// value returns the value of a key in a line of logfmt whose values have no spaces.
func value(line, key string) string {
	for field := range strings.FieldsSeq(line) {
		if k, v, _ := strings.Cut(field, "="); k == key {
			return v
		}
	}
	return ""
}
