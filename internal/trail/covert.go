// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package trail

import (
	"math"
	"strings"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
)

// WriteCovert appends the record of a window of deltas of which tests for covert timing channels alarmed. It has their names
// in the field covert, which no other record has. An error means that the record is lost, and is counted.
func (t *Trail) WriteCovert(window *bpf.Window, verdict *covert.Verdict) error {
	return t.write(covertRecord(window, verdict))
}

// covertRecord returns the keys and values of a record: whose scores reached 1, the scores of all tests that could judge, and
// whose packets the deltas were between.
func covertRecord(window *bpf.Window, verdict *covert.Verdict) []any {
	names := make([]string, len(verdict.Tests))
	for i, test := range verdict.Tests {
		names[i] = test.String()
	}
	keyvals := []any{
		"time", window.Time.UTC().Format(timeFormat),
		"device", window.Device,
		"covert", strings.Join(names, ","),
	}
	for test, score := range verdict.Scores {
		if !math.IsNaN(score) {
			keyvals = append(keyvals, covert.Test(test).String(), decimal(score))
		}
	}
	keyvals = append(keyvals, "deltas", len(window.DeltasNs), "earlier_windows", verdict.Earlier, "alarms", verdict.Alarms)
	return append(keyvals, endpoints(window.Source, window.Destination, window.Protocol, window.ProtocolNumber, window.VLAN)...)
}
