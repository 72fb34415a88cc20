// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// Mode is how a program is attached to a device.
type Mode string

// The modes. Auto tries drv, then skb, and says which it got.
const (
	ModeDriver  Mode = "drv"
	ModeHW      Mode = "hw"
	ModeGeneric Mode = "skb"
	ModeAuto    Mode = "auto"
)

// Clock is where the time of a packet comes from.
type Clock string

// The clocks.
const (
	ClockKtime    Clock = "ktime"    // CLOCK_MONOTONIC when the program runs
	ClockHW       Clock = "hw"       // the receive timestamp of the device
	ClockMetadata Clock = "metadata" // 8 bytes of nanoseconds in front of the packet, put there by an earlier XDP program
)

// Domain is the scale on which deltas are judged.
type Domain = timing.Domain

// The domains.
const (
	DomainLinear = timing.Linear // the delta itself
	DomainLog2   = timing.Log2   // its logarithm
)

// Learnt is what was learnt of a device.
type Learnt = timing.Learnt

// Scope is whose baseline a packet is scored against. The delta is its flow's in any case.
type Scope string

// The scopes.
const (
	BaselineFlow   Scope = "flow"
	BaselineDevice Scope = "device" // of the device, on the CPU that has the packet
)

// The limits of a configuration.
const (
	MaxFlows     = 1 << 26
	MaxEventRate = 1_000_000_000
	MaxWatches   = 255

	flowWays = 8 // slots in a set of the flow table
)

// Config says what to audit, and how. [DefaultConfig] is the place to start.
type Config struct {
	Devices     []string          // network devices by name
	Globs       []string          // network devices by pattern, as of path.Match
	Follow      bool              // devices that appear later are attached as well, by Audit.Follow
	AllowNone   bool              // it is no error of Open that no device can be attached
	MaxDevices  uint32            // devices at a time, if they are followed or pinned; more names than that raise it
	PinPath     string            // folder of a bpf file system in which maps and hooks outlive the process; empty for none
	Mode        Mode              // how to attach
	Clock       Clock             // where a packet's time comes from
	Threshold   float64           // |t| at which a packet is flagged
	MinSamples  uint32            // samples that a baseline needs before it judges
	Window      uint32            // samples after which a baseline starts to forget, by halving
	Domain      Domain            // scale on which deltas are judged
	Baseline    Scope             // whose baseline a packet is scored against
	Frozen      map[string]Learnt // what devices are audited against, and not taught, by their names; takes BaselineDevice
	FrozenSince time.Time         // when that was saved
	IdleTimeout time.Duration     // a longer silence of a flow is a pause, not a delta
	Calibrate   float64           // share of the judged packets that may become events, at most; 0: all that are flagged may
	Flows       uint32            // slots of the flow table, rounded up to a power of two
	EventRate   uint32            // perf events per second and CPU; 0 sends none
	Watches     uint32            // busiest flows whose deltas are recorded for Audit.Watch; 0 records none
}

// DefaultConfig returns the defaults, which name no device.
func DefaultConfig() Config {
	return Config{
		Mode: ModeDriver, Clock: ClockKtime, Threshold: 4, MinSamples: 100, Window: 8192, Domain: DomainLinear, Baseline: BaselineFlow,
		Calibrate: 1e-4, IdleTimeout: time.Second, Flows: 65536, EventRate: 100, MaxDevices: 16,
	}
}

// Validate returns an error that names the first value that cannot be used, and what could be.
func (c Config) Validate() error {
	if len(c.Devices) == 0 && len(c.Globs) == 0 {
		return fmt.Errorf("no device to audit: name at least one")
	}
	seen := map[string]bool{}
	for _, device := range c.Devices {
		switch {
		case device == "" || len(device) > 15 || strings.ContainsAny(device, "/ \t\n"):
			return fmt.Errorf("device %q is no name of a network device: 1 to 15 characters without space or slash", device)
		case seen[device]:
			return fmt.Errorf("device %s is named twice", device)
		}
		seen[device] = true
	}
	for _, glob := range c.Globs {
		if _, err := path.Match(glob, ""); err != nil {
			return fmt.Errorf("device %q is no valid glob: a bracket needs its end", glob)
		}
	}
	if c.MaxDevices < 1 || c.MaxDevices > maxDevices || len(c.Devices) > maxDevices {
		return fmt.Errorf("maximum of %d devices, of which %d are named, is not between 1 and %d", c.MaxDevices, len(c.Devices), maxDevices)
	}
	if c.PinPath != "" && c.Mode == ModeHW {
		return fmt.Errorf("mode hw and pin path %s cannot be combined: use mode drv or skb", c.PinPath)
	}
	switch c.Mode {
	case ModeDriver, ModeHW, ModeGeneric, ModeAuto:
	default:
		return fmt.Errorf("mode %q is not one of drv, hw, skb and auto", c.Mode)
	}
	switch c.Clock {
	case ClockKtime, ClockMetadata:
	case ClockHW:
		return fmt.Errorf("clock hw is not built yet: use ktime")
	default:
		return fmt.Errorf("clock %q is not one of ktime, hw and metadata", c.Clock)
	}
	switch c.Domain {
	case DomainLinear, DomainLog2:
	default:
		return fmt.Errorf("domain %q is not one of linear and log2", c.Domain)
	}
	switch c.Baseline {
	case BaselineFlow, BaselineDevice:
	default:
		return fmt.Errorf("baseline %q is not one of flow and device", c.Baseline)
	}
	switch {
	case c.IdleTimeout <= 0 || c.IdleTimeout > timing.MaxDelta:
		return fmt.Errorf("idle timeout %v is not between 1ns and %v, the longest delta that the arithmetic holds",
			c.IdleTimeout, time.Duration(timing.MaxDelta))
	case c.Flows < flowWays || c.Flows > MaxFlows:
		return fmt.Errorf("flow table of %d slots is not between %d and %d", c.Flows, flowWays, MaxFlows)
	case c.EventRate > MaxEventRate:
		return fmt.Errorf("event rate %d is above %d a second", c.EventRate, MaxEventRate)
	case c.Watches > MaxWatches:
		return fmt.Errorf("%d flows to be watched are more than %d", c.Watches, MaxWatches)
	}
	if err := c.params().Validate(); err != nil {
		return err
	}
	return c.validateFrozen()
}

func (c Config) validateFrozen() error {
	if len(c.Frozen) > 0 && c.Baseline != BaselineDevice {
		return fmt.Errorf("a saved baseline takes the baseline of the device, and this is one of the %s", c.Baseline)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Frozen)) {
		learnt := c.Frozen[name]
		if err := learnt.Validate(); err != nil {
			return fmt.Errorf("saved baseline of device %s: %w", name, err)
		}
		if !c.params().IsEnough(&learnt) {
			return fmt.Errorf("saved baseline of device %s: %d samples and %d judged packets are too few for a minimum of %d samples and a calibration at %v: "+
				"lower the minimum, raise or switch off the calibration, or learn anew", name, learnt.N, learnt.Judged, c.MinSamples, c.Calibrate)
		}
	}
	return nil
}

func (c Config) params() timing.Params {
	return timing.Params{
		Threshold: c.Threshold, MinSamples: uint64(c.MinSamples), Window: uint64(c.Window), Domain: c.Domain, Calibrate: c.Calibrate,
	}
}

// indices returns the devices that there is room for.
func (c Config) deviceCapacity() int {
	if c.Follow || c.PinPath != "" {
		return max(int(c.MaxDevices), len(c.Devices))
	}
	return len(c.Devices)
}

// sets returns the sets of the flow table, a power of two.
func (c Config) sets() uint32 {
	sets := uint32(1)
	for sets*flowWays < c.Flows {
		sets *= 2
	}
	return sets
}

// Slots returns the slots that the flow table has: Flows rounded up to a power of two.
func (c Config) Slots() int { return int(c.sets()) * flowWays }

// eventInterval returns the nanoseconds that one perf event takes out of a CPU's allowance.
func (c Config) eventInterval() uint64 {
	if c.EventRate == 0 {
		return math.MaxUint64
	}
	return uint64(time.Second) / uint64(c.EventRate)
}
