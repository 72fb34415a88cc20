// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// device is all that is known of one device.
func device() cog.Builder[dashboard.Dashboard] {
	b := newBoard("xdp-audit-device", "XDP audit: device", "One audited device: its packets, their timing, flags, losses, and the cost of the audit.")
	b.variable("instance", "Instance", `label_values(up{job="xdp_audit"}, instance)`, false)
	b.variable("device", "Device", `label_values(xdp_audit_hook_up{instance=~"$instance"}, device)`, false)

	b.row("State")
	b.number("Hook", "none", "1 if the kernel runs the program on the device.", []step{{color: "red"}, {1, "green"}}, false,
		query{`xdp_audit_hook_up{` + ofDevice + `}`, ""})
	b.number("Attached as", "none", "Mode, driver and clock of the hook.", plain(), true,
		query{`xdp_audit_hook_info{` + ofDevice + `}`, "{{mode}} {{driver}} {{clock}}"})
	b.number("Packets", "pps", "Packets that the audit sees.", plain(), false,
		query{`sum(rate(xdp_audit_packets_total{` + ofDevice + `}[$__rate_interval]))`, ""})
	b.number("Flagged", "percentunit", "Share of the judged packets of 15 minutes whose |t| reached the threshold.", plain(), false,
		query{`instance_device:xdp_audit_flags:ratio_rate15m{` + ofDevice + `}`, ""})
	b.number("Last |t|", "short", "Score of the last flagged packet; 0 before any.", plain(), false,
		query{`xdp_audit_last_tscore{` + ofDevice + `}`, ""})
	b.number("Last flag", "s", "Time since the last flagged packet.", plain(), false,
		query{`time() - (xdp_audit_last_flag_timestamp_seconds{` + ofDevice + `} > 0)`, ""})

	b.row("Packets")
	b.graph(8, "Packets by protocol", "pps", "Packets that the audit sees.",
		query{`sum by (family, protocol) (rate(xdp_audit_packets_total{` + ofDevice + `}[$__rate_interval])) > 0`, "{{family}} {{protocol}}"})
	b.graph(8, "Bytes by protocol", "Bps", "Their frames, without checksum.",
		query{`sum by (family, protocol) (rate(xdp_audit_bytes_total{` + ofDevice + `}[$__rate_interval])) > 0`, "{{family}} {{protocol}}"})
	b.graph(8, "Outcomes", "pps", "What became of each packet: docs/metrics.md says what they mean.",
		query{`sum by (outcome) (rate(xdp_audit_outcomes_total{` + ofDevice + `}[$__rate_interval])) > 0`, "{{outcome}}"})

	b.row("Timing")
	b.heat(24, "Deltas", "s", "Times between two packets of a flow. From the native histogram: Prometheus must store those (deploy/prometheus/host.yml says how).",
		query{`sum(increase(xdp_audit_delta_seconds{` + ofDevice + `}[$__rate_interval]))`, ""})
	b.graph(8, "Quantiles of deltas", "s", "From the native histogram, whose buckets are 9 % wide.",
		query{`histogram_quantile(0.5, sum(rate(xdp_audit_delta_seconds{` + ofDevice + `}[$__rate_interval])))`, "50 %"},
		query{`histogram_quantile(0.9, sum(rate(xdp_audit_delta_seconds{` + ofDevice + `}[$__rate_interval])))`, "90 %"},
		query{`histogram_quantile(0.99, sum(rate(xdp_audit_delta_seconds{` + ofDevice + `}[$__rate_interval])))`, "99 %"})
	b.graph(8, "Mean and standard deviation", "s", "Exact, in windows of 5 minutes and an hour.",
		query{`instance_device:xdp_audit_delta_seconds:mean5m{` + ofDevice + `}`, "mean, 5 minutes"},
		query{`instance_device:xdp_audit_delta_seconds:stddev5m{` + ofDevice + `}`, "deviation, 5 minutes"},
		query{`instance_device:xdp_audit_delta_seconds:mean1h{` + ofDevice + `}`, "mean, hour"},
		query{`instance_device:xdp_audit_delta_seconds:stddev1h{` + ofDevice + `}`, "deviation, hour"})
	b.graph(8, "Coefficient of variation", "percentunit", "Standard deviation over mean.",
		query{`instance_device:xdp_audit_delta_seconds:cv5m{` + ofDevice + `}`, "5 minutes"},
		query{`instance_device:xdp_audit_delta_seconds:cv1h{` + ofDevice + `}`, "hour"})
	b.graph(8, "Welch's t", "short", "Of a window against the longer one before it. With many packets it is large for shifts that do not matter: look at effect and n too.",
		query{`instance_device:xdp_audit_delta_seconds:tscore5m_1h{` + ofDevice + `}`, "5 minutes against the hour before"},
		query{`instance_device:xdp_audit_delta_seconds:tscore1h_1d{` + ofDevice + `}`, "hour against the day before"})
	b.graph(8, "Effect", "short", "The same difference in standard deviations (Cohen's d).",
		query{`instance_device:xdp_audit_delta_seconds:effect5m_1h{` + ofDevice + `}`, "5 minutes against the hour before"},
		query{`instance_device:xdp_audit_delta_seconds:effect1h_1d{` + ofDevice + `}`, "hour against the day before"})
	b.graph(8, "Deltas in the windows", "short", "n of the figures beside.",
		query{`instance_device:xdp_audit_deltas:increase5m{` + ofDevice + `}`, "5 minutes"},
		query{`instance_device:xdp_audit_deltas:increase1h{` + ofDevice + `}`, "hour"})

	b.row("Flags")
	b.graph(8, "Flagged packets by direction", "pps", "Earlier or later than their flow's mean, by at least the threshold.",
		query{`sum by (direction) (rate(xdp_audit_leak_flags_total{` + ofDevice + `}[$__rate_interval]))`, "{{direction}}"})
	b.graph(8, "Share of flagged packets", "percentunit", "Of the judged packets of 15 minutes, and three times the device's own mean of the day before, where the alert begins.",
		query{`instance_device:xdp_audit_flags:ratio_rate15m{` + ofDevice + `}`, "now"},
		query{`3 * avg_over_time(instance_device:xdp_audit_flags:ratio_rate15m{` + ofDevice + `}[1d] offset 30m)`, "alert"})
	b.graph(8, "Score of the last flag", "short", "|t| of the last flagged packet at each scrape.",
		query{`xdp_audit_last_tscore{` + ofDevice + `}`, "|t|"})
	b.graph(12, "Delta of the last flag", "s", "Time between the last flagged packet and its predecessor.",
		query{`xdp_audit_last_delta_seconds{` + ofDevice + `}`, "delta"})
	b.graph(12, "Length of the last flag", "bytes", "Length of the last flagged frame.",
		query{`xdp_audit_last_packet_bytes{` + ofDevice + `}`, "length"})

	b.row("Calibration")
	b.graph(8, "Score that makes an event", "short", "|t| from which on a flagged packet becomes an event, on the CPU where it is highest. Without a value where no packet is rare enough. Empty with --audit.calibrate=0.",
		query{`xdp_audit_calibration_event_tscore{` + ofDevice + `} < Inf`, "{{direction}}"})
	b.graph(8, "Flagged packets that become events", "percentunit", "Share that is rare enough for the device, whatever the event rate then lets through.",
		query{`1 - sum(rate(xdp_audit_event_fates_total{` + ofDevice + `,fate="suppressed"}[$__rate_interval])) / (sum(rate(xdp_audit_event_fates_total{` + ofDevice + `}[$__rate_interval])) > 0)`, "rare"})
	b.graph(8, "CPUs that learn", "short", "CPUs that have judged too few packets of the device to tell what is rare, so that every flag may become an event there.",
		query{`xdp_audit_calibration_learning_cpus{` + ofDevice + `}`, "learning"})

	b.row("Covert timing channels")
	b.graph(12, "Scores of windows", "short", "Highest score of each test among the flows with a window in ten minutes; 1 and more is an alarm. Empty without --collector.covert.",
		query{`xdp_audit_covert_score{` + ofDevice + `}`, "{{test}}"})
	b.graph(12, "Flows that alarm in each window", "short", "Flows of which each of the last four windows alarmed. The alert fires from 1 on.",
		query{`xdp_audit_covert_alarming_flows{` + ofDevice + `}`, "flows"})
	b.graph(12, "Windows that alarm", "percentunit", "Share of the windows of an hour of which a test alarmed. Up to 2 % is chance.",
		query{`increase(xdp_audit_covert_alarmed_windows_total{` + ofDevice + `}[1h]) / (increase(xdp_audit_covert_windows_total{` + ofDevice + `}[1h]) > 0)`, "alarmed"})
	b.graph(12, "Alarms by test", "short", "Windows of an hour of which the test alarmed; a window may be in several.",
		query{`increase(xdp_audit_covert_alarms_total{` + ofDevice + `}[1h])`, "{{test}}"})

	b.row("Losses")
	b.graph(8, "Fates of events", "pps", "What became of the event of each flagged packet. rate_limit and suppressed are as configured; ring_full, no_reader, reader_gap and other are losses.",
		query{`sum by (fate) (rate(xdp_audit_event_fates_total{` + ofDevice + `}[$__rate_interval]))`, "{{fate}}"})
	b.graph(8, "Events", "pps", "Events that were sent, received, and by all of the exporter lost or unreadable.",
		query{`rate(xdp_audit_event_fates_total{` + ofDevice + `,fate="sent"}[$__rate_interval])`, "sent"},
		query{`rate(xdp_audit_events_total{` + ofDevice + `}[$__rate_interval])`, "received"},
		query{`rate(xdp_audit_event_records_lost_total{` + ofInstance + `}[$__rate_interval])`, "lost in a ring"},
		query{`rate(xdp_audit_event_records_malformed_total{` + ofInstance + `}[$__rate_interval])`, "malformed"})
	b.graph(8, "Audit trail", "pps", "Records of the exporter, all devices. Empty without --trail.file.",
		query{`rate(xdp_audit_trail_records_total{` + ofInstance + `}[$__rate_interval])`, "written"},
		query{`rate(xdp_audit_trail_write_errors_total{` + ofInstance + `}[$__rate_interval])`, "not written"})
	b.graph(8, "Contended packets", "percentunit", "Share of the packets that were not judged because two CPUs met in the flow table.",
		query{`sum(rate(xdp_audit_outcomes_total{` + ofDevice + `,outcome="contended"}[$__rate_interval])) / (sum(rate(xdp_audit_outcomes_total{` + ofDevice + `,outcome!~"fragment|untimed|unparsed"}[$__rate_interval])) > 0)`, "contended"})
	b.graph(8, "Flows", "pps", "New flows of the device, and those that lost their slot to one.",
		query{`rate(xdp_audit_flow_inserts_total{` + ofDevice + `}[$__rate_interval])`, "new"},
		query{`rate(xdp_audit_flow_evictions_total{` + ofDevice + `}[$__rate_interval])`, "{{reason}} replaced"})
	b.graph(8, "Flow table", "short", "Slots of the table that all devices of the exporter share.",
		query{`xdp_audit_flow_table_slots_used{` + ofInstance + `}`, "used"},
		query{`xdp_audit_flow_table_slots{` + ofInstance + `}`, "slots"})

	b.row("Cost")
	b.graph(8, "Program, per run", "s", "Time of the kernel in the program for a packet. Only while kernel.bpf_stats_enabled is 1, which itself costs every BPF program of the host.",
		query{`rate(xdp_audit_program_run_seconds_total{` + ofDevice + `}[$__rate_interval]) / (rate(xdp_audit_program_runs_total{` + ofDevice + `}[$__rate_interval]) > 0)`, "per run"})
	b.graph(8, "Program, cores", "percentunit", "Cores that the program takes. Only while kernel.bpf_stats_enabled is 1.",
		query{`rate(xdp_audit_program_run_seconds_total{` + ofDevice + `}[$__rate_interval])`, "cores"})
	b.graph(8, "Scrape by collector", "s", "Time of each collector in the last scrape.",
		query{`xdp_audit_scrape_collector_duration_seconds{` + ofInstance + `}`, "{{collector}}"})
	b.graph(12, "CPU of the exporter", "percentunit", "Cores that the exporter uses in user space.",
		query{`rate(process_cpu_seconds_total{job="xdp_audit",` + ofInstance + `}[$__rate_interval])`, "cores"})
	b.graph(12, "Memory of the exporter", "bytes", "Resident memory. The maps are the kernel's and come on top.",
		query{`process_resident_memory_bytes{job="xdp_audit",` + ofInstance + `}`, "resident"})
	return b
}
