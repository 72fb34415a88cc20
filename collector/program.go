// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"fmt"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

var (
	hookUpDesc   = newDesc("hook_up", "Whether the audit is attached to the device.", "device")
	hookInfoDesc = newDesc("hook_info", "Mode, driver, clock and program of the attached audit; the value is always 1.",
		"clock", "device", "driver", "mode", "program_id", "program_tag")
	deviceReceivedDesc = newDesc("device_received_packets_total",
		"Total number of packets that the kernel counts as received by the device.", "device")
	deviceSlotsDesc     = newDesc("device_slots", "Maximum number of devices.")
	deviceSlotsUsedDesc = newDesc("device_slots_used", "Number of devices that are audited, or given by name and expected to appear.")
	devicesRefusedDesc  = newDesc("devices_refused", "Number of devices that match a glob but are not audited, because all device slots are used.")
	runTimeDesc         = newDesc("program_run_seconds_total",
		"Total run time of the program in seconds; only while kernel.bpf_stats_enabled is 1.", "device")
	runsDesc = newDesc("program_runs_total",
		"Total number of runs of the program; only while kernel.bpf_stats_enabled is 1.", "device")
)

type programSource interface {
	Hooks() []bpf.Hook
	Runs() ([]bpf.Runs, error)
	DeviceSlots() bpf.DeviceSlots
}

type programCollector struct {
	source programSource
}

func newProgramCollector(source programSource) programCollector {
	return programCollector{source}
}

// Update sends the state of every device, the use of the device slots, and the run time of each
// program if the kernel accounts for it.
func (c programCollector) Update(ch chan<- prometheus.Metric) error {
	for _, hook := range c.source.Hooks() {
		device := deviceLabel(hook.Device)
		if !hook.Up {
			ch <- gauge(hookUpDesc, 0, device)
			continue
		}
		ch <- gauge(hookUpDesc, 1, device)
		ch <- gauge(hookInfoDesc, 1, label("clock", hook.Clock), device, label("driver", hook.Driver), label("mode", hook.Mode),
			label("program_id", strconv.FormatUint(uint64(hook.ProgramID), 10)), label("program_tag", hook.ProgramTag))
		ch <- counter(deviceReceivedDesc, float64(hook.Received), device)
	}
	slots := c.source.DeviceSlots()
	ch <- gauge(deviceSlotsDesc, float64(slots.Total))
	ch <- gauge(deviceSlotsUsedDesc, float64(slots.Used))
	ch <- gauge(devicesRefusedDesc, float64(slots.Refused))
	runs, err := c.source.Runs()
	if err != nil {
		return fmt.Errorf("reading the run time of a program: %w", err)
	}
	for _, run := range runs {
		device := deviceLabel(run.Device)
		ch <- counter(runTimeDesc, float64(run.TimeNs)/1e9, device)
		ch <- counter(runsDesc, float64(run.Count), device)
	}
	return nil
}
