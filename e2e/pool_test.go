// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf/link"
)

// fullPool is an audit of all devices of which the names are given, with as many indices, that goes
// on without an exporter. Each device has counted 20 packets.
func (l *lab) fullPool(folder string, devices ...string) (args []string, flows map[string]*flow) {
	l.t.Helper()
	args = []string{"--bpf.pin-path=" + folder, fmt.Sprintf("--audit.max-devices=%d", len(devices))}
	e := l.startExporter(append(args, "--audit.device="+strings.Join(devices, ","))...)
	flows = map[string]*flow{}
	for _, p := range l.pairs {
		if slices.Contains(devices, p.audited.Device) && flows[p.audited.Device] == nil {
			flows[p.audited.Device] = l.newFlow(p.audited.IPv4.Addr())
			l.send(flows[p.audited.Device], 20)
		}
	}
	e.atRest()
	e.endWith(syscall.SIGTERM)
	return args, flows
}

// A start that fails while every index belongs to a pinned device leaves the audits of all of them.
func TestAFailedStartKeepsAFullPool(t *testing.T) {
	for _, test := range []struct {
		description string
		args        func(t *testing.T) []string
		want        []string
	}{
		{"a device that refuses", func(*testing.T) []string { return []string{"--audit.device=lo"} }, []string{"lo", "native XDP"}},
		{"a late failure, after a device has accepted", func(t *testing.T) []string {
			return append(lastRefusals[0].args(t), "--audit.device=audited1")
		}, []string{lastRefusals[0].want}},
		{"a late failure, with another layout", func(t *testing.T) []string {
			return append(lastRefusals[0].args(t), "--audit.device="+device+",audited1", "--audit.flows=1024")
		}, []string{lastRefusals[0].want}},
	} {
		t.Run(test.description, func(t *testing.T) {
			l := newLab(t)
			folder := l.mountBPF(0)
			l.connect("audited1", "sender1", 1)
			args, flows := l.fullPool(folder, device)
			l.start(binaries.exporter, serving(append(test.args(t), args...))).expectFailure(test.want...)
			if modes := l.attached(); !maps.Equal(modes, map[string]uint32{device: attachedDriver}) {
				t.Errorf("attached are %v", modes)
			}
			l.send(flows[device], 30)
			e := l.startExporter(append(args, "--audit.device="+device)...)
			e.expectLog(takenOver)
			e.expectPackets(device, 50)
			e.endWith(syscall.SIGTERM)
			l.unpin(folder)
		})
	}
}

// Devices that are wanted and have an index keep it, whatever the order of the configuration, and
// the packets between the processes are counted.
func TestWantedDevicesKeepTheirIndices(t *testing.T) {
	const first, second, third = device, "audited1", "audited2"
	for _, test := range []struct {
		description string
		pinned      []string
		refused     string
		flags       []string
		want        map[string]float64 // packets counted, 20 before and 30 after the start
	}{
		{"a new device is named first", []string{first, third}, "", []string{"--audit.device=" + second + "," + first}, map[string]float64{first: 80, second: 30}},
		{"the only index goes to a new device", []string{first}, "", []string{"--audit.device=" + second}, map[string]float64{second: 30}},
		{
			"a refused device of a glob comes first", []string{second, third}, first, []string{"--audit.device=audited*"},
			map[string]float64{second: 80, third: 80},
		},
		{
			"a refused device of a glob comes between", []string{first, third}, second, []string{"--audit.device=audited*"},
			map[string]float64{first: 80, third: 80},
		},
		{
			"a refused device takes no index from one that accepts", []string{third}, first, []string{"--audit.device=audited[01]"},
			map[string]float64{second: 30},
		},
	} {
		t.Run(test.description, func(t *testing.T) {
			l := newLab(t)
			folder := l.mountBPF(0)
			l.connect(second, "sender1", 1)
			l.connect(third, "sender2", 2)
			args, flows := l.fullPool(folder, test.pinned...)
			attached := slices.Collect(maps.Keys(test.want))
			var other link.Link
			if test.refused != "" {
				_, other = l.occupy(test.refused, link.XDPDriverMode)
				attached = append(attached, test.refused)
			}
			for _, f := range flows {
				l.send(f, 30)
			}
			e := l.startExporter(append(args, test.flags...)...)
			l.awaitAttached(attached...)
			for _, p := range l.pairs {
				name := p.audited.Device
				if _, isWanted := test.want[name]; isWanted && flows[name] == nil {
					flows[name] = l.newFlow(p.audited.IPv4.Addr())
				}
			}
			for name := range test.want {
				l.send(flows[name], 30)
			}
			s := e.atRest()
			for name, want := range test.want {
				if got := s.sum("packets_total", "device="+name); got != want {
					t.Errorf("%v packets were counted on %s, want %v", got, name, want)
				}
			}
			e.endWith(syscall.SIGTERM)
			if other != nil {
				other.Close()
			}
			l.unpin(folder)
		})
	}
}
