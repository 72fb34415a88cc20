// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import "github.com/prometheus/client_golang/prometheus"

var (
	trailRecordsDesc = newDesc("trail_records_total", "Total number of records written to the audit trail.")
	trailErrorsDesc  = newDesc("trail_write_errors_total", "Total number of records that could not be written to the audit trail.")
)

// Trail is an audit trail. Its methods must be safe for concurrent use.
type Trail interface {
	Records() uint64     // records written
	WriteErrors() uint64 // records lost because a write failed
}

type trailCollector struct {
	trail Trail
}

// newTrailCollector takes nil if no trail is written.
func newTrailCollector(trail Trail) trailCollector {
	return trailCollector{trail}
}

// Update sends the numbers of records, and nothing without a trail.
func (c trailCollector) Update(ch chan<- prometheus.Metric) error {
	if c.trail == nil {
		return nil
	}
	ch <- counter(trailRecordsDesc, float64(c.trail.Records()))
	ch <- counter(trailErrorsDesc, float64(c.trail.WriteErrors()))
	return nil
}
