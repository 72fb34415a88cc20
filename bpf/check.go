// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"slices"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// Report is what [Check] has found.
type Report struct {
	Err     error     // the error with which Open would fail; nil if it would succeed
	Host    []Finding // what the kernel says of this machine
	Devices []DeviceReport
}

// DeviceReport is what Check has found about a network device.
type DeviceReport struct {
	Name     string
	Index    int   // 0 if there is no such device
	Mode     Mode  // in which the device would be audited; empty if it would not be
	Err      error // why it would not be; nil also if Report.Err came before it was asked
	LeftOut  bool  // it would not be audited because it holds no default route
	Findings []Finding
}

// Finding is one fact.
type Finding struct {
	Name    string // of the fact, such as hook
	State   FindingState
	Value   string // what the kernel says
	Meaning string // what that means for the audit
	Remedy  string // what to do; empty if there is nothing to do
}

// FindingState says how well a fact suits the audit.
type FindingState string

// The states.
const (
	FindingOK      FindingState = "ok"
	FindingWarning FindingState = "warning" // the audit starts, and is worse for it
	FindingFailure FindingState = "failure" // no start, or no audit of the device
	FindingUnknown FindingState = "unknown" // the kernel does not tell without attaching a program
)

// Check finds out whether [Open] would succeed, and why not. It takes the same steps, also those of
// loading maps, rings and programs, but attaches and pins nothing, and leaves a pinned audit as it
// is. Whether a driver takes a program is not known before it is asked to: Check goes by the
// features that the driver reports from Linux 6.3 on. The report has all devices if the
// configuration names none, also those that would not be audited as they hold no default route.
// Without capabilities it has what the kernel tells everyone.
func Check(ctx context.Context, config Config) *Report {
	if canonical, err := config.canonical(); err == nil {
		config = canonical
	}
	c := &checker{config: config, devices: map[string]*DeviceReport{}}
	var r Report
	if c.network, r.Err = inspectNetwork(config); r.Err == nil {
		r.Err = c.start(ctx)
	}
	r.Host = c.hostFindings()
	if c.network == nil {
		return &r
	}
	wanted := c.config.wanted(c.network.list())
	for _, name := range c.names() {
		device := c.report(name)
		if c.config.DefaultRoute && !slices.Contains(wanted, name) {
			device.LeftOut, device.Err = true, errNoRoute
		}
		r.Devices = append(r.Devices, device)
	}
	return &r
}

var errNoRoute = errors.New("it holds no default route: to audit it, name it with --audit.device")

// checker is a check under way.
type checker struct {
	config  Config
	network *network
	pinned  map[int]bool // network devices with a hook that is pinned at the pin path, by index
	devices map[string]*DeviceReport
	isAsked bool // the devices were asked
	hooks   *checkHooks
}

// start does what Prepare does, without attaching programs, and undoes it.
func (c *checker) start(ctx context.Context) (err error) {
	logger := slog.New(slog.DiscardHandler)
	config, devices, err := c.config.resolve(logger)
	if err != nil {
		return err
	}
	named, _ := config.named(devices)
	audit, err := loadWith(config, named, rand.Reader, logger, inspectPins, c.newHooks)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, audit.Abandon()) }()
	set := audit.devices
	c.pinned = map[int]bool{}
	for ifindex, l := range set.unclaimedLinks {
		c.pinned[ifindex] = true
		set.unclaimedLinks[ifindex] = &checkLink{c.hooks, ifindex, l}
	}
	err = set.change(func() error { return set.start(ctx, devices) })
	c.isAsked = ctx.Err() == nil
	for _, d := range set.listed {
		report := &DeviceReport{Mode: d.mode}
		if d.prepared != nil {
			report.Mode = d.prepared.mode
		}
		if d.retry.refusal != "" {
			report.Err = errors.New(d.retry.refusal)
		}
		c.devices[d.name] = report
	}
	for name := range set.noIndex {
		c.devices[name] = &DeviceReport{Err: set.noRoom(name)}
	}
	return err
}

func (c *checker) newHooks(k *kernelHooks) hookKernel {
	c.hooks = &checkHooks{kernelHooks: k, network: c.network, attached: map[int]bool{}, released: map[int]bool{}}
	return c.hooks
}

// names returns the names of the devices to report.
func (c *checker) names() (names []string) {
	devices := c.network.list()
	for _, name := range c.config.wanted(devices) {
		if !slices.Contains(names, name) { // the configuration may be invalid
			names = append(names, name)
		}
	}
	if len(c.config.Devices)+len(c.config.Globs) > 0 {
		return names
	}
	for _, d := range devices {
		if !slices.Contains(names, d.Name) { // those with a default route are first
			names = append(names, d.Name)
		}
	}
	return names
}

// report returns what was found about the device of a name.
func (c *checker) report(name string) DeviceReport {
	r := DeviceReport{Name: name}
	if asked := c.devices[name]; asked != nil {
		r.Mode, r.Err = asked.Mode, asked.Err
	}
	i := slices.IndexFunc(c.network.devices, func(d netdev.Details) bool { return d.Name == name })
	if i < 0 {
		if r.Err == nil {
			r.Err = noDevice(name, c.network.list())
		}
		return r
	}
	r.Index = c.network.devices[i].Index
	r.Findings = c.deviceFindings(&c.network.devices[i])
	return r
}
