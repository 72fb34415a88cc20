// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

func TestConfigRefusesWhatCannotWork(t *testing.T) {
	if err := testConfig().Validate(); err != nil {
		t.Fatalf("the configuration that the cases change is refused: %v", err)
	}
	for _, test := range []struct {
		name   string
		change func(*Config)
		field  string // that is at fault; empty if several are
		want   string
	}{
		{"no device", func(c *Config) { c.Devices = nil }, "", "no device to audit"},
		{"an empty name", func(c *Config) { c.Devices = []string{""} }, "Devices", `invalid device name ""`},
		{"a name that is too long", func(c *Config) { c.Devices = []string{strings.Repeat("a", 128)} }, "Devices", `aaa": use 1 to 127 bytes`},
		{"a name with half an escape", func(c *Config) { c.Devices = []string{"a%f"} }, "Devices", `invalid device name "a%f": % has no two hexadecimal digits`},
		{"a name with an escaped slash", func(c *Config) { c.Devices = []string{"a%2fb"} }, "Devices", `invalid device name "a%2fb"`},
		{"two texts of a name", func(c *Config) { c.Devices = []string{"ba%ffd0", "ba\xffd0"} }, "Devices", "device ba%ffd0 is named twice"},
		{"a glob with half an escape", func(c *Config) { c.Globs = []string{"eth*%"} }, "Globs", `device "eth*%" is not a valid glob: % has no two`},
		{"a name with a slash", func(c *Config) { c.Devices = []string{"../eth0"} }, "Devices", `invalid device name "../eth0"`},
		{"a device named twice", func(c *Config) { c.Devices = []string{"a", "b", "a"} }, "Devices", "device a is named twice"},
		{"a glob without an end", func(c *Config) { c.Globs = []string{"eth["} }, "Globs", `device "eth[" is not a valid glob`},
		{"no room for devices", func(c *Config) { c.MaxDevices = 0 }, "MaxDevices", "maximum number of devices 0 is not between 1 and 4096"},
		{"room for too many devices", func(c *Config) { c.MaxDevices = 4097 }, "MaxDevices", "maximum number of devices 4097"},
		{"too many devices named", func(c *Config) {
			c.Devices = nil
			for i := range 5000 {
				c.Devices = append(c.Devices, fmt.Sprint("d", i))
			}
		}, "Devices", "5000 devices are named, more than the maximum of 4096"},
		{"offload and pins", func(c *Config) { c.Mode, c.PinPath = ModeHW, "/sys/fs/bpf/a" }, "", "mode hw and pin path /sys/fs/bpf/a"},
		{"an unknown mode", func(c *Config) { c.Mode = "native" }, "Mode", `mode "native" is not one of drv, hw, skb and auto`},
		{"an unknown clock", func(c *Config) { c.Clock = "tsc" }, "Clock", `clock "tsc" is not one of`},
		{"a clock that is not implemented", func(c *Config) { c.Clock = ClockHW }, "Clock", "use ktime"},
		{"an unknown domain", func(c *Config) { c.Domain = "log" }, "Domain", `domain "log" is not one of linear and log2`},
		{"an unknown baseline", func(c *Config) { c.Baseline = "host" }, "Baseline", `baseline "host" is not one of flow and device`},
		{"no idle timeout", func(c *Config) { c.IdleTimeout = 0 }, "IdleTimeout", "idle timeout 0s is not between 1ns and 2.147483648s"},
		{"an idle timeout beyond the arithmetic", func(c *Config) { c.IdleTimeout = timing.MaxDelta + 1 }, "IdleTimeout", "idle timeout 2.147483649s"},
		{"fewer slots than a set has", func(c *Config) { c.Flows = 7 }, "Flows", "flow table of 7 slots"},
		{"more slots than there may be", func(c *Config) { c.Flows = MaxFlows + 1 }, "Flows", "flow table of 67108865 slots"},
		{"more events than nanoseconds", func(c *Config) { c.EventRate = MaxEventRate + 1 }, "EventRate", "event rate 1000000001"},
		{"more watched flows than there may be", func(c *Config) { c.Watches = 256 }, "Watches", "256 watched flows"},
		{"a threshold below 2", func(c *Config) { c.Threshold = 1.99 }, "Threshold", "threshold 1.99"},
		{"a threshold that is not a number", func(c *Config) { c.Threshold = math.NaN() }, "Threshold", "threshold NaN"},
		{"a calibration at a quarter", func(c *Config) { c.Calibrate = 0.25 }, "Calibrate", "calibration 0.25 is neither 0 (off) nor between 1e-06 and 0.1"},
		{"one sample", func(c *Config) { c.MinSamples = 1 }, "MinSamples", "minimum of 1 samples"},
		{"a window below the minimum of samples", func(c *Config) { c.Window = 99 }, "Window", "window of 99 samples"},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := testConfig()
			test.change(&config)
			err := config.Validate()
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
			field := ""
			if invalid := (*ConfigError)(nil); errors.As(err, &invalid) {
				field = invalid.Field
			}
			if field != test.field {
				t.Errorf("the field %q is said to be at fault, want %q", field, test.field)
			}
		})
	}
}
