// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

var (
	packetsDesc  = newDesc("packets_total", "Total number of packets received by the audit.", "device", "family", "protocol")
	bytesDesc    = newDesc("bytes_total", "Total length of the received frames in bytes.", "device", "family", "protocol")
	outcomesDesc = newDesc("outcomes_total", "Total number of packets by their outcome in the audit.", "device", "outcome")
)

var (
	familyLabels   = labelsOf("family", bpf.NumFamilies)
	protocolLabels = labelsOf("protocol", bpf.NumProtocols)
	outcomeLabels  = labelsOf("outcome", bpf.NumOutcomes)
)

type packetsSource interface {
	Counters() []bpf.Counters
}

type packetsCollector struct {
	source packetsSource
}

func newPacketsCollector(source packetsSource) packetsCollector {
	return packetsCollector{source}
}

// Update sends packets and bytes by family and protocol, and packets by outcome.
func (c packetsCollector) Update(ch chan<- prometheus.Metric) error {
	counters := c.source.Counters()
	for i := range counters {
		device, packets, bytes := deviceLabel(counters[i].Device), &counters[i].Packets, &counters[i].Bytes
		for family := range bpf.NumFamilies {
			for protocol := range bpf.NumProtocols {
				n := packets.Protocol(family, protocol)
				if family == bpf.FamilyOther && protocol != bpf.ProtocolOther && n == 0 {
					continue // a packet without IP has no transport protocol
				}
				ch <- counter(packetsDesc, float64(n), device, familyLabels[family], protocolLabels[protocol])
				ch <- counter(bytesDesc, float64(bytes[family][protocol]), device, familyLabels[family], protocolLabels[protocol])
			}
		}
		for outcome := range bpf.NumOutcomes {
			ch <- counter(outcomesDesc, float64(packets.Outcome(outcome)), device, outcomeLabels[outcome])
		}
	}
	return nil
}
