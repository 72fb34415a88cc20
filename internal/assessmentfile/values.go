// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package assessmentfile

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
)

const (
	maxDSCP   = 63
	maxVLAN   = 4094
	maxPort   = 1<<16 - 1
	maxTarget = time.Minute

	leastAlpha, mostAlpha = 1e-30, 0.5
)

var (
	// namePattern is that of names of assessments and classes, which are labels and parts of paths.
	namePattern = regexp.MustCompile(`^[a-z0-9_]+$`)
	// numberPattern is that of decimal numbers. YAML reads others as octal.
	numberPattern = regexp.MustCompile(`^(0|[1-9][0-9]*)$`)
)

// set takes the value of a key.
func (a *Assessment) set(key, text string) (err error) {
	switch key {
	case "name":
		a.Name, err = text, checkName(text)
	case "device":
		a.Device, err = deviceName(text)
	case "protocol":
		switch text {
		case "tcp":
			a.Protocol = bpf.ProtocolTCP
		case "udp":
			a.Protocol = bpf.ProtocolUDP
		default:
			err = fmt.Errorf("protocol %.50q is not known: use tcp or udp", text)
		}
	case "port":
		a.Port, err = number[uint16](key, text, 1, maxPort)
	case "order":
		a.Order, err = leak.ParseOrder(text)
	case "target":
		a.Target, err = time.ParseDuration(text)
		isBelowTick := a.Target == 0 && strings.ContainsAny(text, "123456789")
		if err != nil || a.Target < 0 || a.Target > maxTarget || isBelowTick {
			err = fmt.Errorf("target %.50q is not 0, or 1ns to %v: use a number with a unit, such as 1us", text, maxTarget)
		}
	case "alpha":
		a.Alpha, err = strconv.ParseFloat(text, 64)
		if err != nil || !(a.Alpha >= leastAlpha && a.Alpha <= mostAlpha) {
			err = fmt.Errorf("alpha %.50q is not a number between %v and %v: use one such as 1e-5", text, leastAlpha, mostAlpha)
		}
	}
	return err
}

// setKey takes the value of a key of a class.
func setKey(m *bpf.ClassMatch, key, text string) (err error) {
	switch key {
	case "dscp":
		var dscp uint8
		dscp, err = number[uint8](key, text, 0, maxDSCP)
		m.DSCP = &dscp
	case "vlan":
		var vlan uint16
		vlan, err = number[uint16](key, text, 0, maxVLAN)
		m.VLAN = &vlan
	case "source_port":
		m.SourcePorts, err = ports(text)
	case "source":
		m.Source, err = prefix(text)
	}
	return err
}

func ports(text string) (*bpf.PortRange, error) {
	first, last, isRange := strings.Cut(text, "-")
	if !isRange {
		last = first
	}
	var r bpf.PortRange
	var err error
	if r.First, err = number[uint16]("source_port", first, 0, maxPort); err == nil {
		r.Last, err = number[uint16]("source_port", last, 0, maxPort)
	}
	if err == nil && r.First > r.Last {
		err = fmt.Errorf("source_port %s is in the wrong order: write %d-%d", text, r.Last, r.First)
	}
	return &r, err
}

func prefix(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" && !a.Is4In6() {
		return netip.Prefix{}, fmt.Errorf("source %.60q has no length: write %v", text, netip.PrefixFrom(a, a.BitLen()))
	}
	prefix, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return prefix, fmt.Errorf("source %.60q is not a prefix: use one such as 192.0.2.0/24 or 2001:db8::/32", text)
	case prefix.Addr().Is4In6():
		return prefix, fmt.Errorf("source %.60q is of IPv4 in IPv6, which no packet has: write it as IPv4, such as 192.0.2.0/24", text)
	case prefix != prefix.Masked():
		return prefix, fmt.Errorf("source %.60q has bits after its length: write %v", text, prefix.Masked())
	}
	return prefix, nil
}

// number returns a whole number. YAML would read 010 as 8, so such a form is an error.
func number[T uint8 | uint16](key, text string, least, most uint64) (T, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n < least || n > most || !numberPattern.MatchString(text) {
		return 0, fmt.Errorf("%s %.50q is not between %d and %d: use a whole number without leading zeros", key, text, least, most)
	}
	return T(n), nil
}

func checkName(text string) error {
	if !namePattern.MatchString(text) || len(text) > maxName {
		return fmt.Errorf("name %.80q is not usable in a label: use 1 to %d of a-z, 0-9 and _", text, maxName)
	}
	return nil
}

// deviceName returns the text of labels for the name of a device.
func deviceName(text string) (string, error) {
	name, err := printable.ParseName(text)
	if err == nil {
		if raw, _ := printable.RawName(name); len(raw) > printable.MaxName {
			err = fmt.Errorf("use at most %d bytes", printable.MaxName)
		}
	}
	if err != nil {
		return "", fmt.Errorf("device %.150q is not the name of a device: %w", text, err)
	}
	return name, nil
}
