// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package trail

import (
	"math"
	"strings"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
)

// WriteCovert appends a record of a window with an alarm. The field "covert", which no other
// record has, names the tests for covert timing channels that alarmed. An error means that the
// record is lost; the trail counts it.
func (t *Trail) WriteCovert(window *bpf.Window, verdict *covert.Verdict) error {
	return t.write(covertRecord(window, verdict))
}

// covertRecord returns the keys and values of a record: the tests that alarmed, what has such
// signs, the scores of all tests that could judge the window, and the endpoints of the flow.
func covertRecord(window *bpf.Window, verdict *covert.Verdict) []any {
	names := make([]string, len(verdict.Tests))
	for i, test := range verdict.Tests {
		names[i] = test.String()
	}
	keyvals := []any{
		"time", window.Time.UTC().Format(timeFormat),
		"device", window.Device,
		"covert", strings.Join(names, ","),
		"meaning", verdict.Meaning(),
	}
	for test, score := range verdict.Scores {
		if !math.IsNaN(score) {
			keyvals = append(keyvals, covert.Test(test).String(), decimal(score))
		}
	}
	keyvals = append(keyvals, "deltas", len(window.DeltasNs), "earlier_windows", verdict.Earlier, "alarms", verdict.Alarms)
	return append(keyvals, endpoints(window.Source, window.Destination, window.Protocol, window.ProtocolNumber, window.VLAN)...)
}
