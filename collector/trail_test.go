// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import "testing"

type fakeTrail struct{ records, errors uint64 }

func (f fakeTrail) Records() uint64     { return f.records }
func (f fakeTrail) WriteErrors() uint64 { return f.errors }

func TestTrail(t *testing.T) {
	expect(t, newTrailCollector(nil), "")
	expect(t, newTrailCollector(fakeTrail{7, 2}), `
# HELP xdp_audit_trail_records_total Total number of records written to the audit trail.
# TYPE xdp_audit_trail_records_total counter
xdp_audit_trail_records_total 7
# HELP xdp_audit_trail_write_errors_total Total number of records that could not be written to the audit trail.
# TYPE xdp_audit_trail_write_errors_total counter
xdp_audit_trail_write_errors_total 2
`)
}
