// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package pages

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

// Flags is the content of the page of the flags.
type Flags struct {
	Time  time.Time `json:"time"`
	Total uint64    `json:"events"` // read since the start, of all devices
	Flags []Flag    `json:"flags"`  // from the newest to the oldest

	Device    string   `json:"-"` // the filter
	Devices   []string `json:"-"`
	ShowFlows bool     `json:"-"`
}

// Flag is the event of a flagged packet.
type Flag struct {
	Time         time.Time `json:"time"`
	Device       string    `json:"device"`
	Direction    string    `json:"direction"` // early or late
	TScore       float64   `json:"tscore"`    // negative if the packet was early
	DeltaSeconds float64   `json:"delta_seconds"`
	MeanSeconds  float64   `json:"mean_seconds"`
	// StddevSeconds is the standard deviation; with --audit.domain=log2 it is StddevOctaves.
	StddevSeconds *float64 `json:"stddev_seconds,omitempty"`
	StddevOctaves *float64 `json:"stddev_octaves,omitempty"`
	Samples       uint64   `json:"samples"`
	LengthBytes   uint32   `json:"length_bytes"`
	Explanation   string   `json:"explanation"`
	Flow          *Flow    `json:"flow,omitempty"` // with --web.show-flows
}

// Flow is the flow of a flagged packet.
type Flow struct {
	Protocol    string `json:"protocol"`
	Source      string `json:"source"`
	Destination string `json:"destination"`
	VLAN        uint16 `json:"vlan,omitempty"`
}

// flags returns the last events. The parameter device selects those of a device.
func (s *Site) flags(r *http.Request) (any, error) {
	events, total := s.Flags.Last()
	f := &Flags{Time: s.Now(), Total: total, Device: r.URL.Query().Get("device"), ShowFlows: s.ShowFlows, Flags: []Flag{}}
	for _, hook := range s.Source.Hooks() {
		f.Devices = append(f.Devices, hook.Device)
	}
	for name := range s.History.Names() {
		f.Devices = append(f.Devices, name)
	}
	for i := range events {
		f.Devices = append(f.Devices, events[i].Device)
	}
	slices.Sort(f.Devices)
	f.Devices = slices.Compact(f.Devices)
	if f.Device != "" && !slices.Contains(f.Devices, f.Device) {
		return nil, errMissing{"There is no such device."}
	}
	for i := range events {
		if f.Device == "" || events[i].Device == f.Device {
			f.Flags = append(f.Flags, s.newFlag(&events[i]))
		}
	}
	return f, nil
}

func (s *Site) newFlag(event *bpf.Event) Flag {
	flag := Flag{
		Time: event.Time, Device: event.Device, Direction: "early", TScore: finite(event.Score()),
		DeltaSeconds: float64(event.DeltaNs) / 1e9, MeanSeconds: event.MeanNs() / 1e9,
		Samples: event.Samples, LengthBytes: event.LenBytes,
	}
	if event.Late {
		flag.Direction = "late"
	}
	deviation := event.StandardDeviation()
	spread := "±\u00a0" + nanoseconds(deviation)
	if event.Domain == bpf.DomainLog2 {
		flag.StddevOctaves = &deviation
		spread = "and spread by a factor of " + digits(exp2(deviation))
	} else {
		deviation /= 1e9
		flag.StddevSeconds = &deviation
	}
	flag.Explanation = fmt.Sprintf("%s after the flow's last packet; %s earlier gaps averaged %s %s.",
		seconds(flag.DeltaSeconds), grouped(flag.Samples), seconds(flag.MeanSeconds), spread)
	if s.ShowFlows {
		protocol := event.Protocol.String()
		if event.Protocol == bpf.ProtocolOther {
			protocol = fmt.Sprint(event.ProtocolNumber)
		}
		flag.Flow = &Flow{protocol, event.Source.String(), event.Destination.String(), event.VLAN}
	}
	return flag
}
