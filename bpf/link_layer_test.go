// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"strings"
	"testing"

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
