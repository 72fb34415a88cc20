// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// Mode is the way in which a program is attached to a device.
type Mode string

// The attach modes. ModeAuto tries drv, then skb; the log and [Hook] tell which mode is in use.
const (
	ModeDriver  Mode = "drv"
	ModeHW      Mode = "hw"
	ModeGeneric Mode = "skb"
	ModeAuto    Mode = "auto"
)

// Clock is the source of a packet's time.
type Clock string

// The clocks. The nanoseconds of ClockMetadata are written by an earlier XDP program.
const (
	ClockKtime    Clock = "ktime"    // CLOCK_MONOTONIC when the program runs
	ClockHW       Clock = "hw"       // receive timestamp of the device
	ClockMetadata Clock = "metadata" // 8 bytes of nanoseconds in front of the packet
)

// Domain is the scale on which deltas (inter-arrival times) are scored.
type Domain = timing.Domain

// The domains.
const (
	DomainLinear = timing.Linear // the delta in nanoseconds
	DomainLog2   = timing.Log2   // the logarithm of the delta
)

// Learnt is the learned state of a device: its baseline. A device with such a state in
// [Config.Frozen] is scored against it.
type Learnt = timing.Learnt

// Scope selects the baseline that a packet is scored against. The delta is always measured
// within the packet's flow.
type Scope string

// The baseline scopes.
const (
	BaselineFlow   Scope = "flow"   // of the packet's flow
	BaselineDevice Scope = "device" // of the device, one for each CPU
)

// The limits of a configuration.
const (
	MaxFlows     = 1 << 26
	MaxEventRate = 1_000_000_000
	MaxWatches   = 255

	flowWays = 8 // slots in one set of the flow table
)

// Config configures an audit. Start from [DefaultConfig], which sets everything except the devices.
type Config struct {
	// Devices has names of network devices, the kernel's or alternative ones, and Globs patterns of
	// the kernel's names with the syntax of path.Match. In both, % and two hexadecimal digits stand
	// for a byte of the name. All results of an audit have the kernel's name of a device, in which
	// bytes that cannot be shown are written like that.
	Devices, Globs []string

	// DefaultRoute adds the devices to which a default route of IPv4 or IPv6 leads.
	DefaultRoute bool

	Follow    bool // let Audit.Follow attach devices that appear later
	AllowNone bool // let Open succeed when it can attach no device

	// MaxDevices is the maximum number of devices at a time if Follow or PinPath is set. If
	// Devices has more names, their number is the maximum.
	MaxDevices uint32

	// PinPath is a directory in a bpf file system. Maps and hooks that are pinned there outlive
	// the process. If it is empty, nothing is pinned.
	PinPath string

	Mode       Mode    // attach mode
	Clock      Clock   // source of a packet's time
	Threshold  float64 // |t| from which on a packet is flagged
	MinSamples uint32  // samples that a baseline needs before packets are scored
	Window     uint32  // at twice this many samples the count of a baseline is halved
	Domain     Domain  // scale on which deltas are scored
	Baseline   Scope   // baseline that a packet is scored against

	// Clip is the largest deviation that enters a baseline, in standard deviations of the baseline:
	// 1 to 16. A late packet cannot hide the next one, unless a fraction of 1/(1 + k·Clip²) of the
	// packets is late. k corrects the variance for the clip. With 0, nothing is clipped.
	Clip float64

	// Frozen has saved baselines by device name. These devices are scored against the saved
	// baseline, and do not learn. It requires BaselineDevice.
	Frozen      map[string]Learnt
	FrozenSince time.Time // time at which Frozen was saved

	IdleTimeout time.Duration // a longer silence of a flow is a pause, not a delta

	// Calibrate is the number of events that a flow earns for each of its scored packets. They
	// are for flags that are rare for the flow. In addition a flow has eight events an hour. With
	// 0, every flag may become an event.
	Calibrate float64

	Flows     uint32 // slots of the flow table, rounded up to a power of two
	EventRate uint32 // maximum number of perf events per second and CPU; 0 opens no rings

	// ExchangeConnections is the number of connections to services whose response times are
	// measured at a time, rounded up to a power of two. With 0, no response times are measured.
	ExchangeConnections uint32

	// ExchangeRecords is the number of response times that a CPU keeps until they are read,
	// rounded up to a power of two. With 0, it is 16,384.
	ExchangeRecords uint32

	// Watches is the number of the busiest flows whose deltas are recorded for Audit.Watch. With
	// 0, no deltas are recorded.
	Watches uint32
}

// DefaultConfig returns the default configuration, without a device.
func DefaultConfig() Config {
	return Config{
		Mode: ModeDriver, Clock: ClockKtime, Threshold: 4, MinSamples: 100, Window: 8192, Domain: DomainLinear, Baseline: BaselineFlow, Clip: 1.8,
		Calibrate: 1e-4, IdleTimeout: time.Second, Flows: 65536, EventRate: 100, MaxDevices: 16,
	}
}

// ConfigError is the error of a [Config] in which the value of one field is not valid.
type ConfigError struct {
	Field string // name of the field, such as MaxDevices
	err   error
}

// Error names the value, and the values that are valid.
func (e *ConfigError) Error() string { return e.err.Error() }

// Unwrap returns the error without the name of the field.
func (e *ConfigError) Unwrap() error { return e.err }

// invalid returns the error of a field.
func invalid(field, format string, args ...any) error {
	return &ConfigError{field, fmt.Errorf(format, args...)}
}

// Validate returns an error that names the first invalid value and the values that are valid. It is
// a [ConfigError] if the value of one field alone is at fault.
func (c Config) Validate() error {
	if len(c.Devices) == 0 && len(c.Globs) == 0 && !c.DefaultRoute {
		return fmt.Errorf("no device to audit: name at least one")
	}
	c, err := c.canonical()
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, device := range c.Devices {
		if seen[device] {
			return invalid("Devices", "device %s is named twice", device)
		}
		seen[device] = true
	}
	for _, glob := range c.Globs {
		pattern, err := printable.Glob(glob)
		if err != nil {
			return invalid("Globs", "device %q is not a valid glob: %w", glob, err)
		}
		if _, err := path.Match(pattern, ""); err != nil {
			return invalid("Globs", "device %q is not a valid glob: close the bracket", glob)
		}
	}
	if c.MaxDevices < 1 || c.MaxDevices > maxDevices {
		return invalid("MaxDevices", "maximum number of devices %d is not between 1 and %d", c.MaxDevices, maxDevices)
	}
	if len(c.Devices) > maxDevices {
		return invalid("Devices", "%d devices are named, more than the maximum of %d", len(c.Devices), maxDevices)
	}
	if c.PinPath != "" && c.Mode == ModeHW {
		return fmt.Errorf("mode hw and pin path %s cannot be combined: use mode drv or skb", c.PinPath)
	}
	switch c.Mode {
	case ModeDriver, ModeHW, ModeGeneric, ModeAuto:
	default:
		return invalid("Mode", "mode %q is not one of drv, hw, skb and auto", c.Mode)
	}
	switch c.Clock {
	case ClockKtime, ClockMetadata:
	case ClockHW:
		return invalid("Clock", "clock hw is not implemented: use ktime")
	default:
		return invalid("Clock", "clock %q is not one of ktime, hw and metadata", c.Clock)
	}
	switch c.Domain {
	case DomainLinear, DomainLog2:
	default:
		return invalid("Domain", "domain %q is not one of linear and log2", c.Domain)
	}
	switch c.Baseline {
	case BaselineFlow, BaselineDevice:
	default:
		return invalid("Baseline", "baseline %q is not one of flow and device", c.Baseline)
	}
	switch {
	case c.IdleTimeout <= 0 || c.IdleTimeout > timing.MaxDelta:
		return invalid("IdleTimeout", "idle timeout %v is not between 1ns and %v, the longest inter-arrival time that can be scored",
			c.IdleTimeout, time.Duration(timing.MaxDelta))
	case c.Flows < flowWays || c.Flows > MaxFlows:
		return invalid("Flows", "flow table of %d slots is not between %d and %d", c.Flows, flowWays, MaxFlows)
	case c.EventRate > MaxEventRate:
		return invalid("EventRate", "event rate %d exceeds %d per second", c.EventRate, MaxEventRate)
	case c.Watches > MaxWatches:
		return invalid("Watches", "%d watched flows exceed the maximum of %d", c.Watches, MaxWatches)
	}
	if err := c.params().Validate(); err != nil {
		var param *timing.ParamError
		if errors.As(err, &param) {
			return &ConfigError{param.Param, err} // the parameters have the names of the fields
		}
		return err
	}
	if err := c.validateExchanges(); err != nil {
		return err
	}
	return c.validateFrozen()
}

func (c Config) validateFrozen() error {
	if len(c.Frozen) > 0 && c.Baseline != BaselineDevice {
		return fmt.Errorf("a saved baseline requires the baseline scope %s, not %s", BaselineDevice, c.Baseline)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Frozen)) {
		learnt := c.Frozen[name]
		if err := learnt.Validate(); err != nil {
			return fmt.Errorf("saved baseline of device %s: %w", name, err)
		}
		if !c.params().IsEnough(&learnt) {
			return fmt.Errorf("saved baseline of device %s has %d samples, too few for a minimum of %d: lower the minimum, or learn the baseline again",
				name, learnt.N, c.MinSamples)
		}
	}
	return nil
}

func (c Config) params() timing.Params {
	return timing.Params{
		Threshold: c.Threshold, MinSamples: uint64(c.MinSamples), Window: uint64(c.Window), Domain: c.Domain, Clip: c.Clip, Calibrate: c.Calibrate,
	}
}

// deviceCapacity returns the maximum number of devices at a time.
func (c Config) deviceCapacity() int {
	if c.Follow || c.PinPath != "" {
		return max(int(c.MaxDevices), len(c.Devices))
	}
	return len(c.Devices)
}

// sets returns the number of sets in the flow table, a power of two.
func (c Config) sets() uint32 { return powerOfTwo((c.Flows + flowWays - 1) / flowWays) }

// Slots returns the number of slots in the flow table: Flows rounded up to a power of two.
func (c Config) Slots() int { return int(c.sets()) * flowWays }

// eventInterval returns the nanoseconds by which one perf event reduces the allowance of a CPU.
func (c Config) eventInterval() uint64 {
	if c.EventRate == 0 {
		return math.MaxUint64
	}
	return uint64(time.Second) / uint64(c.EventRate)
}
