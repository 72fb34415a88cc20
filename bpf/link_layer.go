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

// setLink notes the link layer of the network device that a device is about to be attached to, and
// whether the program is to be bound to that. Only a bound program gets the VLAN tags that a driver
// has removed. The kernel does not let it move to generic mode, as a pinned hook may have to. It is
// loaded for each attempt: one that is bound to a network device of the past cannot be attached.
func (s *deviceSet) setLink(d *device, on netdev.Device) {
	boundTo := 0
	mayBind := on.Link == netdev.LinkEthernet && s.config.Mode == ModeDriver && s.config.PinPath == ""
	if mayBind && s.kernel.tellsVLANTags(on.Index) {
		boundTo = on.Index
	}
	s.write(func() {
		d.isStale = d.program != nil && (d.isStale || on.Link != d.linkLayer || boundTo != d.boundTo || d.boundTo != 0)
		d.linkLayer, d.boundTo = on.Link, boundTo
	})
}
