// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package assessmentfile reads the configuration of leak assessments.
//
// The file is YAML: a list of assessments, each of a port with two classes of requests. [Parse] has
// an example. It is strict: what it does not know is an error, and so are classes of which a packet
// may match both. Each error is one line with the file, the line and the remedy.
package assessmentfile

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
	"github.com/xdp-audit/xdp_audit_exporter/internal/regularfile"
)

const (
	maxBytes = 1 << 20 // larger than a file of the maximum number of assessments
	maxName  = 64      // bytes of the name of an assessment or a class

	// clockTickNs is the resolution of the kernel's clock.
	clockTickNs = 1
)

// The values of keys that are left out. Without a device, an assessment is of all audited devices.
const (
	DefaultOrder  = leak.Random
	DefaultTarget = time.Microsecond
	DefaultAlpha  = 1e-5
)

// File is the content of a file.
type File struct {
	Assessments []Assessment
}

// Assessment compares the response times of two classes of requests to a port.
type Assessment struct {
	Name     string
	Device   string // as in labels; empty: every audited device
	Protocol bpf.Protocol
	Port     uint16
	Classes  [2]Class // X and Y
	Order    leak.Order
	Target   time.Duration // differences up to this do not matter
	Alpha    float64       // greatest probability of enough evidence without a difference
}

// Class selects the packets of a class.
type Class struct {
	Name  string
	Match bpf.ClassMatch
}

// Measured returns what the kernel measures for the assessment.
func (a *Assessment) Measured() bpf.Assessment {
	return bpf.Assessment{
		Name: a.Name, Device: a.Device, Protocol: a.Protocol, Port: a.Port,
		Classes: [2]bpf.ClassMatch{a.Classes[0].Match, a.Classes[1].Match},
	}
}

// Judged returns the configuration of the judge of the assessment.
func (a *Assessment) Judged() leak.Config {
	return leak.Config{
		Order: a.Order, Classes: [2]string{a.Classes[0].Name, a.Classes[1].Name},
		TargetNs: float64(a.Target), Alpha: a.Alpha, TickNs: clockTickNs,
	}
}

// String returns the class as in the file.
func (c *Class) String() string {
	var keys []string
	m := &c.Match
	if m.DSCP != nil {
		keys = append(keys, fmt.Sprintf("dscp: %d", *m.DSCP))
	}
	if p := m.SourcePorts; p != nil && p.First == p.Last {
		keys = append(keys, fmt.Sprintf("source_port: %d", p.First))
	} else if p != nil {
		keys = append(keys, fmt.Sprintf("source_port: %d-%d", p.First, p.Last))
	}
	if m.Source.IsValid() {
		keys = append(keys, fmt.Sprintf("source: %q", m.Source))
	}
	if m.VLAN != nil {
		keys = append(keys, fmt.Sprintf("vlan: %d", *m.VLAN))
	}
	return c.Name + ": {" + strings.Join(keys, ", ") + "}"
}

// Read returns the content of a file.
func Read(path string) (*File, error) {
	text, err := regularfile.Read(path, maxBytes, "configuration", "make it shorter")
	if err != nil {
		return nil, err
	}
	return Parse(path, text)
}

// overlap describes a packet that is of both classes. It is empty if there is none.
func overlap(a, b *bpf.ClassMatch) string {
	var packet []string
	both := func(key string, value any) { packet = append(packet, fmt.Sprintf("%s %v", key, value)) }
	if dscp := either(a.DSCP, b.DSCP); dscp != nil {
		if a.DSCP != nil && b.DSCP != nil && *a.DSCP != *b.DSCP {
			return ""
		}
		both("dscp", *dscp)
	}
	if either(a.SourcePorts, b.SourcePorts) != nil {
		first, last := uint16(0), uint16(1<<16-1)
		for _, p := range []*bpf.PortRange{a.SourcePorts, b.SourcePorts} {
			if p != nil {
				first, last = max(first, p.First), min(last, p.Last)
			}
		}
		if first > last {
			return ""
		}
		both("source_port", first)
	}
	if a.Source.IsValid() || b.Source.IsValid() {
		source, ok := longer(a.Source, b.Source)
		if !ok {
			return ""
		}
		both("source", source.Addr())
	}
	if vlan := either(a.VLAN, b.VLAN); vlan != nil {
		if a.VLAN != nil && b.VLAN != nil && *a.VLAN != *b.VLAN {
			return ""
		}
		both("vlan", *vlan)
	}
	return strings.Join(packet, ", ")
}

func either[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

// longer returns the addresses that are in both prefixes. The zero prefix has all addresses.
func longer(a, b netip.Prefix) (netip.Prefix, bool) {
	switch {
	case !a.IsValid():
		return b, true
	case !b.IsValid():
		return a, true
	case !a.Overlaps(b):
		return netip.Prefix{}, false
	case a.Bits() > b.Bits():
		return a, true
	}
	return b, true
}

// Changes says how a configuration differs from the one before. It names assessments.
type Changes struct {
	Added, Removed, Kept []string
	Changed              []Change
}

// Change is an assessment of which something has changed, so that it begins again.
type Change struct {
	Name string
	What []string // such as "target is 2µs and was 1µs"
}

// Compare returns the changes from one configuration to another. The order of assessments does not
// matter. The configuration before may be nil.
func Compare(before, after *File) (c Changes) {
	earlier := map[string]*Assessment{}
	if before != nil {
		for i := range before.Assessments {
			earlier[before.Assessments[i].Name] = &before.Assessments[i]
		}
	}
	for i := range after.Assessments {
		a := &after.Assessments[i]
		was, exists := earlier[a.Name]
		delete(earlier, a.Name)
		if !exists {
			c.Added = append(c.Added, a.Name)
		} else if what := a.differs(was); len(what) > 0 {
			c.Changed = append(c.Changed, Change{a.Name, what})
		} else {
			c.Kept = append(c.Kept, a.Name)
		}
	}
	if before == nil {
		return c
	}
	for i := range before.Assessments {
		if name := before.Assessments[i].Name; earlier[name] != nil {
			c.Removed = append(c.Removed, name)
		}
	}
	return c
}

// Equal reports whether two assessments are the same, so that one continues the other.
func (a *Assessment) Equal(b *Assessment) bool {
	return a.Name == b.Name && len(a.differs(b)) == 0
}

// differs returns what has changed since an earlier version of the assessment.
func (a *Assessment) differs(was *Assessment) (what []string) {
	device := func(name string) string {
		if name == "" {
			return "every audited device"
		}
		return name
	}
	for _, key := range []struct{ name, now, before string }{
		{"device", device(a.Device), device(was.Device)},
		{"protocol", a.Protocol.String(), was.Protocol.String()},
		{"port", fmt.Sprint(a.Port), fmt.Sprint(was.Port)},
		{"first class", a.Classes[0].String(), was.Classes[0].String()},
		{"second class", a.Classes[1].String(), was.Classes[1].String()},
		{"order", a.Order.String(), was.Order.String()},
		{"target", a.Target.String(), was.Target.String()},
		{"alpha", fmt.Sprint(a.Alpha), fmt.Sprint(was.Alpha)},
	} {
		if key.now != key.before {
			what = append(what, fmt.Sprintf("%s is %s and was %s", key.name, key.now, key.before))
		}
	}
	return what
}
