// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// checkLink returns an error if the program cannot parse the frames of a network device, or if the
// device takes no program in the mode of the configuration. Devices without an Ethernet header have
// neither native XDP nor offload.
func (c Config) checkLink(on netdev.Device) error {
	switch {
	case on.Link == netdev.LinkOther:
		return fmt.Errorf("device %s has link type %s, whose frames begin with neither Ethernet nor IP and cannot be audited: remove it from --audit.device",
			on.Name, on.LinkType)
	case on.Link == netdev.LinkIP && c.Mode != ModeAuto && c.Mode != ModeGeneric:
		return fmt.Errorf("device %s has link type %s, without an Ethernet header, and takes XDP programs in generic mode only, not in mode %s: use --audit.mode=skb or --audit.mode=auto",
			on.Name, on.LinkType, c.Mode)
	}
	return nil
}

// setLink notes the link layer of the network device that a device is about to be attached to. It
// unloads a program that was loaded for another link layer.
func (s *deviceSet) setLink(d *device, on netdev.Device) error {
	p := d.program
	if d.linkLayer == on.Link || p == nil {
		s.write(func() { d.linkLayer = on.Link })
		return nil
	}
	s.write(func() { d.linkLayer, d.program = on.Link, nil })
	return s.kernel.unload(p)
}
