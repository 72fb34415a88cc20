// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package probe

import (
	"errors"
	"maps"
	"math"
	"net/http"
	"sync"
	"time"

	"gonum.org/v1/gonum/mathext"

	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

// counts are the requests of each class.
type counts struct {
	Sent     [2]uint64 `json:"sent"`
	Answered [2]uint64 `json:"answered"`
	Failed   [2]uint64 `json:"failed"`  // without an answer
	Limited  [2]uint64 `json:"limited"` // answered 429 or 503
	Last     [2]uint64 `json:"last"`    // after which the service has ended the connection
	Unasked  uint64    `json:"unasked"` // answers too many
	// Statuses are the answers of each class by the status of HTTP.
	Statuses map[int][2]uint64 `json:"statuses,omitempty"`
}

func (c *counts) sent() uint64 { return c.Sent[leak.X] + c.Sent[leak.Y] }

// ledger judges requests in the order in which they were sent. It is safe for concurrent use.
type ledger struct {
	mu     sync.Mutex
	begin  time.Time
	open   []*entry // in the order of sending, from the oldest that has not ended
	counts counts
	last   error // of a request without an answer

	times             *leak.Judge
	lengths, statuses *leak.Judge // judge the answers themselves
}

// entry is a request.
type entry struct {
	request leak.Request
	hasEnd  bool
	answer  answer
	err     error
}

// newLedger returns a ledger without requests.
func newLedger(times leak.Config) (*ledger, error) {
	l := &ledger{begin: time.Now(), counts: counts{Statuses: map[int][2]uint64{}}}
	answers := times
	answers.TargetNs, answers.TickNs = 0, 0
	for judge, config := range map[**leak.Judge]leak.Config{
		&l.times: times, &l.lengths: answers, &l.statuses: answers,
	} {
		var err error
		if *judge, err = leak.New(config); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// sending notes a request that is sent now.
func (l *ledger) sending(class leak.Class, connection uint64, number uint32) *entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &entry{request: leak.Request{
		Class: class, TimeNs: uint64(time.Since(l.begin)), Connection: connection, Number: number,
	}}
	l.open = append(l.open, e)
	l.counts.Sent[class]++
	return e
}

// ended notes what became of a request, and judges all requests of which no earlier one is open.
func (l *ledger) ended(e *entry, a answer, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.answer, e.err, e.hasEnd = a, err, true
	for len(l.open) > 0 && l.open[0].hasEnd {
		l.judge(l.open[0])
		l.open[0] = nil
		l.open = l.open[1:]
	}
}

func (l *ledger) judge(e *entry) {
	c := e.request.Class
	if e.err == nil && e.answer.isLast {
		l.counts.Last[c]++
	}
	if status := e.answer.status; e.err == nil && status != 0 {
		n := l.counts.Statuses[status]
		n[c]++
		l.counts.Statuses[status] = n
	}
	switch {
	case e.err != nil:
		l.last = e.err
		l.counts.Failed[c]++
	case isLimit(e.answer.status):
		l.counts.Limited[c]++
	default:
		l.counts.Answered[c]++
		l.times.Response(e.request, uint64(e.answer.took))
		l.lengths.Response(e.request, e.answer.bytes)
		l.statuses.Response(e.request, uint64(e.answer.status))
		return
	}
	for _, judge := range []*leak.Judge{l.times, l.lengths, l.statuses} {
		judge.Exclude(e.request)
	}
}

// lost notes that a connection cannot be used any more, after an answer to a request of a class.
func (l *ledger) lost(class leak.Class, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if class < leak.Unknown {
		l.counts.Last[class]++
	}
	if errors.Is(err, errUnasked) {
		l.counts.Unasked++
	}
}

// isLimit reports whether a status of HTTP says that the service limits its load.
func isLimit(status int) bool {
	return status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable
}

// evidenceOfCoins returns the evidence that the numbers of two classes are not those of fair coins,
// as a power of ten. A connection and its block end with the first failure and with the last
// answer, so the classes of both are fair coins if they do not depend on the class.
func evidenceOfCoins(n [2]uint64) float64 {
	x, y := float64(n[leak.X]), float64(n[leak.Y])
	return (mathext.Lbeta(1+y, 1+x) + (x+y)*math.Ln2) / math.Ln10
}

// standing is what a ledger says so far.
type standing struct {
	counts            counts
	report            leak.Report
	lengths, statuses float64 // evidence of a difference between the classes, log10
	last              error
}

func (l *ledger) standing() standing {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.counts
	c.Statuses = maps.Clone(c.Statuses)
	return standing{
		counts: c, report: l.times.Report(), last: l.last,
		lengths: l.lengths.EvidenceLog10(), statuses: l.statuses.EvidenceLog10(),
	}
}
