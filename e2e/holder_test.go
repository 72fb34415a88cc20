// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// From another network namespace, --bpf.unpin names the devices of the namespace in which they are
// pinned, also if a device here has the same index.
func TestUnpinFromAnotherNamespace(t *testing.T) {
	l := newLab(t)
	folder := l.mountBPF(0)
	e := l.startExporter("--audit.device="+device, "--bpf.pin-path="+folder)
	e.endWith(syscall.SIGTERM)
	index, err := l.audited.Namespace.Link(device)
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("ip link add wrong0 index %d type veth peer name other0 index 99 && exec %s --bpf.pin-path=%s --bpf.unpin", index.Attrs().Index, binaries.exporter, folder)
	p := l.start("unshare", []string{"--net", "sh", "-c", script})
	if code := p.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	p.expectLog("hook detached in another network namespace", "device="+device, "netns=")
	if strings.Contains(p.stderr.String(), "wrong0") {
		t.Errorf("the log names a device of this namespace:\n%s", &p.stderr)
	}
	l.expectNothingAttached()
	l.expectNothingPinned(folder)
}

// A renamed device is named as the exporter audited it last.
func TestUnpinNamesTheDeviceThatWasAudited(t *testing.T) {
	l := newLab(t)
	folder := l.mountBPF(0)
	e := l.startExporter("--audit.device=audited*", "--bpf.pin-path="+folder)
	l.change(device, func(link netlink.Link) error { return netlink.LinkSetName(link, "audited9") })
	e.await(hookIs("audited9", 1))
	e.endWith(syscall.SIGTERM)
	l.unpin(folder).expectLog("hook detached", "device=audited9")
}

// The remedy for a device that has a program depends on what holds the program there. A program
// of a link cannot be detached with ip(8).
func TestTheHolderOfADeviceIsNamed(t *testing.T) {
	const withoutAdmin = "--bounding-set=-all,+bpf,+perfmon,+net_admin"
	audit := serving([]string{"--audit.device=" + device})
	refuse := func(l *lab, want, unwanted []string, wrapper ...string) {
		l.t.Helper()
		command := slices.Concat(wrapper, []string{binaries.exporter}, audit)
		p := l.start(command[0], command[1:])
		p.expectRefusal(append(want, device, "XDP program")...)
		for _, part := range unwanted {
			if strings.Contains(p.stderr.String(), part) {
				l.t.Errorf("the line contains %q: %s", part, &p.stderr)
			}
		}
	}
	t.Run("a link", func(t *testing.T) {
		l := newLab(t)
		_, other := l.occupy(device, link.XDPDriverMode)
		info, err := other.Info()
		if err != nil {
			t.Fatal(err)
		}
		refuse(l, []string{fmt.Sprintf("bpftool link detach id %d", info.ID)}, []string{"xdp off", "unpin"})
		refuse(l, []string{"xdp off", "bpftool link detach id N"}, nil, "setpriv", withoutAdmin)
		// The remedy works.
		if output, err := exec.Command("bpftool", "link", "detach", "id", fmt.Sprint(info.ID)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
		l.expectNothingAttached()
	})
	t.Run("netlink", func(t *testing.T) {
		l := newLab(t)
		program, other := l.occupy(device, link.XDPDriverMode)
		other.Close()
		l.change(device, func(link netlink.Link) error { return netlink.LinkSetXdpFd(link, program.FD()) })
		refuse(l, []string{"ip link set dev " + device + " xdp off"}, []string{"bpftool", "unpin"})
		// The remedy works.
		l.change(device, func(link netlink.Link) error { return netlink.LinkSetXdpFd(link, -1) })
	})
	t.Run("pins", func(t *testing.T) {
		l := newLab(t)
		folder := l.mountBPF(0)
		e := l.startExporter("--audit.device="+device, "--bpf.pin-path="+folder)
		e.endWith(syscall.SIGTERM)
		audit = serving([]string{"--audit.device=" + device, "--bpf.pin-path=" + folder + "2"})
		for _, wrapper := range [][]string{nil, {"setpriv", withoutAdmin}} {
			refuse(l, []string{"--bpf.pin-path=" + folder + " --bpf.unpin"}, []string{"xdp off", "bpftool"}, wrapper...)
		}
		l.unpin(folder)
	})
}
