// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package trail writes the audit trail: one logfmt record for each event of a flagged packet,
// and for windows of inter-arrival times that look like a covert timing channel.
//
// Each record is appended with a single write. So no record waits in a buffer, and lines stay
// whole when several processes append to one file. The trail counts the records that could not
// be written.
package trail

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/go-kit/log"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/appendfile"
)

// Trail is an open audit trail. Its methods are safe for concurrent use.
type Trail struct {
	file   *appendfile.File
	counts appendfile.Counts
	logger log.Logger
}

// Open opens the trail at path for appending, and creates it with mode 0600. The path
// [appendfile.Stdout] is standard output.
func Open(path string) (*Trail, error) {
	t := &Trail{}
	file, err := appendfile.Open(path, appendfile.Options{Counts: &t.counts})
	if err != nil {
		return nil, fmt.Errorf("cannot open the audit trail: %w", err)
	}
	t.file, t.logger = file, log.NewLogfmtLogger(file)
	return t, nil
}

// Check returns the error with which Open would fail, and creates no file.
func Check(path string) error {
	if err := appendfile.Check(path); err != nil {
		return fmt.Errorf("cannot open the audit trail: %w", err)
	}
	return nil
}

// Write appends the record of one flagged packet. An error means that the record is lost, or is
// completed by the next write; the trail counts it and remains open.
func (t *Trail) Write(event *bpf.Event) error {
	return t.write(record(event))
}

func (t *Trail) write(keyvals []any) error {
	if err := t.logger.Log(keyvals...); err != nil {
		return fmt.Errorf("cannot write to the audit trail: %w", err)
	}
	return nil
}

// Records returns the number of records written.
func (t *Trail) Records() uint64 { return t.counts.Lines() }

// WriteErrors returns the number of records lost.
func (t *Trail) WriteErrors() uint64 { return t.counts.Lost() }

// Reopen opens the path of the trail again, which a rotation has given to another file. After
// an error the trail continues in the old file. Standard output stays open.
func (t *Trail) Reopen() error {
	if err := t.file.Reopen(); err != nil {
		return fmt.Errorf("cannot reopen the audit trail: %w", err)
	}
	return nil
}

// Close closes the file. It does not wait for a blocked write. Later records are lost.
func (t *Trail) Close() error {
	if err := t.file.Close(); err != nil {
		return fmt.Errorf("cannot close the audit trail: %w", err)
	}
	return nil
}

// timeFormat is RFC 3339 with all nine digits, so that records align and sort.
const timeFormat = "2006-01-02T15:04:05.000000000Z07:00"

// record returns the keys and values of one record: the measurement, the baseline that the
// packet was scored against, and the endpoints of the flow.
func record(event *bpf.Event) []any {
	direction := "early"
	if event.Late {
		direction = "late"
	}
	keyvals := []any{
		"time", event.Time.UTC().Format(timeFormat),
		"device", event.Device,
		"direction", direction,
		"tscore", decimal(event.Score()),
		"delta_ns", event.DeltaNs,
		"mean_ns", decimal(event.MeanNs()),
	}
	if event.Domain == bpf.DomainLog2 {
		keyvals = append(keyvals, "stddev_octaves", strconv.FormatFloat(event.StandardDeviation(), 'g', 7, 64))
	} else {
		keyvals = append(keyvals, "stddev_ns", decimal(event.StandardDeviation()))
	}
	keyvals = append(keyvals, "n", event.Samples)
	keyvals = append(keyvals, endpoints(event.Source, event.Destination, event.Protocol, event.ProtocolNumber, event.VLAN)...)
	return append(keyvals, "length", event.LenBytes)
}

// endpoints returns the keys and values of the endpoints of a flow. A transport protocol
// without a name in this program is given by its number.
func endpoints(source, destination netip.AddrPort, protocol bpf.Protocol, number uint8, vlan uint16) []any {
	name := protocol.String()
	if protocol == bpf.ProtocolOther {
		name = strconv.Itoa(int(number))
	}
	keyvals := []any{
		"source", source.Addr().String(),
		"source_port", source.Port(),
		"destination", destination.Addr().String(),
		"destination_port", destination.Port(),
		"protocol", name,
	}
	if vlan != 0 {
		keyvals = append(keyvals, "vlan", vlan)
	}
	return keyvals
}

// decimal formats a number with three decimal places.
func decimal(v float64) string {
	return strconv.FormatFloat(v, 'f', 3, 64)
}
