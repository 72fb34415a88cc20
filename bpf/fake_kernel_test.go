// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// fakeKernel is a hookKernel of network devices in memory.
type fakeKernel struct {
	devices map[string]int    // indices of the network devices
	aliases map[string]string // alternative names, with the names of their devices
	hooks   map[int]*fakeHook // by index of their network device

	vlanTags     map[int]bool      // indices of network devices whose driver tells VLAN tags
	isPinning    bool              // hooks are pinned
	isNewPin     map[int]bool      // whether a pin is unpinned when the start fails
	masters      map[string]string // bridges of devices, by name
	refused      map[string]bool   // devices that refuse every program
	refusedModes map[Mode]bool
	accepted     map[Mode]bool    // modes that no device refuses
	isSecret     bool             // programs may not be opened by their id
	loadError    error            // of each program
	loadErrors   map[string]error // of the programs of devices
	replaceError error            // of each hook
	lookUpError  error
	refusal      error // what explain returns; nil for a usual one

	loads, attachments int
	lookUps, lists     int // of one device each, and of all

	changes     fakeSubscription
	flags       net.Flags // of all devices
	attempts    int       // to attach a program
	programs    int       // that are loaded and not closed
	lastProgram ebpf.ProgramID
	owners      map[ebpf.ProgramID]deviceIdentity // the device that a program counts for

	onAttach, onList   func()
	onReplace          func()
	isLoading, mayLoad chan struct{} // of the next program, if that is to wait
}

// fakeHook is a program on a network device.
type fakeHook struct {
	mode     Mode
	program  ebpf.ProgramID
	isPinned bool
	handles  int // links that are open
}

func newFakeKernel() *fakeKernel {
	return &fakeKernel{
		devices: map[string]int{}, aliases: map[string]string{}, hooks: map[int]*fakeHook{}, isNewPin: map[int]bool{}, owners: map[ebpf.ProgramID]deviceIdentity{},
		refused: map[string]bool{}, refusedModes: map[Mode]bool{},
	}
}

// list lists the network devices in the order of their indices.
func (k *fakeKernel) list() []netdev.Device {
	var devices []netdev.Device
	for name, index := range k.devices {
		d := netdev.Device{Name: name, Index: index, Flags: k.flags, Master: k.devices[k.masters[name]]}
		for alias, device := range k.aliases {
			if device == name {
				d.AltNames += alias + " "
			}
		}
		if hook := k.hooks[index]; hook != nil {
			d.XDP, d.Program = attachedModes[hook.mode], uint32(hook.program)
		}
		devices = append(devices, d)
	}
	slices.SortFunc(devices, func(a, b netdev.Device) int { return cmp.Compare(a.Index, b.Index) })
	return devices
}

// remove removes a network device with its hook.
func (k *fakeKernel) remove(name string) {
	k.detach(k.devices[name])
	delete(k.devices, name)
}

// detach detaches a hook by force.
func (k *fakeKernel) detach(ifindex int) { delete(k.hooks, ifindex) }

// pinnedHook attaches a hook as a process before has pinned it. Hooks of this process are pinned as
// well.
func (k *fakeKernel) pinnedHook(ifindex int, mode Mode, program ebpf.ProgramID) {
	k.isPinning = true
	k.hooks[ifindex] = &fakeHook{mode: mode, program: program, isPinned: true}
}

// pinnedLinks opens the pinned hooks.
func (k *fakeKernel) pinnedLinks() map[int]xdpLink {
	links := map[int]xdpLink{}
	for ifindex := range k.hooks {
		links[ifindex] = k.open(ifindex)
	}
	return links
}

func (k *fakeKernel) open(ifindex int) *fakeLink {
	k.hooks[ifindex].handles++
	return &fakeLink{kernel: k, ifindex: ifindex, hook: k.hooks[ifindex]}
}

// discardNew unpins the hooks that are new.
func (k *fakeKernel) discardNew() {
	for ifindex, isNew := range maps.Clone(k.isNewPin) {
		if isNew {
			_ = k.unpin(ifindex)
		}
	}
}

// release detaches a hook that nothing holds.
func (k *fakeKernel) release(ifindex int, hook *fakeHook) {
	if !hook.isPinned && hook.handles == 0 && k.hooks[ifindex] == hook {
		delete(k.hooks, ifindex)
	}
}

func (k *fakeKernel) listDevices() ([]netdev.Device, error) {
	k.lists++
	if k.onList != nil {
		k.onList()
	}
	return k.list(), nil
}

func (k *fakeKernel) subscribe() (subscription, error) { return k.changes, nil }

// fakeSubscription reports changes, as if the kernel reported them all the time.
type fakeSubscription chan struct{}

func (s fakeSubscription) Changes() <-chan struct{} { return s }

func (fakeSubscription) Close() {}

func (k *fakeKernel) lookUp(indices ...int) ([]netdev.Device, error) {
	if k.lookUpError != nil {
		return nil, k.lookUpError
	}
	devices := make([]netdev.Device, len(indices))
	for i, index := range indices {
		k.lookUps++
		devices[i] = withIndex(index, k.list())
	}
	return devices, nil
}

func (*fakeKernel) driver(string) string { return "fake" }

func (k *fakeKernel) tellsVLANTags(ifindex int) bool { return k.vlanTags[ifindex] }

func (k *fakeKernel) load(id deviceIdentity, _ int) (*loadedProgram, error) {
	k.loads++
	if k.isLoading != nil {
		close(k.isLoading)
		<-k.mayLoad
		k.isLoading = nil
	}
	if k.loadError != nil {
		return nil, k.loadError
	}
	if err := k.loadErrors[id.name]; err != nil {
		return nil, err
	}
	k.programs++
	k.lastProgram++
	k.owners[k.lastProgram] = id
	return newFakeProgram(k.lastProgram), nil
}

func (k *fakeKernel) loadPlaceholder() (*loadedProgram, error) {
	if k.loadError != nil {
		return nil, k.loadError
	}
	k.programs++
	k.lastProgram++
	return newFakeProgram(k.lastProgram), nil
}

func newFakeProgram(id ebpf.ProgramID) *loadedProgram {
	return &loadedProgram{id: id, tag: "fake"}
}

func (k *fakeKernel) unload(*loadedProgram) error {
	k.programs--
	return nil
}

func (k *fakeKernel) attach(p *loadedProgram, ifindex int, mode Mode) (xdpLink, error) {
	k.attempts++
	for name, master := range k.masters {
		if k.devices[name] == ifindex && k.hooks[k.devices[master]] != nil {
			return nil, unix.EEXIST
		}
	}
	isRefused := k.refusedModes[mode]
	for name := range k.refused {
		isRefused = isRefused || k.devices[name] == ifindex
	}
	switch {
	case isRefused && !k.accepted[mode]:
		return nil, unix.EOPNOTSUPP
	case k.hooks[ifindex] != nil:
		return nil, unix.EBUSY
	}
	k.attachments++
	if k.onAttach != nil {
		k.onAttach()
	}
	k.hooks[ifindex] = &fakeHook{mode: mode, program: p.id}
	return k.open(ifindex), nil
}

func (k *fakeKernel) explain(d *device, _ *loadedProgram, mode Mode, err error) error {
	if k.refusal != nil {
		return k.refusal
	}
	return fmt.Errorf("device %s refuses mode %s: %w", d.name, mode, err)
}

func (k *fakeKernel) pin(_ xdpLink, ifindex int, isNew bool) error {
	if k.isPinning {
		k.hooks[ifindex].isPinned = true
		k.isNewPin[ifindex] = isNew
	}
	return nil
}

func (k *fakeKernel) unpin(ifindex int) error {
	delete(k.isNewPin, ifindex)
	if hook := k.hooks[ifindex]; hook != nil {
		hook.isPinned = false
		k.release(ifindex, hook)
	}
	return nil
}

// fakeLink is an open handle of a hook.
type fakeLink struct {
	kernel  *fakeKernel
	ifindex int
	hook    *fakeHook
}

func (l *fakeLink) isOn(ifindex int, id ebpf.ProgramID) bool {
	return ifindex == l.ifindex && l.kernel.hooks[ifindex] == l.hook && l.hook.program == id
}

func (l *fakeLink) replace(p *loadedProgram) error {
	if l.kernel.replaceError != nil {
		return l.kernel.replaceError
	}
	if l.kernel.onReplace != nil {
		l.kernel.onReplace()
	}
	l.hook.program = p.id
	return nil
}

func (l *fakeLink) program() *loadedProgram {
	if l.kernel.isSecret {
		return nil
	}
	l.kernel.programs++
	return newFakeProgram(l.hook.program)
}

func (*fakeLink) Pin(string) error { panic("the fake kernel pins") }

func (*fakeLink) Detach() error { panic("nothing detaches by force") }

func (l *fakeLink) Close() error {
	l.hook.handles--
	l.kernel.release(l.ifindex, l.hook)
	return nil
}

// countInserts counts new flows, as the program does: each is the flow of a packet, whose bytes are
// counted as well.
func countInserts(block *programDeviceCounters, n uint64) {
	block.Protocols[FamilyIPv4][ProtocolUDP].Bytes = 60 * n
	block.FlowInserts = n
}
