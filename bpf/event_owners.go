// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

// owners maps the owners in events to devices, by index. An event may still be in a ring when its
// device's index is assigned to another device, so each index also has the owner before. Owners are
// replaced as a whole when an index is assigned.
type owners []indexOwners

type indexOwners struct{ current, before eventOwner }

type eventOwner struct {
	id       uint32  // as in the event; 0 for none, as generations begin at 1
	name     string  // of the device
	received *uint64 // count of its events; nil for the owner before, whose series has ended
}

// find returns the device of an event, nil if no device has that owner.
func (o owners) find(id uint32) *eventOwner {
	index := id & (1<<ownerShift - 1)
	if id == 0 || int(index) >= len(o) {
		return nil
	}
	for _, owner := range []*eventOwner{&o[index].current, &o[index].before} {
		if owner.id == id {
			return owner
		}
	}
	return nil
}

// with returns a copy in which an index has a new owner.
func (o owners) with(index int, owner eventOwner) owners {
	changed := append(owners(nil), o...)
	if before := changed[index].current; before.id != owner.id {
		before.received = nil
		changed[index].before = before
	}
	changed[index].current = owner
	return changed
}
