// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package netdev

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
)

// The flags of IFLA_XDP_FLAGS of linux/if_link.h.
const (
	xdpUpdateIfNoexist = 1 << 0
	xdpGeneric         = 1 << 1
	xdpDriver          = 1 << 2
)

var xdpFlags = map[XDPMode]uint32{XDPDriver: xdpDriver, XDPGeneric: xdpGeneric}

// RefusalReason asks why the device with that index refuses the program with that file descriptor.
// The driver's own words are in the extended acknowledgement of netlink, and not in the answer of
// bpf(2), so RefusalReason tries to attach once more by netlink. If the device now accepts the
// program, RefusalReason detaches it. The reason is empty if the kernel gives none.
func RefusalReason(programFD, index int, mode XDPMode) string {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return ""
	}
	defer socket.Close()
	if err := errors.Join(socket.SetExtAck(true), socket.SetReceiveTimeout(&unix.Timeval{Sec: 1})); err != nil {
		return ""
	}
	err = setXDP(socket, index, programFD, xdpFlags[mode]|xdpUpdateIfNoexist)
	if err == nil {
		if err := setXDP(socket, index, -1, xdpFlags[mode]); err != nil {
			return fmt.Sprintf("a second attempt attached the program, which could not be detached: %v", err)
		}
		return ""
	}
	// The reason follows the text of the error number, which bpf(2) has returned as well.
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return ""
	}
	_, reason, _ := strings.Cut(err.Error(), errno.Error()+": ")
	return printable.Line(reason)
}

// setXDP sets the program of a device by netlink; descriptor −1 detaches it.
func setXDP(socket *nl.NetlinkSocket, index, descriptor int, flags uint32) error {
	request := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	request.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: socket}}
	message := nl.NewIfInfomsg(unix.AF_UNSPEC)
	message.Index = int32(index)
	request.AddData(message)
	attributes := nl.NewRtAttr(unix.IFLA_XDP|unix.NLA_F_NESTED, nil)
	attributes.AddRtAttr(nl.IFLA_XDP_FD, nl.Uint32Attr(uint32(descriptor)))
	attributes.AddRtAttr(nl.IFLA_XDP_FLAGS, nl.Uint32Attr(flags))
	request.AddData(attributes)
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
