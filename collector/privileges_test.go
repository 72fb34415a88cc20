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
# HELP xdp_audit_privileges_landlock_abi Version of Landlock that confines the process to its files; 0 if none does.
# TYPE xdp_audit_privileges_landlock_abi gauge
xdp_audit_privileges_landlock_abi 7
# HELP xdp_audit_privileges_no_new_privileges Whether what the process executes can gain no privilege.
# TYPE xdp_audit_privileges_no_new_privileges gauge
xdp_audit_privileges_no_new_privileges 1
`)
	expect(t, newPrivilegesCollector(&Privileges{Capabilities: []string{"CAP_NET_ADMIN", "CAP_BPF"}}), `
# HELP xdp_audit_privileges_capabilities Number of capabilities that the process holds; 0 once they are dropped.
# TYPE xdp_audit_privileges_capabilities gauge
xdp_audit_privileges_capabilities 2
# HELP xdp_audit_privileges_capability_held A capability that the process holds, always 1.
# TYPE xdp_audit_privileges_capability_held gauge
xdp_audit_privileges_capability_held{capability="CAP_BPF"} 1
xdp_audit_privileges_capability_held{capability="CAP_NET_ADMIN"} 1
# HELP xdp_audit_privileges_landlock_abi Version of Landlock that confines the process to its files; 0 if none does.
# TYPE xdp_audit_privileges_landlock_abi gauge
xdp_audit_privileges_landlock_abi 0
# HELP xdp_audit_privileges_no_new_privileges Whether what the process executes can gain no privilege.
# TYPE xdp_audit_privileges_no_new_privileges gauge
xdp_audit_privileges_no_new_privileges 0
`)
}
