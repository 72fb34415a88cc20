// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"
	"log/slog"
	"slices"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
)

// canonical returns the configuration with the one text of each name that the audit uses for it.
func (c Config) canonical() (Config, error) {
	c.Devices = slices.Clone(c.Devices)
	for i, given := range c.Devices {
		name, err := printable.ParseName(given)
		if err != nil {
			return c, invalid("Devices", "invalid device name %q: %w", given, err)
		}
		c.Devices[i] = name
	}
	return c, nil
}

// named returns the kernel's names of the devices that the configuration names, each once, and the
// alternative names among those in the configuration, each with the kernel's name. The name of a
// device that does not exist is as in the configuration.
func (c Config) named(devices []netdev.Device) (names []string, aliases map[string]string) {
	aliases = map[string]string{}
	isNamed := map[string]bool{}
	for _, name := range c.Devices {
		if d, ok := netdev.Find(name, devices); ok && d.Name != name {
			aliases[name] = d.Name
			name = d.Name
		}
		if !isNamed[name] {
			isNamed[name] = true
			names = append(names, name)
		}
	}
	return names, aliases
}

// logAliases logs which devices the alternative names in the configuration stand for, as far as
// that is news. Such a device may be in the configuration under another name, too; it is one
// device.
func (c Config) logAliases(logger *slog.Logger, before, now map[string]string) {
	for _, name := range c.Devices {
		if device := now[name]; device != "" && device != before[name] {
			logger.Info("Name stands for a device: auditing the device once, under the kernel's name", "name", name, "device", device)
		}
	}
}

// listDevices lists the network devices, with their default routes if these matter.
func (c Config) listDevices() ([]netdev.Device, error) {
	devices, err := netdev.List()
	if err == nil && c.DefaultRoute {
		err = netdev.NoteDefaultRoutes(devices)
	}
	return devices, err
}

// wanted returns the names of the devices to audit: the named ones, whether they exist or not, and
// then those that a glob matches or that hold a default route, each once. Devices get their indices
// in this order.
func (c Config) wanted(devices []netdev.Device) []string {
	names, _ := c.named(devices)
	return c.withMatches(names, devices)
}

// withMatches returns names and, after them, those of devices that a glob matches and of those that
// hold a default route, if they are wanted, each once.
func (c Config) withMatches(names []string, devices []netdev.Device) []string {
	names = slices.Clone(names)
	for _, glob := range c.Globs {
		for _, name := range netdev.Match(glob, devices) {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	for i := range devices {
		if c.DefaultRoute && devices[i].HasDefaultRoute && !slices.Contains(names, devices[i].Name) {
			names = append(names, devices[i].Name)
		}
	}
	return names
}

// unmatched returns an error for each glob that matches no device, and one if no device holds a
// default route and such devices are wanted.
func (c Config) unmatched(devices []netdev.Device) (missing []error) {
	for _, glob := range c.Globs {
		if len(netdev.Match(glob, devices)) == 0 {
			missing = append(missing, noMatch(glob, devices))
		}
	}
	if c.DefaultRoute && !slices.ContainsFunc(devices, func(d netdev.Device) bool { return d.HasDefaultRoute }) {
		missing = append(missing, noRoute(devices))
	}
	return missing
}

// checkAnyIsHere returns an error if there is no device to audit and there has to be one. Open
// calls it before it takes anything from an audit that is pinned, such as the index of a device.
func (c Config) checkAnyIsHere(devices []netdev.Device) error {
	if c.AllowNone {
		return nil
	}
	var missing []error
	for _, name := range c.Devices {
		if _, isHere := netdev.Find(name, devices); isHere {
			return nil
		}
		missing = append(missing, noDevice(name, devices))
	}
	if len(c.withMatches(nil, devices)) > 0 {
		return nil
	}
	return joinInOneLine(append(missing, c.unmatched(devices)...))
}

// expand returns the configuration with the kernel's names of the devices that it stands for now.
func (c Config) expand(devices []netdev.Device) (Config, error) {
	if missing := c.unmatched(devices); len(missing) > 0 {
		return c, missing[0]
	}
	c.Devices, c.Globs, c.DefaultRoute = c.wanted(devices), nil, false
	return c, c.Validate()
}

// noteNames notes which devices the names of the configuration stand for, and returns the names of
// all wanted devices. It forgets the devices that are not wanted any more: alternative names come
// and go, and move to other devices.
func (s *deviceSet) noteNames(devices []netdev.Device) (wanted []string) {
	named, aliases := s.config.named(devices)
	s.config.logAliases(s.logger, s.aliases, aliases)
	s.write(func() {
		s.named, s.aliases = named, aliases
		for _, d := range s.listed {
			d.isNamed = slices.Contains(named, d.name)
		}
	})
	wanted = s.config.withMatches(named, devices)
	for _, d := range slices.Clone(s.listed) {
		if !slices.Contains(wanted, d.name) {
			s.unwanted(d)
		}
	}
	return wanted
}

// unwanted forgets a device to which no name of the configuration belongs any more. Its hook is
// left in unclaimedLinks.
func (s *deviceSet) unwanted(d *device) {
	if d.link != nil {
		s.renamed(d)
	}
	s.write(func() {
		d.isGone = true
		d.retry.vanished()
		s.forget(d)
	})
}

func noDevice(name string, devices []netdev.Device) error {
	return &absentError{fmt.Errorf("device %s does not exist: the devices are %s", name, netdev.Names(devices)), slog.LevelWarn}
}

func noMatch(glob string, devices []netdev.Device) error {
	return &absentError{fmt.Errorf("no device matches %s: the devices are %s", glob, netdev.Names(devices)), slog.LevelInfo}
}

func noRoute(devices []netdev.Device) error {
	return &absentError{fmt.Errorf("no device holds a default route: name one with --audit.device (XDP_INTERFACE): the devices are %s",
		netdev.Names(devices)), slog.LevelInfo}
}
