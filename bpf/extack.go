// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The flags of IFLA_XDP_FLAGS of linux/if_link.h.
const (
	xdpUpdateIfNoexist = 1 << 0
	xdpGeneric         = 1 << 1
	xdpDriver          = 1 << 2
)

var netlinkModes = map[Mode]uint32{ModeDriver: xdpDriver, ModeGeneric: xdpGeneric}

// askReason returns what the kernel says on why a device refuses a program: a driver's own words, which only netlink's
// extended acknowledgement has and bpf(2) has not. It asks for the same once more by netlink; should the device accept now,
// the program is taken off again. It is empty if the kernel gives no reason.
func askReason(program *ebpf.Program, ifindex int, mode Mode) string {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return ""
	}
	defer socket.Close()
	if err := errors.Join(socket.SetExtAck(true), socket.SetReceiveTimeout(&unix.Timeval{Sec: 1})); err != nil {
		return ""
	}
	err = setXDP(socket, ifindex, program.FD(), netlinkModes[mode]|xdpUpdateIfNoexist)
	if err == nil {
		if err := setXDP(socket, ifindex, -1, netlinkModes[mode]); err != nil {
			return fmt.Sprintf("it then accepted the program, which could not be taken off: %v", err)
		}
		return ""
	}
	// The number in front is what bpf(2) said, too.
	_, reason, _ := strings.Cut(err.Error(), rootCause(err).Error()+": ")
	return reason
}

// setXDP sets the program of a device by netlink; descriptor −1 takes it off.
func setXDP(socket *nl.NetlinkSocket, ifindex, descriptor int, flags uint32) error {
	request := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	request.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: socket}}
	message := nl.NewIfInfomsg(unix.AF_UNSPEC)
	message.Index = int32(ifindex)
	request.AddData(message)
	attributes := nl.NewRtAttr(unix.IFLA_XDP|unix.NLA_F_NESTED, nil)
	attributes.AddRtAttr(nl.IFLA_XDP_FD, nl.Uint32Attr(uint32(descriptor)))
	attributes.AddRtAttr(nl.IFLA_XDP_FLAGS, nl.Uint32Attr(flags))
	request.AddData(attributes)
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
