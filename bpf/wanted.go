// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"
	"slices"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// wanted returns the names of the devices to audit: the named ones, whether they exist or not, and
// then those that a glob matches, each once. Devices get their indices in this order.
func (c Config) wanted(devices []netdev.Device) []string {
	names := slices.Clone(c.Devices)
	for _, glob := range c.Globs {
		for _, name := range netdev.Match(glob, devices) {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// checkAnyIsHere returns an error if there is no device to audit and there has to be one. Open
// calls it before it takes anything from an audit that is pinned, such as the index of a device.
func (c Config) checkAnyIsHere(devices []netdev.Device) error {
	if c.AllowNone {
		return nil
	}
	var missing []error
	for _, name := range c.Devices {
		if netdev.Has(name, devices) {
			return nil
		}
		missing = append(missing, noDevice(name, devices))
	}
	for _, glob := range c.Globs {
		if len(netdev.Match(glob, devices)) > 0 {
			return nil
		}
		missing = append(missing, noMatch(glob, devices))
	}
	return joinInOneLine(missing)
}

// expandGlobs returns the configuration with the devices that its globs match now instead of the
// globs.
func (c Config) expandGlobs(devices []netdev.Device) (Config, error) {
	for _, glob := range c.Globs {
		if len(netdev.Match(glob, devices)) == 0 {
			return c, noMatch(glob, devices)
		}
	}
	c.Devices, c.Globs = c.wanted(devices), nil
	return c, c.Validate()
}

func noDevice(name string, devices []netdev.Device) error {
	return fmt.Errorf("device %s does not exist: the devices are %s", name, netdev.Names(devices))
}

func noMatch(glob string, devices []netdev.Device) error {
	return fmt.Errorf("no device matches %s: the devices are %s", glob, netdev.Names(devices))
}
