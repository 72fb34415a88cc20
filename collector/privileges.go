// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import "github.com/prometheus/client_golang/prometheus"

var (
	capabilitiesDesc = newDesc("privileges_capabilities", "Number of capabilities that the process holds; 0 once they are dropped.")
	capabilityDesc   = newDesc("privileges_capability_held", "Capability that the process holds; the value is always 1.", "capability")
	noNewDesc        = newDesc("privileges_no_new_privileges", "Whether the kernel denies new privileges to programs that the process executes.")
	landlockDesc     = newDesc("privileges_landlock_abi", "Version of the Landlock ABI that confines the process; 0 without confinement.")
)

// Privileges are the privileges that the process still has.
type Privileges struct {
	Capabilities    []string // by name, such as CAP_BPF
	NoNewPrivileges bool     // programs that the process executes gain none
	LandlockABI     int      // version of Landlock that confines the process; 0 for none
}

type privilegesCollector struct {
	held *Privileges
}

// newPrivilegesCollector takes nil if the privileges are unknown.
func newPrivilegesCollector(held *Privileges) privilegesCollector {
	return privilegesCollector{held}
}

// Update sends the privileges, and nothing if they are unknown.
func (c privilegesCollector) Update(ch chan<- prometheus.Metric) error {
	if c.held == nil {
		return nil
	}
	ch <- gauge(capabilitiesDesc, float64(len(c.held.Capabilities)))
	for _, name := range c.held.Capabilities {
		ch <- gauge(capabilityDesc, 1, label("capability", name))
	}
	noNew := 0.0
	if c.held.NoNewPrivileges {
		noNew = 1
	}
	ch <- gauge(noNewDesc, noNew)
	ch <- gauge(landlockDesc, float64(c.held.LandlockABI))
	return nil
}
