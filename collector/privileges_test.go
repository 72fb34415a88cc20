// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import "testing"

func TestPrivileges(t *testing.T) {
	expect(t, newPrivilegesCollector(nil), "")
	expect(t, newPrivilegesCollector(&Privileges{NoNewPrivileges: true, LandlockABI: 7}), `
# HELP xdp_audit_privileges_capabilities Number of capabilities that the process holds; 0 once they are dropped.
# TYPE xdp_audit_privileges_capabilities gauge
xdp_audit_privileges_capabilities 0
# HELP xdp_audit_privileges_landlock_abi Version of the Landlock ABI that confines the process; 0 without confinement.
# TYPE xdp_audit_privileges_landlock_abi gauge
xdp_audit_privileges_landlock_abi 7
# HELP xdp_audit_privileges_no_new_privileges Whether the kernel denies new privileges to programs that the process executes.
# TYPE xdp_audit_privileges_no_new_privileges gauge
xdp_audit_privileges_no_new_privileges 1
`)
	expect(t, newPrivilegesCollector(&Privileges{Capabilities: []string{"CAP_NET_ADMIN", "CAP_BPF"}}), `
# HELP xdp_audit_privileges_capabilities Number of capabilities that the process holds; 0 once they are dropped.
# TYPE xdp_audit_privileges_capabilities gauge
xdp_audit_privileges_capabilities 2
# HELP xdp_audit_privileges_capability_held Capability that the process holds; the value is always 1.
# TYPE xdp_audit_privileges_capability_held gauge
xdp_audit_privileges_capability_held{capability="CAP_BPF"} 1
xdp_audit_privileges_capability_held{capability="CAP_NET_ADMIN"} 1
# HELP xdp_audit_privileges_landlock_abi Version of the Landlock ABI that confines the process; 0 without confinement.
# TYPE xdp_audit_privileges_landlock_abi gauge
xdp_audit_privileges_landlock_abi 0
# HELP xdp_audit_privileges_no_new_privileges Whether the kernel denies new privileges to programs that the process executes.
# TYPE xdp_audit_privileges_no_new_privileges gauge
xdp_audit_privileges_no_new_privileges 0
`)
}
