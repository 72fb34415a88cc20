// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package history

import (
	"slices"
	"sync"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

// MaxFlags is the number of events that are kept.
const MaxFlags = 200

// Flags keeps the last events. Its methods are safe for concurrent use.
type Flags struct {
	mu     sync.Mutex
	events ring[bpf.Event]
	total  uint64
}

// NewFlags returns an empty Flags.
func NewFlags() *Flags { return &Flags{events: ring[bpf.Event]{most: MaxFlags}} }

// Add keeps a copy of an event.
func (f *Flags) Add(event *bpf.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events.add(*event)
	f.total++
}

// Last returns the events from the newest to the oldest, and the number of all that were added.
func (f *Flags) Last() (events []bpf.Event, total uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	events = f.events.all()
	slices.Reverse(events)
	return events, f.total
}
