// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// hookKernel is what a deviceSet needs of the kernel to attach programs. Tests of the set have a
// fake one.
type hookKernel interface {
	// listDevices lists the network devices, with their default routes if these matter.
	listDevices() ([]netdev.Device, error)
	// subscribe reports changes of network devices, and of routes if these matter.
	subscribe() (subscription, error)
	// lookUp returns the network devices with these indices, in their order, and a zero device for
	// an index that none has.
	lookUp(indices ...int) ([]netdev.Device, error)
	// driver returns the name of the driver of a network device, empty if the kernel does not name
	// one.
	driver(name string) string
	// tellsVLANTags reports whether programs that are bound to a network device get the VLAN tags
	// that its driver has removed.
	tellsVLANTags(ifindex int) bool
	// load loads the program of a device. offloadTo is the index of the network device whose
	// hardware runs the program, 0 for the CPU.
	load(id deviceIdentity, offloadTo int) (*loadedProgram, error)
	// loadPlaceholder loads a program that passes every packet and counts none.
	loadPlaceholder() (*loadedProgram, error)
	// unload closes a program. What is attached stays attached.
	unload(p *loadedProgram) error
	// attach attaches a program to a network device.
	attach(p *loadedProgram, ifindex int, mode Mode) (xdpLink, error)
	// explain returns the error of an attempt to attach, with its cause and a remedy.
	explain(d *device, p *loadedProgram, mode Mode, err error) error
	// pin pins a link if hooks are pinned. A new one is unpinned if the start fails.
	pin(l xdpLink, ifindex int, isNew bool) error
	// unpin removes the pin of the hook on a network device, if there is one.
	unpin(ifindex int) error
}

// xdpLink is a hook: a program on a network device. Closing it detaches the program unless the link
// is pinned.
type xdpLink interface {
	// isOn reports whether the link holds the program with that id on a network device with that
	// index. A link outlives its network device, but does not name its index then. It does not name
	// the network namespace: to see whether a device of this one runs a program, look it up.
	isOn(ifindex int, id ebpf.ProgramID) bool
	// replace replaces the program.
	replace(p *loadedProgram) error
	// program opens the program that is attached; nil if that is not allowed, as it takes
	// CAP_SYS_ADMIN.
	program() *loadedProgram
	Pin(path string) error
	Detach() error
	Close() error
}

// loadedProgram is a program that is loaded: that of a device, or a placeholder.
type loadedProgram struct {
	*ebpf.Program
	id     ebpf.ProgramID
	tag    string
	egress *ebpf.Program // of outgoing packets; nil unless response times are measured
}

// kernelHooks is the hookKernel of an audit.
type kernelHooks struct {
	maps   *auditMaps
	config Config
	pins   *pins // nil unless hooks are pinned

	exchanges *exchanges // nil unless response times are measured
}

func (k *kernelHooks) listDevices() ([]netdev.Device, error) { return k.config.listDevices() }

func (k *kernelHooks) subscribe() (subscription, error) {
	return netdev.Subscribe(k.config.DefaultRoute)
}

func (k *kernelHooks) lookUp(indices ...int) ([]netdev.Device, error) {
	return netdev.LookUp(indices...)
}

func (k *kernelHooks) driver(name string) string { return netdev.Driver(name) }

func (k *kernelHooks) tellsVLANTags(ifindex int) bool {
	features, err := netdev.ListFeatures([]int{ifindex})
	return err == nil && features[ifindex].RxMetadata&netdev.MetadataVLANTag != 0
}

// load loads a program without binding it to its device if the kernel does not take it otherwise.
func (k *kernelHooks) load(id deviceIdentity, offloadTo int) (*loadedProgram, error) {
	p, err := k.loadProgram(id, offloadTo)
	if err != nil && id.boundTo != 0 {
		id.boundTo = 0
		return k.loadProgram(id, offloadTo)
	}
	return p, err
}

func (k *kernelHooks) loadProgram(id deviceIdentity, offloadTo int) (*loadedProgram, error) {
	spec, err := k.maps.programSpec(k.config, id)
	if err != nil {
		return nil, err
	}
	if offloadTo != 0 {
		spec.Programs[programProgXdpAudit].Ifindex = uint32(offloadTo)
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: k.maps.replacements()})
	if err != nil {
		return nil, err
	}
	defer collection.Close()
	info, err := collection.Programs[programProgXdpAudit].Info()
	if err != nil {
		return nil, fmt.Errorf("reading back the program: %w", err)
	}
	programID, _ := info.ID()
	p := &loadedProgram{Program: collection.DetachProgram(programProgXdpAudit), id: programID, tag: info.Tag}
	if k.exchanges != nil {
		p.egress = collection.DetachProgram(leakProgTcExchange)
		k.exchanges.nameDevice(id.index, id.name)
	}
	return p, nil
}

func (k *kernelHooks) loadPlaceholder() (*loadedProgram, error) {
	const xdpPass = 2
	spec := &ebpf.ProgramSpec{
		Name: "xdp_audit_wait", Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()},
	}
	if k.maps.hasFrags { // a device may refuse a program without the flag
		spec.Flags = unix.BPF_F_XDP_HAS_FRAGS
	}
	p, err := ebpf.NewProgram(spec)
	if err != nil {
		return nil, err
	}
	info, err := p.Info()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reading back the program: %w", err), p.Close())
	}
	id, _ := info.ID()
	return &loadedProgram{Program: p, id: id, tag: info.Tag}, nil
}

func (k *kernelHooks) unload(p *loadedProgram) error {
	err := p.Close()
	if p.egress != nil {
		err = errors.Join(err, p.egress.Close())
	}
	return err
}

var attachFlags = map[Mode]link.XDPAttachFlags{
	ModeDriver: link.XDPDriverMode, ModeGeneric: link.XDPGenericMode, ModeHW: link.XDPOffloadMode,
}

func (k *kernelHooks) attach(p *loadedProgram, ifindex int, mode Mode) (xdpLink, error) {
	l, err := link.AttachXDP(link.XDPOptions{Program: p.Program, Interface: ifindex, Flags: attachFlags[mode]})
	if err != nil {
		return nil, err
	}
	if p.egress == nil {
		return kernelLink{l}, nil
	}
	both, err := newExchangeLink(kernelLink{l}, ifindex, p.egress)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return both, nil
}

func (k *kernelHooks) explain(d *device, p *loadedProgram, mode Mode, err error) error {
	var egress *egressError
	if errors.As(err, &egress) {
		return &refusal{fmt.Errorf("device %s: %w", d.name, err), true} // in no other mode either
	}
	return explainRefusal(d, p, mode, err, k.config.PinPath)
}

func (k *kernelHooks) pin(l xdpLink, ifindex int, isNew bool) error {
	if k.pins == nil {
		return nil
	}
	return k.pins.pinLink(l, ifindex, isNew)
}

func (k *kernelHooks) unpin(ifindex int) error {
	if k.pins == nil {
		return nil
	}
	return k.pins.unpinLink(ifindex)
}

// kernelLink is the xdpLink of an audit.
type kernelLink struct{ link.Link }

func (l kernelLink) isOn(ifindex int, id ebpf.ProgramID) bool {
	info, err := l.Info()
	// Before 5.19, reading a link takes privileges, which this process may have dropped.
	if errors.Is(err, unix.EPERM) {
		return id != 0 && netdev.ProgramID(ifindex) == uint32(id)
	}
	return err == nil && info.XDP() != nil && int(info.XDP().Ifindex) == ifindex && info.Program == id
}

func (l kernelLink) replace(p *loadedProgram) error { return l.Update(p.Program) }

func (l kernelLink) program() *loadedProgram {
	info, err := l.Info()
	if err != nil {
		return nil
	}
	p, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return nil
	}
	return &loadedProgram{Program: p, id: info.Program}
}
