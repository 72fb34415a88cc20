// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// mostTCXPrograms is the number of programs that a hook takes, one less than BPF_MPROG_MAX.
const mostTCXPrograms = 63

// egressState is what is known of the hook of outgoing packets of a device.
type egressState struct {
	programs []string // that it has
	unknown  string   // why it is not known whether it takes another one
	refusal  error    // with which it would refuse another one
}

// inspectEgress finds out whether a device takes the program of outgoing packets, as attachEgress
// attaches it.
func inspectEgress(ifindex int) egressState {
	programs, err := tcxPrograms(ifindex, ebpf.AttachTCXEgress)
	switch {
	case err == nil && len(programs) >= mostTCXPrograms:
		return egressState{programs: programs, refusal: fmt.Errorf("the hook has %d programs, and takes no more: detach one of them: %w", len(programs), unix.ERANGE)}
	case err == nil:
		return egressState{programs: programs}
	case isBefore(kernelRelease(), 6, 6) || errors.Is(err, unix.EINVAL): // the kernel has no TCX
	case errors.Is(err, ebpf.ErrNotSupported): // the library takes missing capabilities for it, too
		return egressState{unknown: "the hook cannot be read without capabilities"}
	default:
		return egressState{unknown: rootCause(err).Error()}
	}
	filters, err := netdev.InspectEgressFilters(ifindex)
	if err != nil {
		return egressState{unknown: rootCause(err).Error()}
	}
	s := egressState{}
	for _, name := range filters.Names {
		s.programs = append(s.programs, "filter "+name)
	}
	if filters.Refusal != "" {
		s.refusal = errors.New(filters.Refusal)
	} else if !filters.HasClsact {
		s.unknown = "the kernel does not tell whether it has sch_ingress and cls_bpf"
	}
	return s
}

// tcxPrograms returns the programs of a hook of TCX, in the order in which they see packets.
func tcxPrograms(ifindex int, hook ebpf.AttachType) (programs []string, err error) {
	result, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: hook})
	if err != nil {
		return nil, err
	}
	for _, p := range result.Programs {
		programs = append(programs, "program "+programText(p.ID))
	}
	return programs, nil
}

// egressFinding says whether response times can be measured at a device, and which programs see
// what leaves it.
func (c *checker) egressFinding(d *netdev.Details) Finding {
	s := inspectEgress(d.Index)
	f := Finding{Name: "egress", State: FindingOK, Value: "no program"}
	if len(s.programs) > 0 {
		f.Value = strings.Join(s.programs, ", ")
	}
	switch {
	case s.unknown != "":
		f.State, f.Value = FindingUnknown, "not known: "+s.unknown
		fallthrough
	case !c.config.measuresExchanges():
		f.Meaning = "the audit needs it for response times only (--leak.config.file)"
	case s.refusal != nil:
		f.State, f.Meaning = FindingFailure, "the program of response times cannot be attached: "+s.refusal.Error()
	case len(s.programs) > 0:
		f.Meaning = "the program of response times sees packets before these"
	default:
		f.Meaning = "the program of response times can be attached"
	}
	return f
}
