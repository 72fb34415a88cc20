// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// deviceSet holds the audited devices, and changes them as network devices come and go. A device is
// in one of these states:
//
//	absent    named by the configuration, never seen     in listed, isGone
//	waiting   present, not attached, or not any more     in listed, link == nil
//	prepared  present, has accepted a hook in a start    in listed, prepared != nil
//	up        the program is attached                    in listed, link != nil
//	gone      vanished; has an index until another       isGone; in listed if named,
//	          device needs that                          in gone if not
//	no room   every index is taken by present devices    name in noIndex, no device
//
// Each event has one method, which makes one transition:
//
//	appeared    absent, gone, no room → waiting
//	prepare     waiting → prepared, with a new hook or with one of unclaimedLinks
//	settle      prepared → up; it may take the index of a gone device
//	refused     waiting → waiting, with a longer pause
//	renamed     up → waiting; the hook runs on, in unclaimedLinks for the new name
//	hookLost    up → waiting; the device was replaced, or the hook detached by force
//	vanished    waiting → gone
//	unwanted    up, waiting, absent → gone; the alternative name of the configuration has moved
//	retire      gone → forgotten, and its index is free
//
// The set has one lock, mu. A scrape reads the state with the lock held, so the lock is never held
// while a program is loaded, which takes a tenth of a second, or attached, for which a driver may
// restart the network device. A change that loads and attaches therefore lasts longer than the lock
// is held. Changes exclude each other by isChanging, which is part of the state: a second lock is
// not needed, and close waits for the change under way as for any other. A change is a function
// that is passed to change. It reads the state without the lock, because only changes write the
// state, and it writes the state in functions that are passed to write.
type deviceSet struct {
	config Config
	logger *slog.Logger
	kernel hookKernel
	pool   indexPool

	mu         sync.Mutex // guards what follows, and the fields of the devices
	changed    *sync.Cond // signals the end of a change
	isChanging bool
	isClosed   bool

	isStarting      bool // a start has begun and is not committed
	isReplacingMaps bool // the start replaces pinned maps

	named   []string          // names of the devices that the configuration names
	aliases map[string]string // alternative names in the configuration, with the kernel's names

	listed         []*device       // the named ones, then those that match a glob
	gone           []*device       // matched a glob, have vanished and still have their index
	noIndex        map[string]bool // names of devices that get no index
	unclaimedLinks map[int]xdpLink // hooks without a device, by the index of the network device
	pinnedFor      map[int]string  // names that pinned hooks count for; used in changes

	// What follows is used in changes only.
	resyncs          int
	retries          map[string]backoff // of forgotten devices without an index
	isNoRoomReported bool               // since there was room
}

// device is one audited device. It keeps its program while it has no link, to attach it again.
type device struct {
	name    string
	index   int  // in the device table: of its counters, its flows and its events; −1 for none yet
	isNamed bool // by the configuration, and not only matched by a glob
	isGone  bool // no network device has the name
	wasUp   bool // it was attached at least once

	ifindex   int // of the network device at the last attempt
	linkLayer netdev.LinkLayer
	boundTo   int  // as in deviceIdentity
	isStale   bool // the program was loaded for another link layer, or is bound
	driver    string
	mode      Mode           // empty while it is not attached
	program   *loadedProgram // nil until the first attempt
	id        ebpf.ProgramID // of the program that was loaded last
	tag       string
	link      xdpLink // nil while it is not attached

	prepared *preparedHook // nil unless commit has to attach its program

	reason string // why it is not attached; empty while it is

	keepsHook bool // its pinned hook counts on, as it got no program; used in changes

	retry backoff // used in changes only
}

// hasIndex reports whether the device has counters. Without, the kernel runs no program for it.
func (d *device) hasIndex() bool { return d.index >= 0 }

// isCounted reports whether the counters of the device are shown.
func (d *device) isCounted() bool { return d.program != nil && !d.isGone }

// newDeviceSet returns a set without devices. Its kernel and its pool are set before the first
// device appears.
func newDeviceSet(config Config, logger *slog.Logger) *deviceSet {
	s := &deviceSet{config: config, named: config.Devices, logger: logger, noIndex: map[string]bool{}, retries: map[string]backoff{}, unclaimedLinks: map[int]xdpLink{}}
	s.changed = sync.NewCond(&s.mu)
	return s
}

// change waits for a change under way, calls f while nobody else changes the set, and returns the
// error of f. After close it returns nil and does not call f: there is nothing left to change, and
// Close and Abandon may be called again.
func (s *deviceSet) change(f func() error) error {
	if !s.beginChange() {
		return nil
	}
	defer s.endChange()
	return f()
}

func (s *deviceSet) beginChange() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.isChanging {
		s.changed.Wait()
	}
	s.isChanging = !s.isClosed
	return s.isChanging
}

func (s *deviceSet) endChange() {
	s.write(func() { s.isChanging = false })
	s.changed.Broadcast()
}

// write calls f, which changes the state, while nobody reads it.
func (s *deviceSet) write(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// appeared returns the listed device of that name, and lists it if it is not yet listed. A
// device that is named gets a free index at once, because others must not take the last one
// while it is absent. Every other device without an index gets one when its network device
// accepts the program. Both results are nil if there is no index for it, and that was reported
// for another device before.
func (s *deviceSet) appeared(name string) (*device, error) {
	hasName := func(d *device) bool { return d.name == name }
	if i := slices.IndexFunc(s.listed, hasName); i >= 0 {
		return s.listed[i], nil
	}
	if i := slices.IndexFunc(s.gone, hasName); i >= 0 {
		d := s.gone[i]
		s.write(func() {
			s.gone = slices.Delete(s.gone, i, i+1)
			s.listed = append(s.listed, d)
			s.pool.table.setGone(d.index, false)
		})
		return d, nil
	}
	d := &device{name: name, index: s.pool.table.find(name), isNamed: slices.Contains(s.named, name)}
	if !d.hasIndex() && !d.isNamed && !s.hasRoom() {
		isFirst := len(s.noIndex) == 0 && !s.isNoRoomReported
		s.write(func() { s.noIndex[name] = true })
		if !isFirst {
			return nil, nil
		}
		s.isNoRoomReported = true
		return nil, s.noRoom(name)
	}
	if !d.hasIndex() && d.isNamed && canHaveEntry(name) {
		if id, isDisplacing, err := s.identify(d); err == nil && !isDisplacing {
			if err := s.takeIndex(d, id); err != nil {
				return nil, err
			}
		}
	}
	d.retry = s.retries[name]
	delete(s.retries, name)
	s.write(func() {
		delete(s.noIndex, name)
		s.listed = append(s.listed, d)
		if d.hasIndex() {
			s.pool.table.setGone(d.index, false)
		}
	})
	if d.hasIndex() {
		s.pool.setOwner(d.index, name)
	}
	return d, nil
}

// claimIndices keeps the indices of wanted devices from others.
func (s *deviceSet) claimIndices(names []string) {
	for _, name := range names {
		if index := s.pool.table.find(name); index >= 0 {
			s.write(func() { s.pool.table.setGone(index, false) })
		}
	}
}

// loaded notes the program of a device.
func (s *deviceSet) loaded(d *device, p *loadedProgram) {
	s.write(func() { d.program, d.id, d.tag = p, p.id, p.tag })
}

// attached notes that the program of a device runs on it. The hook of no other device is on that
// network device any more, so that the hook does not end with the index of an old name.
func (s *deviceSet) attached(d *device, p *loadedProgram, l xdpLink, mode Mode) {
	if old := d.program; old != nil && old != p {
		defer s.closeProgram(d, old)
	}
	s.write(func() {
		entries := s.pool.table.entries
		for i := range entries {
			if i != d.index && int(entries[i].ifindex) == d.ifindex {
				entries[i].ifindex = 0
			}
		}
		d.program, d.id, d.tag, d.isStale = p, p.id, p.tag, false
		d.link, d.mode, d.wasUp, d.reason = l, mode, true, ""
	})
}

// renamed keeps the hook of a device for another name of the network device that the hook is on.
func (s *deviceSet) renamed(d *device) {
	s.write(func() {
		s.unclaimedLinks[d.ifindex] = d.link
		d.link, d.mode, d.reason = nil, "", "the device was renamed"
	})
}

// hookLost removes the hook of a device that does not run it any more: the hook may run elsewhere.
func (s *deviceSet) hookLost(d *device, reason string) {
	l := d.link
	s.write(func() { d.link, d.mode, d.reason = nil, "", reason })
	if err := s.dropLink(l, d.ifindex); err != nil {
		s.logger.Warn("Hook could not be removed", "device", d.name, "err", err)
	}
}

// vanished notes that no network device has the name of the device any more.
func (s *deviceSet) vanished(d *device) {
	s.write(func() {
		d.isGone = true
		d.retry.vanished()
		if !d.isNamed {
			s.forget(d)
		}
	})
}

// forget removes a device from the list. It keeps its index until another device needs that,
// and the memory of its attempts until it may be tried as often as any other. The lock is held.
func (s *deviceSet) forget(d *device) {
	s.listed = slices.DeleteFunc(s.listed, func(other *device) bool { return other == d })
	if d.hasIndex() {
		s.gone = append(s.gone, d)
		s.pool.table.setGone(d.index, true)
	} else if d.retry.atOnce > 0 {
		s.retries[d.name] = d.retry
	}
}

// refused notes why a device, as it was at the attempt, was not attached. It returns the reason
// unless that is the reason of the attempt before.
func (s *deviceSet) refused(d *device, tried netdev.Device, err error) error {
	s.write(func() { d.reason = err.Error() })
	if d.retry.failed(tried, err) {
		return err
	}
	return nil
}

// forgetNoIndex forgets devices without an index that are not there any more.
func (s *deviceSet) forgetNoIndex(here map[string]netdev.Device) {
	s.write(func() {
		for name := range s.noIndex {
			if _, isHere := here[name]; !isHere {
				delete(s.noIndex, name)
			}
		}
	})
}

// close closes all links, which detaches the hooks that are not pinned, and all programs. It is
// called in a change. No other change and no call of each begins after it.
func (s *deviceSet) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.isClosed = true
	var errs []error
	for _, d := range slices.Concat(s.listed, s.gone) {
		if d.prepared != nil {
			errs = append(errs, s.discardLocked(d, d.prepared))
			d.prepared = nil
		}
		if err := s.unload(d); err != nil {
			errs = append(errs, fmt.Errorf("detaching %s: %w", d.name, err))
		}
	}
	for _, l := range s.unclaimedLinks {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// unload closes the link of a device, which detaches the program unless the link is pinned, and
// unloads the program. The lock is held.
func (s *deviceSet) unload(d *device) error {
	var errs []error
	if d.link != nil {
		errs = append(errs, d.link.Close())
	}
	if d.program != nil {
		errs = append(errs, s.kernel.unload(d.program))
	}
	d.link, d.program = nil, nil
	return errors.Join(errs...)
}

// each calls f for each listed device in their order, with the lock held, and so not while the
// state or the memory of the counters changes hands. After close it does nothing.
func (s *deviceSet) each(f func(d *device)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed {
		return
	}
	for _, d := range s.listed {
		f(d)
	}
}

// runs returns what the kernel accounts for the program of each listed device; nil where only the
// privileged may read that, as on kernels before 5.19.
func (s *deviceSet) runs() (runs []Runs, err error) {
	s.each(func(d *device) {
		if d.program == nil || err != nil {
			return
		}
		stats, failure := d.program.Stats()
		if failure != nil {
			err = fmt.Errorf("reading the run time of the program on %s: %w", d.name, failure)
			return
		}
		runs = append(runs, Runs{Device: d.name, Count: stats.RunCount, TimeNs: uint64(stats.Runtime)})
	})
	if errors.Is(err, unix.EPERM) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return runs, nil
}

// slots counts the indices; zero after close. An index is kept for each device that is named.
func (s *deviceSet) slots() DeviceSlots {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed {
		return DeviceSlots{}
	}
	entries := s.pool.table.entries
	slots := DeviceSlots{Total: len(entries), Refused: len(s.noIndex)}
	isShown := make([]bool, len(entries)) // by index: whether the counters are those of a device
	for _, d := range s.listed {
		if d.hasIndex() || d.isNamed {
			slots.Used++
		}
		if d.isCounted() {
			isShown[d.index] = true
		}
	}
	slots.Used = min(slots.Used, slots.Total)
	for i := range entries {
		slots.GoneFlows += entries[i].goneFlows
		if !isShown[i] {
			slots.GoneFlows += s.pool.counters.netInserts(i)
		}
	}
	return slots
}
