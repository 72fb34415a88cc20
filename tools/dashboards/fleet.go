// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

const (
	ofCluster  = `job=~"$job",cluster=~"$cluster"`
	ofInstance = ofCluster + `,instance=~"$instance"`
	ofDevice   = ofInstance + `,device=~"$device"`

	byDevice    = "by (job, cluster, instance, device)"
	perDevice   = "{{instance}} {{device}}"
	perInstance = "{{instance}}"

	lost = `fate=~"ring_full|no_reader|reader_gap|other"`
)

// fleet is the dashboard with an overview of all exporters that a Prometheus scrapes.
func fleet() cog.Builder[dashboard.Dashboard] {
	b := newBoard(fleetUID, "XDP audit: fleet", "State, findings and losses of all audited devices. A device in a legend or in the table leads to its dashboard.")
	b.isOverview = true
	b.variable("instance", "Instance", `label_values(up{`+ofCluster+`}, instance)`, orMissing)
	b.variable("device", "Device", `label_values(xdp_audit_hook_up{`+ofInstance+`}, device)`, orMissing)
	b.Link(toDashboard("Device", deviceUID))

	b.row("State")
	b.number("Exporters down", "none", "Targets that do not answer; 1 if there is no target.", none(), false,
		query{`count(up{` + ofInstance + `} == 0) or absent(up{` + ofCluster + `}) or vector(0)`, ""})
	b.number("Devices without hook", "none", "Configured devices without a hook, and devices that match a glob but are not audited because all device slots are used. Only of exporters that answer.", none(), false,
		query{`(count(xdp_audit_hook_up{` + ofDevice + `} == 0) or vector(0)) + (sum(xdp_audit_devices_refused{` + ofInstance + `}) or vector(0))`, ""})
	b.number("Alerts", "none", "Firing alerts of deploy/rules/xdp_audit_alerts.yml, of all jobs and instances.", none(), false,
		query{`count(ALERTS{alertname=~"XDPAudit.+",alertstate="firing",cluster=~"$cluster"}) or vector(0)`, ""})
	b.number("Events lost", "none", "Flagged packets in 15 minutes whose event was lost: ring full, no reader, unread when its reader ended, or refused by the kernel.", none(), false,
		query{`sum(increase(xdp_audit_event_fates_total{` + ofDevice + `,` + lost + `}[15m]))`, ""})
	b.number("Packets", packetsPerSecond, "Packets that the audit sees.", plain(), false,
		query{`sum(rate(xdp_audit_packets_total{` + ofDevice + `}[$__rate_interval]))`, ""})
	b.number("Flagged", "percentunit", "Fraction of judged packets in 15 minutes whose |t| reached the threshold. The usual fraction depends on the kind of traffic.", plain(), false,
		query{`sum(instance_device:xdp_audit_flags:ratio_rate15m{` + ofDevice + `} * instance_device:xdp_audit_judged:rate15m{` + ofDevice + `}) / (sum(instance_device:xdp_audit_judged:rate15m{` + ofDevice + `}) > 0)`, ""})

	b.row("Packets and flags")
	b.graph(12, "Packets", packetsPerSecond, "Packets that the audit sees, by device.",
		query{`sum ` + byDevice + ` (rate(xdp_audit_packets_total{` + ofDevice + `}[$__rate_interval]))`, perDevice})
	b.graph(12, "Flagged packets", packetsPerSecond, "Packets whose |t| reached the threshold, by device.",
		query{`sum ` + byDevice + ` (rate(xdp_audit_leak_flags_total{` + ofDevice + `}[$__rate_interval]))`, perDevice})
	b.graph(12, "Share of flagged packets", "percentunit", "Fraction of judged packets in 15 minutes, by device.",
		query{`instance_device:xdp_audit_flags:ratio_rate15m{` + ofDevice + `}`, perDevice})
	b.graph(12, "Excess of flagged packets", "short", "Score against the past of the device. An alert fires at 6 (a burst), or after 15 minutes at 1 or more (a lasting excess).",
		query{`xdp_audit_flag_excess_score{` + ofDevice + `}`, perDevice})
	b.graph(12, "Flows with signs of a covert channel", "short", "Flows with alarms of another test than symbols in four consecutive windows, by device. The alert fires after five minutes at 1 or more. Empty without --collector.covert.",
		query{`xdp_audit_covert_alarming_flows{` + ofDevice + `}`, perDevice})
	b.graph(12, "Flagged packets that become events", "percentunit", "Fraction that a token of the flow entitles (--audit.calibrate), before the limit of the event rate.",
		query{`1 - sum ` + byDevice + ` (rate(xdp_audit_event_fates_total{` + ofDevice + `,fate="suppressed"}[$__rate_interval])) / (sum ` + byDevice + ` (rate(xdp_audit_event_fates_total{` + ofDevice + `}[$__rate_interval])) > 0)`, perDevice})

	b.graph(12, "Evidence of leaks", "short", "Decimal logarithm of the current e-value of each leak assessment, added up over all hosts: 5 or more is evidence as for an alpha of 1e-5. Empty without --leak.config.file. Not filtered by instance and device.",
		query{`job_assessment:xdp_audit_leak_evidence_current_log10:sum{` + ofCluster + `}`, "{{job}} {{assessment}}"})
	b.graph(12, "Leak verdicts", "none", "The verdict of each assessment is at 1. Alerts fire on leak and invalid.",
		query{`xdp_audit_leak_verdict{` + ofInstance + `} == 1`, "{{instance}} {{assessment}} {{verdict}}"})

	b.row("Timing")
	b.graph(12, "Mean delta", "s", "Mean time between two packets of a flow, in windows of 5 minutes.",
		query{`instance_device:xdp_audit_delta_seconds:mean5m{` + ofDevice + `}`, perDevice})
	b.graph(12, "Effect", "short", "Difference between the mean of the last 5 minutes and that of the hour before, in standard deviations (Cohen's d).",
		query{`instance_device:xdp_audit_delta_seconds:effect5m_1h{` + ofDevice + `}`, perDevice})
	b.graph(12, "Welch's t", "short", "Compares the last 5 minutes with the hour before. With many packets, t is large even for insignificant shifts: also check the effect.",
		query{`instance_device:xdp_audit_delta_seconds:tscore5m_1h{` + ofDevice + `}`, perDevice})
	b.graph(12, "Change of the fleet (z)", "short", "z for the null hypothesis that no device changed, each compared with its own past. Large if all devices shift a little, or if one shifts much. Investigate |z| of 5 or more that lasts. Not filtered by instance and device.",
		query{`job:xdp_audit_delta_octaves:zscore5m_1h{` + ofCluster + `}`, "{{job}} {{cluster}}, 5 minutes against the hour before"},
		query{`job:xdp_audit_delta_octaves:zscore1h_1d{` + ofCluster + `}`, "{{job}} {{cluster}}, hour against the day before"})

	b.row("Losses")
	b.graph(8, "Events lost", eventsPerSecond, "Flagged packets whose event was lost, by reason.",
		query{`sum by (job, cluster, instance, fate) (rate(xdp_audit_event_fates_total{` + ofDevice + `,` + lost + `}[$__rate_interval]))`, "{{instance}} {{fate}}"})
	b.graph(8, "Unparsed and untimed packets", "percentunit", "Fraction of packets that are not IP, damaged or of an unknown form, and fraction of the others that have no time (--audit.clock=metadata). Neither are scored. Alerts fire above 50 %, for unparsed packets if they are more than ten a second.",
		query{`sum ` + byDevice + ` (rate(xdp_audit_outcomes_total{` + ofDevice + `,outcome="unparsed"}[$__rate_interval])) / (sum ` + byDevice + ` (rate(xdp_audit_outcomes_total{` + ofDevice + `}[$__rate_interval])) > 0)`, perDevice + " unparsed"},
		query{`sum ` + byDevice + ` (rate(xdp_audit_outcomes_total{` + ofDevice + `,outcome="untimed"}[$__rate_interval])) / (sum ` + byDevice + ` (rate(xdp_audit_outcomes_total{` + ofDevice + `,outcome!~"unparsed|fragment"}[$__rate_interval])) > 0)`, perDevice + " untimed"})
	b.graph(8, "Received packets that the program sees", "percentunit", "Packets that the program sees, as a fraction of those that the kernel counts as received. Less than 1 in generic mode, which sees merged frames; 0 for a device that is audited in name only, for which an alert fires.",
		query{`sum ` + byDevice + ` (rate(xdp_audit_packets_total{` + ofDevice + `}[$__rate_interval])) / (sum ` + byDevice + ` (rate(xdp_audit_device_received_packets_total{` + ofDevice + `}[$__rate_interval])) > 0)`, perDevice})
	b.graph(8, "Contended packets", "percentunit", "Fraction of packets that were not judged because two CPUs used the same set of the flow table at once. The alert fires above 1 %.",
		query{`sum ` + byDevice + ` (rate(xdp_audit_outcomes_total{` + ofDevice + `,outcome="contended"}[$__rate_interval])) / (sum ` + byDevice + ` (rate(xdp_audit_outcomes_total{` + ofDevice + `,outcome!~"fragment|untimed|unparsed"}[$__rate_interval])) > 0)`, perDevice})
	b.graph(8, "Flow table", "percentunit", "Fraction of slots with a live or expired flow. A full table is normal, but live flows should not lose their slots (next panel).",
		query{`xdp_audit_flow_table_slots_used{` + ofInstance + `} / xdp_audit_flow_table_slots{` + ofInstance + `}`, perInstance})
	b.graph(8, "Live flows that lost their slot", "percentunit", "Fraction of new flows that took the slot of a live flow. The alert fires above 5 %.",
		query{`sum ` + byDevice + ` (rate(xdp_audit_flow_evictions_total{` + ofDevice + `,reason="live"}[$__rate_interval])) / (sum ` + byDevice + ` (rate(xdp_audit_flow_inserts_total{` + ofDevice + `}[$__rate_interval])) > 0)`, perDevice})
	b.graph(8, "CPU of the exporters", "percentunit", "Cores used by the exporter in user space: reading events, writing the trail, answering scrapes.",
		query{`rate(process_cpu_seconds_total{` + ofInstance + `}[$__rate_interval])`, perInstance})
	b.graph(8, "Memory of the exporters", "bytes", "Resident memory of the exporter, without the BPF maps, which are kernel memory.",
		query{`process_resident_memory_bytes{` + ofInstance + `}`, perInstance})

	b.row("Devices")
	b.list(24, "Hooks", "How the program is attached. A device without a hook has no mode. The name of a device leads to its dashboard.",
		query{`xdp_audit_hook_info{` + ofDevice + `} or on (job, cluster, instance, device) (xdp_audit_hook_up{` + ofDevice + `} == 0)`, ""})
	return b
}
