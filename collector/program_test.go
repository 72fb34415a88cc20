// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

func TestProgram(t *testing.T) {
	source := &fakeSource{hooks: []bpf.Hook{
		{Device: "eth0", Up: true, Mode: "drv", Driver: "veth", Clock: "ktime", ProgramID: 42, ProgramTag: "0123456789abcdef", Received: 1000},
		{Device: "eth1", Clock: "ktime"},
	}, devices: bpf.DeviceSlots{Total: 64, Used: 2, Refused: 1}}
	hooks := `
# HELP xdp_audit_device_received_packets_total Total number of packets that the kernel counts as received by the device.
# TYPE xdp_audit_device_received_packets_total counter
xdp_audit_device_received_packets_total{device="eth0"} 1000
# HELP xdp_audit_device_slots Maximum number of devices.
# TYPE xdp_audit_device_slots gauge
xdp_audit_device_slots 64
# HELP xdp_audit_device_slots_used Number of devices that are audited, or given by name and expected to appear.
# TYPE xdp_audit_device_slots_used gauge
xdp_audit_device_slots_used 2
# HELP xdp_audit_devices_refused Number of devices that match a glob but are not audited, because all device slots are used.
# TYPE xdp_audit_devices_refused gauge
xdp_audit_devices_refused 1
# HELP xdp_audit_hook_info Mode, driver, clock and program of the attached audit; the value is always 1.
# TYPE xdp_audit_hook_info gauge
xdp_audit_hook_info{clock="ktime",device="eth0",driver="veth",mode="drv",program_id="42",program_tag="0123456789abcdef"} 1
# HELP xdp_audit_hook_up Whether the audit is attached to the device.
# TYPE xdp_audit_hook_up gauge
xdp_audit_hook_up{device="eth0"} 1
xdp_audit_hook_up{device="eth1"} 0
`
	expect(t, newProgramCollector(source), hooks)

	source.runs = []bpf.Runs{{Device: "eth0", Count: 1000, TimeNs: 70_000}}
	expect(t, newProgramCollector(source), hooks+`
# HELP xdp_audit_program_run_seconds_total Total run time of the program in seconds; only while kernel.bpf_stats_enabled is 1.
# TYPE xdp_audit_program_run_seconds_total counter
xdp_audit_program_run_seconds_total{device="eth0"} 7e-05
# HELP xdp_audit_program_runs_total Total number of runs of the program; only while kernel.bpf_stats_enabled is 1.
# TYPE xdp_audit_program_runs_total counter
xdp_audit_program_runs_total{device="eth0"} 1000
`)
}
