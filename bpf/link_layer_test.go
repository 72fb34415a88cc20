// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// onLink is a network device with a link layer in the fake kernel's list.
func onLink(name string, index int, link netdev.LinkLayer, linkType string) netdev.Device {
	return netdev.Device{Name: name, Index: index, Link: link, LinkType: linkType}
}

// Each link layer has the modes that it takes, without a warning, and a program that is configured
// for it. Everything else is refused, with the link type and the remedy.
func TestLinkLayers(t *testing.T) {
	for _, test := range []struct {
		link     netdev.LinkLayer
		linkType string
		mode     Mode
		want     string   // state of the device
		refusal  []string // parts
	}{
		{netdev.LinkEthernet, "ether", ModeAuto, "a 0 drv", nil},
		{netdev.LinkEthernet, "ether", ModeGeneric, "a 0 skb", nil},
		{netdev.LinkIP, "none", ModeAuto, "a 0 skb", nil},
		{netdev.LinkIP, "ipip", ModeGeneric, "a 0 skb", nil},
		{netdev.LinkIP, "sit", ModeDriver, "a 0 waiting", []string{"a", "sit", "generic", "--audit.mode=skb"}},
		{netdev.LinkIP, "gre", ModeHW, "a 0 waiting", []string{"a", "gre", "generic", "--audit.mode=skb"}},
		{netdev.LinkOther, "can", ModeAuto, "a 0 waiting", []string{"a", "can", "--audit.device"}},
		{netdev.LinkOther, "can", ModeGeneric, "a 0 waiting", []string{"a", "can", "--audit.device"}},
	} {
		t.Run(test.linkType+" "+string(test.mode), func(t *testing.T) {
			config := setConfig([]string{"a"}, nil)
			config.Mode = test.mode
			kernel := newFakeKernel()
			kernel.devices["a"] = 1
			s := newTestSet(config, kernel)
			failures := s.reconcile(t.Context(), []netdev.Device{onLink("a", 1, test.link, test.linkType)}, true)
			if got := s.state(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if (len(failures) > 0) != (test.refusal != nil) || strings.Contains(s.log.String(), "level=WARN") {
				t.Errorf("got %v and the log\n%s", failures, s.log)
			}
			for _, part := range test.refusal {
				if !strings.Contains(failures[0].Error(), part) {
					t.Errorf("the refusal does not contain %q: %v", part, failures[0])
				}
			}
			if test.refusal == nil && kernel.owners[kernel.lastProgram].linkLayer != test.link {
				t.Errorf("the program is configured for link layer %d, want %d", kernel.owners[kernel.lastProgram].linkLayer, test.link)
			}
		})
	}
}

// A device whose link layer changes, or which is replaced by one with another, gets a program for
// the new one. The program before is closed.
func TestLinkLayerChanges(t *testing.T) {
	config := setConfig([]string{"a"}, nil)
	config.Mode = ModeAuto
	kernel := newFakeKernel()
	kernel.devices["a"] = 1
	s := newTestSet(config, kernel)
	for i, step := range []struct {
		on   netdev.Device
		want string
	}{
		{onLink("a", 1, netdev.LinkEthernet, "ether"), "a 0 drv"},
		{onLink("a", 1, netdev.LinkIP, "none"), "a 0 skb"},
		{onLink("a", 1, netdev.LinkOther, "can"), "a 0 waiting"},
		{onLink("a", 1, netdev.LinkEthernet, "ether"), "a 0 drv"},
		{onLink("a", 2, netdev.LinkIP, "none"), "a 0 skb"},
	} {
		if step.on.Index == 2 {
			kernel.remove("a")
			kernel.devices["a"] = 2
		}
		s.resync(t.Context(), []netdev.Device{step.on}, true)
		if got := s.state(); got != step.want {
			t.Errorf("step %d: got %q, want %q", i, got, step.want)
		}
		hook := kernel.hooks[step.on.Index]
		if step.on.Link == netdev.LinkOther {
			if hook != nil {
				t.Errorf("step %d: a hook is left", i)
			}
			continue
		}
		if got := kernel.owners[hook.program].linkLayer; got != step.on.Link || kernel.programs != 1 {
			t.Errorf("step %d: %d programs, for link layer %d, want 1 for %d", i, kernel.programs, got, step.on.Link)
		}
	}
}

// Where a driver tells programs the VLAN tags that it has removed, the program is bound to the
// network device, in native mode without pins. It is loaded for each attempt: a program that is
// bound to a network device of the past cannot be attached. The device is counted all the time.
func TestProgramsThatAreBound(t *testing.T) {
	for _, test := range []struct {
		mode    Mode
		link    netdev.LinkLayer
		tells   bool
		pinPath string
		isBound bool
	}{
		{ModeDriver, netdev.LinkEthernet, true, "", true},
		{ModeDriver, netdev.LinkEthernet, false, "", false},
		{ModeDriver, netdev.LinkEthernet, true, "/pins", false},
		{ModeAuto, netdev.LinkEthernet, true, "", false},
		{ModeGeneric, netdev.LinkEthernet, true, "", false},
		{ModeGeneric, netdev.LinkIP, true, "", false},
	} {
		t.Run(fmt.Sprint(test.mode, test.link, test.tells, test.pinPath), func(t *testing.T) {
			config := setConfig([]string{"a"}, nil)
			config.Mode, config.PinPath = test.mode, test.pinPath
			kernel := newFakeKernel()
			kernel.vlanTags = map[int]bool{1: test.tells, 2: test.tells}
			s := newTestSet(config, kernel)
			for _, index := range []int{1, 2} {
				kernel.remove("a")
				kernel.devices["a"] = index
				now := onLink("a", index, test.link, "ether")
				s.resync(t.Context(), []netdev.Device{now}, true)
				want := 0
				if test.isBound {
					want = index
				}
				if got := kernel.owners[kernel.hooks[index].program].boundTo; got != want || kernel.programs != 1 {
					t.Errorf("%d programs, bound to %d, want 1 bound to %d", kernel.programs, got, want)
				}
				if !s.listed[0].isCounted() {
					t.Error("the device is not counted")
				}
			}
			loads := 1
			if test.isBound {
				loads = 2
			}
			if kernel.loads != loads {
				t.Errorf("%d programs were loaded, want %d", kernel.loads, loads)
			}
		})
	}
}

// A program that is bound to a device asks for the tag; any other does not have the call.
func TestOnlyBoundProgramsAskForTags(t *testing.T) {
	maps := &auditMaps{cpus: 1}
	for _, boundTo := range []int{0, 7} {
		spec, err := maps.programSpec(testConfig(), deviceIdentity{boundTo: boundTo})
		if err != nil {
			t.Fatal(err)
		}
		p := spec.Programs[programProgXdpAudit]
		calls := 0
		for i := range p.Instructions {
			if p.Instructions[i].IsKfuncCall() {
				calls++
			}
		}
		if isBound := p.Flags&unix.BPF_F_XDP_DEV_BOUND_ONLY != 0; (calls > 0) != (boundTo != 0) || isBound != (boundTo != 0) || int(p.Ifindex) != boundTo {
			t.Errorf("bound to %d: %d calls, flags %#x, device %d", boundTo, calls, p.Flags, p.Ifindex)
		}
	}
}
