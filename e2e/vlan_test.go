// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// tagSent gives all frames of the sender a VLAN tag until the returned function is called. veth
// hands the tag to its peer apart from the frame, as a driver does that has removed it.
func (l *lab) tagSent(id int) (end func()) {
	l.t.Helper()
	const tagVLAN, actOK = 0x0081, 0 // the type of the tag is in network order
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "push_tag", Type: ebpf.SchedCLS, License: "GPL", AttachType: ebpf.AttachTCXEgress,
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R2, tagVLAN),
			asm.Mov.Imm(asm.R3, int32(id)),
			asm.FnSkbVlanPush.Call(),
			asm.Mov.Imm(asm.R0, actOK),
			asm.Return(),
		},
	})
	if err != nil {
		l.t.Fatal(err)
	}
	defer program.Close()
	var tcx link.Link
	err = l.sender.Namespace.Do(func() error {
		sender, err := netlink.LinkByName(l.sender.Device)
		if err != nil {
			return err
		}
		tcx, err = link.AttachTCX(link.TCXOptions{Interface: sender.Attrs().Index, Program: program, Attach: ebpf.AttachTCXEgress})
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return func() {
		if err := tcx.Close(); err != nil {
			l.t.Error(err)
		}
	}
}

// tellsVLANTags reports whether the driver of the audited device does, as veth from Linux 6.8 on.
func (l *lab) tellsVLANTags() (tells bool) {
	l.t.Helper()
	err := l.audited.Namespace.Do(func() error {
		audited, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		index := audited.Attrs().Index
		features, err := netdev.ListFeatures([]int{index})
		tells = features[index].RxMetadata&netdev.MetadataVLANTag != 0
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return tells
}

// The VLAN tag that a driver removes from frames is that of the flow in native mode: equal packets
// of two VLANs are two flows. Generic mode does not see the tag.
func TestStrippedVLANTags(t *testing.T) {
	for mode, flows := range map[string]float64{"drv": 3, "skb": 1} {
		t.Run(mode, func(t *testing.T) {
			l := newLab(t)
			if mode == "drv" && !l.tellsVLANTags() {
				skip(t, fmt.Errorf("the veth of this kernel does not tell VLAN tags"))
			}
			f := l.newFlow(l.audited.IPv4.Addr())
			e := l.startExporter("--audit.device="+device, "--audit.mode="+mode)
			for i, id := range []int{0, 5, 6, 5} {
				end := func() {}
				if id != 0 {
					end = l.tagSent(id)
				}
				if err := f.send(10); err != nil {
					t.Fatal(err)
				}
				e.await(func(s scrape) error {
					if got := s.sum("packets_total", "family=ipv4", "protocol=udp"); got != float64(10*(i+1)) {
						return fmt.Errorf("%v packets were counted after VLAN %d, want %d", got, id, 10*(i+1))
					}
					return nil
				})
				end()
			}
			s := e.atRest()
			if got := s.sum("outcomes_total", "outcome=new_flow"); got != flows {
				t.Errorf("%v flows in three VLANs, want %v", got, flows)
			}
			e.expectStopped()
		})
	}
}
