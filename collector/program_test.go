// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

func TestProgram(t *testing.T) {
	source := &fakeSource{hooks: []bpf.Hook{
		{Device: "eth0", Up: true, Mode: "drv", Driver: "veth", Clock: "ktime", ProgramID: 42, ProgramTag: "0123456789abcdef"},
		{Device: "eth1", Clock: "ktime"},
	}, devices: bpf.DeviceSlots{Total: 64, Used: 2, Refused: 1}}
	hooks := `
# HELP xdp_audit_device_slots Devices that there is room for.
# TYPE xdp_audit_device_slots gauge
xdp_audit_device_slots 64
# HELP xdp_audit_device_slots_used Devices that are audited, or named and waited for.
# TYPE xdp_audit_device_slots_used gauge
xdp_audit_device_slots_used 2
# HELP xdp_audit_devices_refused Devices that match a glob and are not audited, because there is no room for them.
# TYPE xdp_audit_devices_refused gauge
xdp_audit_devices_refused 1
# HELP xdp_audit_hook_info How the audit is attached to a device, always 1.
# TYPE xdp_audit_hook_info gauge
xdp_audit_hook_info{clock="ktime",device="eth0",driver="veth",mode="drv",program_id="42",program_tag="0123456789abcdef"} 1
# HELP xdp_audit_hook_up Whether the audit is attached to a device.
# TYPE xdp_audit_hook_up gauge
xdp_audit_hook_up{device="eth0"} 1
xdp_audit_hook_up{device="eth1"} 0
`
	expect(t, newProgramCollector(source), hooks)

	source.runs = []bpf.Runs{{Device: "eth0", Count: 1000, TimeNs: 70_000}}
	expect(t, newProgramCollector(source), hooks+`
# HELP xdp_audit_program_run_seconds_total Time that the kernel spent in the program, known while kernel.bpf_stats_enabled is 1.
# TYPE xdp_audit_program_run_seconds_total counter
xdp_audit_program_run_seconds_total{device="eth0"} 7e-05
# HELP xdp_audit_program_runs_total Runs of the program, known while kernel.bpf_stats_enabled is 1.
# TYPE xdp_audit_program_runs_total counter
xdp_audit_program_runs_total{device="eth0"} 1000
`)
}
