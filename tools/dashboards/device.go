// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// device is the dashboard with all metrics of one device.
func device() cog.Builder[dashboard.Dashboard] {
	b := newBoard(deviceUID, "XDP audit: device", "Packets, timing, flags, losses and cost of the audit of one device.")
	b.variable("instance", "Instance", `label_values(up{`+ofCluster+`}, instance)`, oneOf)
	b.variable("device", "Device", `label_values(xdp_audit_hook_up{`+ofInstance+`}, device)`, oneOf)
	b.WithVariable(dashboard.NewDatasourceVariableBuilder("loki").Label("Loki").Type("loki"))
	b.Link(toDashboard("Fleet", fleetUID))

	b.row("State")
	b.number("Hook", "none", "1 if the kernel runs the program on the device.", []step{{color: "red"}, {1, "green"}}, false,
		query{`xdp_audit_hook_up{` + ofDevice + `}`, ""})
	b.number("Attached as", "none", "Mode, driver and clock of the hook.", plain(), true,
		query{`xdp_audit_hook_info{` + ofDevice + `}`, "{{mode}} {{driver}} {{clock}}"})
	b.number("Packets", packetsPerSecond, "Packets that the audit sees.", plain(), false,
		query{`sum(rate(xdp_audit_packets_total{` + ofDevice + `}[$__rate_interval]))`, ""})
	b.number("Flagged", "percentunit", "Fraction of judged packets in 15 minutes whose |t| reached the threshold.", plain(), false,
		query{`instance_device:xdp_audit_flags:ratio_rate15m{` + ofDevice + `}`, ""})
	b.number("Last |t|", "short", "Score of the last flagged packet; 0 before the first.", plain(), false,
		query{`xdp_audit_last_tscore{` + ofDevice + `}`, ""})
	b.number("Last flag", "s", "Time since the last flagged packet.", plain(), false,
		query{`time() - (xdp_audit_last_flag_timestamp_seconds{` + ofDevice + `} > 0)`, ""})

	b.row("Packets")
	b.graph(8, "Packets by protocol", packetsPerSecond, "Packets that the audit sees.",
		query{`sum by (family, protocol) (rate(xdp_audit_packets_total{` + ofDevice + `}[$__rate_interval])) > 0`, "{{family}} {{protocol}}"})
	b.graph(8, "Bytes by protocol", "Bps", "Bytes of the frames of these packets, without the checksum.",
		query{`sum by (family, protocol) (rate(xdp_audit_bytes_total{` + ofDevice + `}[$__rate_interval])) > 0`, "{{family}} {{protocol}}"})
	b.graph(8, "Outcomes", packetsPerSecond, "Packets by outcome. docs/metrics.md describes the outcomes.",
		query{`sum by (outcome) (rate(xdp_audit_outcomes_total{` + ofDevice + `}[$__rate_interval])) > 0`, "{{outcome}}"})

	b.row("Timing")
	b.heat(24, "Deltas", "s", "Time between two packets of a flow. Requires native histograms in Prometheus (see deploy/prometheus/host.yml).",
		query{`sum(increase(xdp_audit_delta_seconds{` + ofDevice + `}[$__rate_interval]))`, ""})
	b.graph(8, "Quantiles of deltas", "s", "From the native histogram, whose buckets are 9 % wide. From the classic one, with few buckets, if Prometheus stores no native histograms.",
		query{quantile("0.5", "xdp_audit_delta_seconds", ofDevice), "50 %"},
		query{quantile("0.9", "xdp_audit_delta_seconds", ofDevice), "90 %"},
		query{quantile("0.99", "xdp_audit_delta_seconds", ofDevice), "99 %"})
	b.graph(8, "Mean and standard deviation", "s", "Exact values for windows of 5 minutes and one hour.",
		query{`instance_device:xdp_audit_delta_seconds:mean5m{` + ofDevice + `}`, "mean, 5 minutes"},
		query{`instance_device:xdp_audit_delta_seconds:stddev5m{` + ofDevice + `}`, "deviation, 5 minutes"},
		query{`instance_device:xdp_audit_delta_seconds:mean1h{` + ofDevice + `}`, "mean, hour"},
		query{`instance_device:xdp_audit_delta_seconds:stddev1h{` + ofDevice + `}`, "deviation, hour"})
	b.graph(8, "Coefficient of variation", "percentunit", "Standard deviation divided by mean.",
		query{`instance_device:xdp_audit_delta_seconds:cv5m{` + ofDevice + `}`, "5 minutes"},
		query{`instance_device:xdp_audit_delta_seconds:cv1h{` + ofDevice + `}`, "hour"})
	b.graph(8, "Welch's t", "short", "Compares a window with the longer window before it. With many packets, t is large even for insignificant shifts: also check effect and number of deltas.",
		query{`instance_device:xdp_audit_delta_seconds:tscore5m_1h{` + ofDevice + `}`, "5 minutes against the hour before"},
		query{`instance_device:xdp_audit_delta_seconds:tscore1h_1d{` + ofDevice + `}`, "hour against the day before"})
	b.graph(8, "Effect", "short", "Difference of the means in standard deviations (Cohen's d).",
		query{`instance_device:xdp_audit_delta_seconds:effect5m_1h{` + ofDevice + `}`, "5 minutes against the hour before"},
		query{`instance_device:xdp_audit_delta_seconds:effect1h_1d{` + ofDevice + `}`, "hour against the day before"})
	b.graph(8, "Deltas in the windows", "short", "Number of deltas in each window of the panels on timing.",
		query{`instance_device:xdp_audit_deltas:increase5m{` + ofDevice + `}`, "5 minutes"},
		query{`instance_device:xdp_audit_deltas:increase1h{` + ofDevice + `}`, "hour"})

	b.row("Flags")
	b.graph(8, "Flagged packets by direction", packetsPerSecond, "Flagged packets, by whether they are earlier or later than the mean of their flow.",
		query{`sum by (direction) (rate(xdp_audit_leak_flags_total{` + ofDevice + `}[$__rate_interval]))`, "{{direction}}"})
	b.graph(8, "Share of flagged packets", "percentunit", "Fraction of judged packets in 15 minutes.",
		query{`instance_device:xdp_audit_flags:ratio_rate15m{` + ofDevice + `}`, "now"})
	b.graph(8, "Excess of flagged packets", "short", "Score against the past of the device. An alert fires at 6 (a burst), or after 15 minutes at 1 or more (a lasting excess).",
		query{`xdp_audit_flag_excess_score{` + ofDevice + `}`, "score"})
	b.graph(6, "Restarted baselines", "short", "Baselines in five minutes that restarted after a run of flagged packets in one direction: the level of their traffic changed.",
		query{`increase(xdp_audit_baseline_restarts_total{` + ofDevice + `}[5m])`, "restarts"})
	b.graph(6, "Score of the last flag", "short", "|t| of the last flagged packet at each scrape.",
		query{`xdp_audit_last_tscore{` + ofDevice + `}`, "|t|"})
	b.graph(6, "Delta of the last flag", "s", "Time between the last flagged packet and its predecessor.",
		query{`xdp_audit_last_delta_seconds{` + ofDevice + `}`, "delta"})
	b.graph(6, "Length of the last flag", "bytes", "Length of the last flagged frame.",
		query{`xdp_audit_last_packet_bytes{` + ofDevice + `}`, "length"})

	b.records(24, "Flagged packets", "Records of the audit trail in Loki. Empty without Loki, or if its streams lack the labels job and instance of Prometheus: docs/trail.md says how to set them.",
		`{`+ofInstance+`} | logfmt | device=~"$device" | direction=~"early|late"`)

	b.row("Calibration")
	b.graph(12, "Decisions on flagged packets", packetsPerSecond, "Flagged packets by what entitles them to an event: a token that the flow earned, or one that every flow has; or by why none does: common for the flow, or rare but no token left. Empty with --audit.calibrate=0.",
		query{`sum by (decision) (rate(xdp_audit_calibration_flags_total{` + ofDevice + `}[$__rate_interval])) > 0`, "{{decision}}"})
	b.graph(12, "Flagged packets that become events", "percentunit", "Fraction that a token of the flow entitles, before the limit of the event rate.",
		query{`1 - sum(rate(xdp_audit_event_fates_total{` + ofDevice + `,fate="suppressed"}[$__rate_interval])) / (sum(rate(xdp_audit_event_fates_total{` + ofDevice + `}[$__rate_interval])) > 0)`, "entitled"})

	b.row("Covert timing channels")
	b.graph(12, "Scores of windows", "short", "Highest score of each test among the flows with a window in ten minutes. An alarm is a score of at least 1. Empty without --collector.covert.",
		query{`xdp_audit_covert_score{` + ofDevice + `}`, "{{test}}"})
	b.graph(12, "Flows that alarm in each window", "short", "Flows whose last four windows all raised an alarm of another test than symbols, on which the alert fires after five minutes, and flows with symbols, as a channel or an application with few delays has.",
		query{`xdp_audit_covert_alarming_flows{` + ofDevice + `}`, "phase or change"},
		query{`xdp_audit_covert_symbol_flows{` + ofDevice + `}`, "symbols"})
	b.graph(12, "Windows that alarm", "percentunit", "Fraction of windows in one hour with an alarm of any test. Up to 2 % is chance.",
		query{`increase(xdp_audit_covert_alarmed_windows_total{` + ofDevice + `}[1h]) / (increase(xdp_audit_covert_windows_total{` + ofDevice + `}[1h]) > 0)`, "alarmed"})
	b.graph(12, "Alarms by test", "short", "Windows in one hour with an alarm of the test. A window may count for several tests.",
		query{`increase(xdp_audit_covert_alarms_total{` + ofDevice + `}[1h])`, "{{test}}"})

	b.row("Leak assessments of the exporter")
	b.graph(8, "Evidence", "short", "Highest decimal logarithm of the e-value so far, which decides, and the current one, by assessment. It decides at -log10 of alpha: 5 for 1e-5. Empty without --leak.config.file.",
		query{`xdp_audit_leak_evidence_log10{` + ofInstance + `}`, "{{assessment}}"},
		query{`xdp_audit_leak_evidence_current_log10{` + ofInstance + `}`, "{{assessment}}, current"})
	b.graph(8, "Effect on response times", "s", "Median of the differences between the classes with its 95 % confidence sequence, and the difference up to which differences do not matter. Positive if the second class is slower.",
		query{`xdp_audit_leak_effect_seconds{` + ofInstance + `}`, "{{assessment}}"},
		query{`xdp_audit_leak_effect_low_seconds{` + ofInstance + `}`, "{{assessment}}, low"},
		query{`xdp_audit_leak_effect_high_seconds{` + ofInstance + `}`, "{{assessment}}, high"},
		query{`xdp_audit_leak_target_seconds{` + ofInstance + `}`, "{{assessment}}, target"})
	b.graph(8, "Verdict", "none", "The verdict of each assessment is at 1. Alerts fire on leak and invalid.",
		query{`xdp_audit_leak_verdict{` + ofInstance + `} == 1`, "{{assessment}} {{verdict}}"})
	b.graph(8, "Median response time", "s", "By class, from the native histogram, whose buckets are 9 % wide, or from the classic one, with few buckets.",
		query{`(` + quantile("0.5", "xdp_audit_leak_response_seconds", ofInstance, "assessment", "class") + `) >= 0`, "{{assessment}} {{class}}"})
	b.graph(8, "Responses and exclusions", "reqps", "Requests with a response time, by class, and without one, by reason.",
		query{`rate(xdp_audit_leak_responses_total{` + ofInstance + `}[$__rate_interval])`, "{{assessment}} {{class}}"},
		query{`rate(xdp_audit_leak_excluded_total{` + ofInstance + `}[$__rate_interval])`, "{{assessment}} {{reason}}"})
	b.graph(8, "Checks of the data", "none", "1 if the data of an assessment pass the check, 0 if they cannot be judged.",
		query{`xdp_audit_leak_check{` + ofInstance + `}`, "{{assessment}} {{check}}"})

	b.row("Losses")
	b.graph(8, "Fates of events", eventsPerSecond, "Flagged packets by the fate of their event. rate_limit and suppressed follow from the configuration; ring_full, no_reader, reader_gap and other are losses.",
		query{`sum by (fate) (rate(xdp_audit_event_fates_total{` + ofDevice + `}[$__rate_interval]))`, "{{fate}}"})
	b.graph(8, "Events", eventsPerSecond, "Events of the device that were sent and received, and event records of the whole exporter that were lost or malformed.",
		query{`rate(xdp_audit_event_fates_total{` + ofDevice + `,fate="sent"}[$__rate_interval])`, "sent"},
		query{`rate(xdp_audit_events_total{` + ofDevice + `}[$__rate_interval])`, "received"},
		query{`rate(xdp_audit_event_records_lost_total{` + ofInstance + `}[$__rate_interval])`, "lost in a ring"},
		query{`rate(xdp_audit_event_records_malformed_total{` + ofInstance + `}[$__rate_interval])`, "malformed"})
	b.graph(8, "Audit trail", recordsPerSecond, "Trail records of all devices of the exporter. Empty without --trail.file.",
		query{`rate(xdp_audit_trail_records_total{` + ofInstance + `}[$__rate_interval])`, "written"},
		query{`rate(xdp_audit_trail_write_errors_total{` + ofInstance + `}[$__rate_interval])`, "not written"})
	b.graph(12, "Unparsed and untimed packets", "percentunit", "Fraction of packets that are not IP, damaged or of an unknown form, and fraction of the others that have no time (--audit.clock=metadata). Neither are scored.",
		query{`sum(rate(xdp_audit_outcomes_total{` + ofDevice + `,outcome="unparsed"}[$__rate_interval])) / (sum(rate(xdp_audit_outcomes_total{` + ofDevice + `}[$__rate_interval])) > 0)`, "unparsed"},
		query{`sum(rate(xdp_audit_outcomes_total{` + ofDevice + `,outcome="untimed"}[$__rate_interval])) / (sum(rate(xdp_audit_outcomes_total{` + ofDevice + `,outcome!~"unparsed|fragment"}[$__rate_interval])) > 0)`, "untimed"})
	b.graph(12, "Received packets", packetsPerSecond, "Packets that the kernel counts as received by the device, and packets that the program sees: less in generic mode, which sees merged frames, and none if packets take a way without XDP.",
		query{`sum(rate(xdp_audit_device_received_packets_total{` + ofDevice + `}[$__rate_interval]))`, "received"},
		query{`sum(rate(xdp_audit_packets_total{` + ofDevice + `}[$__rate_interval]))`, "seen by the program"})
	b.graph(8, "Contended packets", "percentunit", "Fraction of packets that were not judged because two CPUs used the same set of the flow table at once.",
		query{`sum(rate(xdp_audit_outcomes_total{` + ofDevice + `,outcome="contended"}[$__rate_interval])) / (sum(rate(xdp_audit_outcomes_total{` + ofDevice + `,outcome!~"fragment|untimed|unparsed"}[$__rate_interval])) > 0)`, "contended"})
	b.graph(8, "Flows", flowsPerSecond, "New flows of the device, and flows that lost their slot to a new flow.",
		query{`rate(xdp_audit_flow_inserts_total{` + ofDevice + `}[$__rate_interval])`, "new"},
		query{`rate(xdp_audit_flow_evictions_total{` + ofDevice + `}[$__rate_interval])`, "{{reason}} replaced"})
	b.graph(8, "Flow table", "short", "Slots of the flow table, which all devices of the exporter share.",
		query{`xdp_audit_flow_table_slots_used{` + ofInstance + `}`, "used"},
		query{`xdp_audit_flow_table_slots{` + ofInstance + `}`, "slots"})

	b.row("Cost")
	b.graph(8, "Program, per run", "s", "Run time of the BPF program per packet. Requires kernel.bpf_stats_enabled=1, which slows down every BPF program of the host.",
		query{`rate(xdp_audit_program_run_seconds_total{` + ofDevice + `}[$__rate_interval]) / (rate(xdp_audit_program_runs_total{` + ofDevice + `}[$__rate_interval]) > 0)`, "per run"})
	b.graph(8, "Program, cores", "percentunit", "Cores used by the BPF program. Requires kernel.bpf_stats_enabled=1.",
		query{`rate(xdp_audit_program_run_seconds_total{` + ofDevice + `}[$__rate_interval])`, "cores"})
	b.graph(8, "Scrape by collector", "s", "Duration of each collector in the last scrape.",
		query{`xdp_audit_scrape_collector_duration_seconds{` + ofInstance + `}`, "{{collector}}"})
	b.graph(12, "CPU of the exporter", "percentunit", "Cores used by the exporter in user space.",
		query{`rate(process_cpu_seconds_total{` + ofInstance + `}[$__rate_interval])`, "cores"})
	b.graph(12, "Memory of the exporter", "bytes", "Resident memory, without the BPF maps, which are kernel memory.",
		query{`process_resident_memory_bytes{` + ofInstance + `}`, "resident"})
	return b
}
