// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
)

// deviceFindings returns the facts of a device, in the order of the table.
func (c *checker) deviceFindings(d *netdev.Details) []Finding {
	return []Finding{
		c.hookFinding(d), c.nativeFinding(d), genericFinding(d), tcxFinding(d.Index), c.egressFinding(d),
		c.driverFinding(d), c.linkTypeFinding(d), c.mtuFinding(d), stateFinding(d),
	}
}

// hookFinding says whether the XDP hook of a device is free.
func (c *checker) hookFinding(d *netdev.Details) Finding {
	f := Finding{Name: "hook", State: FindingOK, Value: "free", Meaning: "no XDP program is in the way"}
	if d.XDP != netdev.XDPNone {
		holder := findHolder(d.Program, d.Index, c.config.PinPath)
		f.Value = holder.describe()
		if c.pinned[d.Index] || holder.pinPath != "" && holder.pinPath == filepath.Clean(c.config.PinPath) {
			f.Meaning = "the audit takes over this hook"
			return f
		}
		f.State, f.Meaning, f.Remedy = FindingFailure, "a device takes one XDP program, and has another", holder.remedy(d.Name)
		return f
	}
	for i := range c.network.devices {
		if upper := &c.network.devices[i]; upper.IsUpperOf(d) && upper.XDP != netdev.XDPNone && !c.pinned[upper.Index] {
			f.State, f.Value = FindingFailure, fmt.Sprintf("free, but %s has XDP program %d", upper.Name, upper.Program)
			f.Meaning = "the kernel refuses a program below an upper device with one"
			f.Remedy = "audit " + upper.Name + " instead, or detach its program"
		}
	}
	return f
}

// nativeFinding says whether the driver runs programs.
func (c *checker) nativeFinding(d *netdev.Details) Finding {
	f := Finding{Name: "native", Value: "yes", Meaning: "the driver can run the program (mode drv)"}
	is, reason := c.network.native(d)
	f.State = is
	switch is {
	case FindingUnknown:
		f.Value, f.Meaning = "not known: "+reason, "the driver decides when the audit starts"
	case FindingFailure:
		f.Value, f.Meaning, f.Remedy = "no: "+reason, "the driver does not run the program", "use --audit.mode=skb"
		if namesCure(reason) {
			f.Remedy = "remove this cause, or use --audit.mode=skb"
		}
		if c.config.Mode == ModeGeneric || c.config.Mode == ModeAuto && !namesCure(reason) {
			f.State, f.Meaning, f.Remedy = FindingOK, "the audit runs in generic mode", ""
		}
	}
	return f
}

// genericFinding says whether the kernel runs programs for the device. It does so for every driver.
func genericFinding(d *netdev.Details) Finding {
	if d.Link == netdev.LinkOther {
		return Finding{
			Name: "generic", State: FindingOK, Value: "yes", Meaning: "the kernel would run the program, which cannot parse the frames",
		}
	}
	return Finding{
		Name: "generic", State: FindingOK, Value: "yes",
		Meaning: "the kernel can run the program after the driver (mode skb): slower, and frames may be merged",
	}
}

// tcxFinding says which programs see the packets of a device after XDP.
func tcxFinding(ifindex int) Finding {
	f := Finding{Name: "tcx", State: FindingOK, Meaning: "these programs see packets after XDP, and are not in the way"}
	programs, err := tcxPrograms(ifindex, ebpf.AttachTCXIngress)
	switch {
	case err != nil && isBefore(kernelRelease(), 6, 6):
		f.State, f.Value, f.Meaning = FindingUnknown, "none before Linux 6.6", "the audit does not need it"
	case errors.Is(err, ebpf.ErrNotSupported): // the library takes missing capabilities for it, too
		f.State, f.Value, f.Meaning = FindingUnknown, "not known", "the audit does not need it"
	case err != nil:
		f.State, f.Value, f.Meaning = FindingUnknown, "not known: "+rootCause(err).Error(), "the audit does not need it"
	case len(programs) == 0:
		f.Value, f.Meaning = "no program", "the audit does not need it"
	default:
		f.Value = strings.Join(programs, ", ")
	}
	return f
}

// programText returns the id of a program, and its name if it may be read.
func programText(id ebpf.ProgramID) string {
	text := fmt.Sprint(id)
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return text
	}
	defer p.Close()
	if info, err := p.Info(); err == nil && info.Name != "" {
		text += " (" + info.Name + ")"
	}
	return text
}

// driverFinding says what the driver says about itself.
func (c *checker) driverFinding(d *netdev.Details) Finding {
	f := Finding{Name: "driver", State: FindingOK, Value: d.Driver, Meaning: "it reports no features of XDP"}
	if f.Value == "" {
		f.Value = "none"
	}
	features, isKnown := c.network.features[d.Index]
	if !isKnown {
		f.State, f.Meaning = FindingUnknown, "kernels before Linux 6.3 do not report the features of drivers"
		return f
	}
	xdp, rxMetadata := features.Names()
	if len(xdp) > 0 {
		f.Meaning = "it reports the features " + strings.Join(xdp, ", ")
	}
	if len(rxMetadata) > 0 {
		f.Meaning += ", and of received packets " + strings.Join(rxMetadata, ", ")
	}
	return f
}

// linkTypeFinding says whether the program can parse the frames of a device.
func (c *checker) linkTypeFinding(d *netdev.Details) Finding {
	f := Finding{Name: "link type", State: FindingOK, Value: d.LinkType, Meaning: "frames begin with an Ethernet header"}
	if d.Link == netdev.LinkIP {
		f.Meaning = "frames begin with the header of IP, and only generic mode is possible"
	}
	if err := c.config.checkLink(d.Device); err != nil {
		f.State, f.Meaning = FindingFailure, err.Error()
	}
	return f
}

// The bytes of a page that a frame in one buffer cannot have: headroom, skb_shared_info and the
// headers of Ethernet with a VLAN.
const singleBufferOverhead = 256 + 320 + 18

// mtuFinding says whether frames may be too large for native mode.
func (c *checker) mtuFinding(d *netdev.Details) Finding {
	f := Finding{Name: "mtu", State: FindingOK, Value: fmt.Sprint(d.MTU), Meaning: "frames fit into one buffer"}
	largest := os.Getpagesize() - singleBufferOverhead
	if d.MTU <= largest {
		return f
	}
	f.Meaning = "the program sees the first buffer of large frames, and knows their length"
	features, isKnown := c.network.features[d.Index]
	is, _ := c.network.native(d)
	if c.config.Mode == ModeGeneric || is == FindingFailure || isKnown && features.Has(netdev.FeatureRxSG) {
		return f
	}
	f.State = FindingWarning
	f.Meaning = fmt.Sprintf("a driver without fragments takes at most about %d bytes in native mode; the driver decides", largest)
	f.Remedy = fmt.Sprintf("if the driver refuses: ip link set dev %s mtu 1500, or --audit.mode=skb", printable.ShellName(d.Name))
	return f
}

func stateFinding(d *netdev.Details) Finding {
	if d.Flags&net.FlagUp == 0 {
		return Finding{
			Name: "state", State: FindingWarning, Value: "down", Meaning: "no packet arrives while the device is down",
			Remedy: fmt.Sprintf("ip link set dev %s up", printable.ShellName(d.Name)),
		}
	}
	return Finding{Name: "state", State: FindingOK, Value: "up, " + d.OperState, Meaning: "packets may arrive"}
}
