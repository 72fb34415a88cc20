// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import "slices"

// takeOver opens the hooks that are pinned, for the devices that they are on. If the maps are those
// of the process before, it also accounts for the events that were in that process's rings. All
// devices of the table are gone until they appear.
func (a *Audit) takeOver() error {
	links, err := a.pins.loadLinks()
	a.devices.unclaimedLinks = links
	if err != nil {
		return err
	}
	if a.exchanges != nil {
		for ifindex, l := range links {
			links[ifindex] = &exchangeLink{xdpLink: l, ifindex: ifindex}
		}
	}
	table := a.maps.devices
	if a.maps.isTakenOver {
		a.before = slices.Clone(table.entries)
	}
	for i := range table.entries {
		if table.entries[i].goneNs == 0 {
			table.setGone(i, true)
		}
	}
	if !a.maps.isTakenOver {
		return nil
	}
	rings := a.maps.byName[programMapAuditEvents]
	for ring := range rings.MaxEntries() {
		// The kernel deletes the rings of a process that has ended, at once or soon.
		_ = rings.Delete(ring)
	}
	awaitPrograms()
	gap := a.devices.pool.readerGap()
	a.logger.Info("Audit taken over, with its counters and baselines", "path", a.pins.path, "hooks", len(links), "reader_gap", gap)
	return nil
}
