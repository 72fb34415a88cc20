// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package probe

import (
	"fmt"

	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

const (
	// faultLog10 is the evidence, as a power of ten, that answers depend on the class.
	faultLog10 = 4
	// mostLimited is the share of answers 429 and 503, and mostFailed that of requests without an
	// answer, that a verdict tolerates. With fewer failures than leastFailures it is not known
	// whether they depend on the class.
	mostLimited, mostFailed    = 0.01, 0.1
	leastFaults, leastFailures = 5, 20
	// mostLost is the share of marked requests that the exporter may miss.
	mostLost = 0.01
)

// fault is a reason for which no verdict may be given.
type fault struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// faults returns what is wrong with the answers.
func (s *standing) faults() (faults []fault) {
	add := func(name, format string, arguments ...any) {
		faults = append(faults, fault{name, fmt.Sprintf(format, arguments...)})
	}
	c := &s.counts
	sent := float64(c.sent())
	sum := func(n [2]uint64) float64 { return float64(n[leak.X] + n[leak.Y]) }
	if n := sum(c.Limited); n >= leastFaults && n > mostLimited*sent {
		add("rate limit", "the service limits the rate: %v of %v answers have the status 429 or 503; use a lower --rate, or exempt this host from the limit", n, sent)
	}
	if c.evidenceOfFailures() >= faultLog10 {
		add("resets", "the service leaves requests of one class without an answer more often (X %d of %d, Y %d of %d; the last error: %v): "+
			"this tells the class, so a verdict on timing is moot", c.Failed[leak.X], c.Sent[leak.X], c.Failed[leak.Y], c.Sent[leak.Y], s.last)
	} else if n := sum(c.Failed); n >= leastFailures && n > mostFailed*sent {
		add("failures", "%v of %v requests have no answer, the last because of: %v; mend the service or the path, or use a longer --timeout", n, sent, s.last)
	}
	if s.statuses >= faultLog10 {
		add("status", "the status of the answers depends on the class: this tells the class, so a verdict on timing is moot; use requests with the same answer")
	}
	if s.lengths >= faultLog10 {
		add("length", "the length of the answers depends on the class: this tells the class, so a verdict on timing is moot; use requests with answers of equal length")
	}
	return faults
}
