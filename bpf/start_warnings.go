// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"net"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// warnAtStart warns of devices that a start has attached and of which nothing will be audited as
// they are, once for each device. Devices that appear later are usually set up soon.
func (s *deviceSet) warnAtStart(devices []netdev.Device) {
	for _, d := range s.listed {
		mode := d.mode
		switch {
		case d.prepared != nil:
			mode = d.prepared.mode
		case d.link == nil:
			continue
		}
		if withName(d.name, devices).Flags&net.FlagUp == 0 {
			s.logger.Warn("Device is down and receives no packets: set it up with ip link set dev DEVICE up", "device", d.name)
		}
		if s.config.Clock != ClockMetadata {
			continue
		}
		switch {
		case mode == ModeGeneric:
			s.logger.Warn("No packet has a time on the clock metadata: generic mode passes no metadata on: use --audit.mode=drv or --audit.clock=ktime",
				"device", d.name)
		case !s.runsOthersProgram(devices):
			s.logger.Warn("No packet may have a time on the clock metadata: no device here runs another XDP program that puts the time in front of packets: "+
				"attach one, or use --audit.clock=ktime", "device", d.name)
		}
	}
}

// runsOthersProgram reports whether a device runs an XDP program that is not of the audit. Such a
// program may put the time in front of a packet and redirect the packet to an audited device.
func (s *deviceSet) runsOthersProgram(devices []netdev.Device) bool {
	isOwn := map[string]bool{}
	for _, d := range s.listed {
		isOwn[d.name] = true
	}
	for _, now := range devices {
		if now.XDP != netdev.XDPNone && !isOwn[now.Name] && s.unclaimedLinks[now.Index] == nil {
			return true
		}
	}
	return false
}
