// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"encoding/json"
	"net/http"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/collector"
)

// leakPage is the content of leakPath. docs/leak-json.md describes it.
type leakPage struct {
	Assessments []leakState `json:"assessments"`
	// Discarded are requests of assessments that have been replaced. Disordered are requests that
	// a judge got too late, since too many waited.
	Discarded  uint64   `json:"discarded"`
	Disordered uint64   `json:"disordered"`
	Raw        *rawPage `json:"raw,omitempty"` // with raw files
}

// rawPage counts the lines of raw files.
type rawPage struct {
	Responses uint64 `json:"responses"`
	Bytes     uint64 `json:"bytes"`
	Lost      uint64 `json:"lost"`
}

// leakState is the state of an assessment.
type leakState struct {
	Name     string    `json:"name"`
	Device   string    `json:"device,omitempty"` // empty: every audited device
	Protocol string    `json:"protocol"`
	Port     uint16    `json:"port"`
	Classes  [2]string `json:"classes"` // as in the configuration

	Requests uint64            `json:"requests"` // that have ended
	Held     uint64            `json:"held"`     // that wait to be judged
	Excluded map[string]uint64 `json:"excluded"` // by reason
	// Report has what the judge says.
	Report collector.LeakReport `json:"report"`
}

// ServeHTTP writes the states of all assessments as JSON.
func (l *leakAssessments) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(l.page()) // all numbers of a report are finite
}

func (l *leakAssessments) page() *leakPage {
	counts := l.set.Counts()
	page := &leakPage{Assessments: []leakState{}, Discarded: counts.Discarded, Disordered: counts.Disordered}
	if l.raw != nil {
		c := l.raw.Counts()
		page.Raw = &rawPage{c.Lines(), c.Bytes(), c.Lost()}
	}
	states := l.Snapshot()
	for i := range states {
		s := &states[i]
		a := &s.Assessment
		state := leakState{
			Name: a.Name, Device: a.Device, Protocol: a.Protocol.String(), Port: a.Port,
			Classes:  [2]string{a.Classes[0].String(), a.Classes[1].String()},
			Requests: s.Received, Held: s.Held, Excluded: map[string]uint64{}, Report: s.Report,
		}
		for _, levels := range []*[]float64{&state.Report.Slower, &state.Report.Faster} {
			if *levels == nil {
				*levels = []float64{} // not null
			}
		}
		for reason := bpf.ExclusionNone + 1; reason < bpf.NumExclusions; reason++ {
			state.Excluded[reason.String()] = s.Excluded[reason]
		}
		page.Assessments = append(page.Assessments, state)
	}
	return page
}
