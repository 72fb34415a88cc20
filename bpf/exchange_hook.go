// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"maps"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// loadProgram returns the object with the program of a device, under the name programProgXdpAudit
// in all cases.
func (c Config) loadProgram() (*ebpf.CollectionSpec, error) {
	if !c.measuresExchanges() {
		return loadProgram()
	}
	spec, err := loadLeak()
	if err != nil {
		return nil, err
	}
	both := spec.Programs[leakProgXdpExchange]
	delete(spec.Programs, leakProgXdpExchange)
	both.Name = programProgXdpAudit
	spec.Programs[programProgXdpAudit] = both
	return spec, nil
}

// configureExchanges configures the part of an object that measures response times.
func (t *auditMaps) configureExchanges(spec *ebpf.CollectionSpec, config Config) error {
	variable, ok := spec.Variables[leakVarExchangeConfig]
	if !ok {
		return nil // the object of another program with the same maps
	}
	for name, m := range t.exchanges {
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	sizes := leakExchangeSizes{SetMask: config.exchangeSets() - 1, RecordMask: config.exchangeRecords() - 1}
	if err := variable.Set(sizes); err != nil {
		return fmt.Errorf("configuring the response times: %w", err)
	}
	return nil
}

// replacements returns all maps by name.
func (t *auditMaps) replacements() map[string]*ebpf.Map {
	if len(t.exchanges) == 0 {
		return t.byName
	}
	all := maps.Clone(t.byName)
	maps.Copy(all, t.exchanges)
	return all
}

// exchangeLink is a hook with a second one, whose program sees the packets that leave the device.
// The second one is not pinned: without a process that reads response times, none are measured.
type exchangeLink struct {
	xdpLink
	ifindex int
	egress  egressHook // nil until the first program that measures response times
}

// egressHook is a program of outgoing packets on a device. Closing it detaches the program.
type egressHook interface {
	Update(p *ebpf.Program) error
	Close() error
}

func newExchangeLink(l xdpLink, ifindex int, p *ebpf.Program) (xdpLink, error) {
	both := &exchangeLink{xdpLink: l, ifindex: ifindex}
	return both, both.replaceEgress(p)
}

func (l *exchangeLink) replaceEgress(p *ebpf.Program) (err error) {
	switch {
	case p == nil: // a placeholder, while which no requests begin
		return nil
	case l.egress != nil:
		err = l.egress.Update(p)
	default:
		l.egress, err = attachEgress(l.ifindex, p)
	}
	if err != nil {
		return newEgressError(err)
	}
	return nil
}

// egressError is the error of a device that has taken the audit's program, but not the one of
// outgoing packets.
type egressError struct{ error }

func newEgressError(err error) error {
	remedy := ""
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		remedy = "use Linux 6.6 or later, or load its modules sch_ingress and cls_bpf: "
	}
	return &egressError{fmt.Errorf("attaching the program of outgoing packets: %s%w", remedy, err)}
}

// Unwrap returns the error.
func (e *egressError) Unwrap() error { return e.error }

func (l *exchangeLink) replace(p *loadedProgram) error {
	return errors.Join(l.xdpLink.replace(p), l.replaceEgress(p.egress))
}

func (l *exchangeLink) Close() error { return errors.Join(l.closeEgress(), l.xdpLink.Close()) }

func (l *exchangeLink) Detach() error { return errors.Join(l.closeEgress(), l.xdpLink.Detach()) }

func (l *exchangeLink) closeEgress() error {
	if l.egress == nil {
		return nil
	}
	egress := l.egress
	l.egress = nil
	return egress.Close()
}

// attachEgress attaches a program to what leaves a device: with TCX, or before Linux 6.6 as a
// filter. It is the first of its hook, because a later one does not see packets for which another
// has decided.
func attachEgress(ifindex int, p *ebpf.Program) (egressHook, error) {
	tcx, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: p, Attach: ebpf.AttachTCXEgress, Anchor: link.Head()})
	if err == nil {
		return tcx, nil
	}
	if !errors.Is(err, ebpf.ErrNotSupported) {
		return nil, err
	}
	f := egressFilter(ifindex)
	return f, f.Update(p)
}

// egressFilter is a filter of clsact on the device with that index. It outlives the process if that
// is killed, or may not remove it. The next process replaces it.
type egressFilter int

func (f egressFilter) Update(p *ebpf.Program) error {
	return netdev.ReplaceEgressFilter(int(f), p.FD(), leakProgTcExchange)
}

// Close removes the filter. A process that has dropped its privileges leaves it: without the map
// entries of this process it does nothing.
func (f egressFilter) Close() error {
	err := netdev.RemoveEgressFilter(int(f))
	if errors.Is(err, unix.EPERM) {
		return nil
	}
	return err
}
