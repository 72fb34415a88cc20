// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package probe

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

const (
	// faultLog10 is the evidence, as a power of ten, that answers depend on the class.
	faultLog10 = 4
	// mostLimited is the share of answers 429 and 503, and mostFailed that of requests without an
	// answer, that a verdict tolerates. With fewer failures than leastFailures it is not known
	// whether they depend on the class.
	// The share mostLimited is that of superfluous answers, too.
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
	if evidenceOfCoins(c.Failed) >= faultLog10 {
		add("resets", "the service leaves requests of one class without an answer more often (X %d of %d, Y %d of %d; the last error: %v): "+
			"this tells the class, so a verdict on timing is moot", c.Failed[leak.X], c.Sent[leak.X], c.Failed[leak.Y], c.Sent[leak.Y], s.last)
	} else if n := sum(c.Failed); n >= leastFailures && n > mostFailed*sent {
		add("failures", "%v of %v requests have no answer, the last because of: %v; mend the service or the path, or use a longer --timeout", n, sent, s.last)
	}
	if evidenceOfCoins(c.Last) >= faultLog10 {
		add("resets", "the service ends the connection after requests of one class more often (X %d of %d, Y %d of %d): this tells the class, "+
			"so a verdict on timing is moot", c.Last[leak.X], c.Sent[leak.X], c.Last[leak.Y], c.Sent[leak.Y])
	}
	if n := float64(c.Unasked); n >= leastFaults && n > mostLimited*sent {
		add("answers", "%v, %v times: %s", errUnasked, n, remedies[errUnasked])
	}
	if s.statuses >= faultLog10 {
		add("status", "the status of the answers depends on the class (%s): this tells the class, so a verdict on timing is moot; use requests with the same answer", c.statuses())
	}
	if s.lengths >= faultLog10 {
		add("length", "the length of the answers depends on the class: this tells the class, so a verdict on timing is moot; use requests with answers of equal length")
	}
	return faults
}

// statuses lists the numbers of answers of both classes by status.
func (c *counts) statuses() string {
	var list []string
	for _, status := range slices.Sorted(maps.Keys(c.Statuses)) {
		n := c.Statuses[status]
		list = append(list, fmt.Sprintf("%d: X %d, Y %d", status, n[leak.X], n[leak.Y]))
	}
	return strings.Join(list, "; ")
}

// isRefusal reports whether a status says that the service has not looked at what the request asks.
func isRefusal(status int) bool {
	switch status {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusRequestEntityTooLarge,
		http.StatusUnsupportedMediaType, http.StatusRequestHeaderFieldsTooLarge:
		return true
	}
	return status >= http.StatusInternalServerError
}

// refused returns a note if most answers are refusals.
func (c *counts) refused() (notes []string) {
	for _, status := range slices.Sorted(maps.Keys(c.Statuses)) {
		n := c.Statuses[status]
		if of := n[leak.X] + n[leak.Y]; isRefusal(status) && 2*of > c.sent() {
			notes = append(notes, fmt.Sprintf("%d of %d answers have the status %d (%s): see that the service understands the requests.",
				of, c.sent(), status, http.StatusText(status)))
		}
	}
	return notes
}
