// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package pages

import (
	"cmp"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/history"
)

const (
	span       = history.Points * history.Interval // ten minutes
	sparkSteps = 60
	rateAge    = 5 * history.Interval // the time over which a rate is measured
	perPage    = history.MaxDevices   // devices on a page
)

// Status is the content of the page of the status.
type Status struct {
	Time          time.Time   `json:"time"`
	Version       string      `json:"version"`
	Revision      string      `json:"revision"`
	UptimeSeconds float64     `json:"uptime_seconds"`
	Devices       []Device    `json:"devices"`
	DeviceSlots   DeviceSlots `json:"device_slots"`
	Events        Events      `json:"events"`
	FlowTable     FlowTable   `json:"flow_table"`
	Privileges    *Privileges `json:"privileges,omitempty"` // nil if they are not known

	Fates       stack `json:"-"`
	Page, Pages int   `json:"-"`
	Up          int   `json:"-"`
}

// Device is the state of a device.
type Device struct {
	Name   string `json:"device"`
	State  string `json:"state"`            // up, down or gone
	Reason string `json:"reason,omitempty"` // why it is not up
	Mode   string `json:"mode,omitempty"`
	Driver string `json:"driver,omitempty"`
	Clock  string `json:"clock,omitempty"`

	// The counts are those of the metrics.
	Packets      uint64 `json:"packets"`
	Bytes        uint64 `json:"bytes"`
	Scored       uint64 `json:"scored"`
	FlaggedEarly uint64 `json:"flagged_early"`
	FlaggedLate  uint64 `json:"flagged_late"`
	Unparsed     uint64 `json:"unparsed"`

	// The rates are those of the last ten seconds, the shares those of the last ten minutes, null
	// without anything to divide by.
	PacketsPerSecond float64  `json:"packets_per_second"`
	BitsPerSecond    float64  `json:"bits_per_second"`
	FlaggedShare     *float64 `json:"flagged_share"`  // of the scored packets
	UnparsedShare    *float64 `json:"unparsed_share"` // of the packets
	RareShare        *float64 `json:"rare_share"`     // of the flags with a decision
	LearningShare    *float64 `json:"learning_share"` // of the packets

	LastFlag *LastFlag `json:"last_flag"`
	LastSeen time.Time `json:"last_seen"`

	PacketSpark, FlagSpark spark `json:"-"`
}

// LastFlag is the last flagged packet of a device.
type LastFlag struct {
	Time         time.Time `json:"time"`
	TScore       float64   `json:"tscore"` // negative if the packet was early
	DeltaSeconds float64   `json:"delta_seconds"`
	LengthBytes  uint32    `json:"length_bytes"`
}

// DeviceSlots counts the slots for devices.
type DeviceSlots struct {
	Total   int `json:"total"`
	Used    int `json:"used"`
	Refused int `json:"refused"`
}

// Events counts flagged packets by the fate of their event. Fates add up to Flags at rest.
type Events struct {
	Flags     uint64            `json:"flags"`
	Fates     map[string]uint64 `json:"fates"`
	Received  uint64            `json:"received"`
	Lost      uint64            `json:"records_lost"`
	Malformed uint64            `json:"records_malformed"`
}

// FlowTable is the use of the flow table.
type FlowTable struct {
	Slots            int     `json:"slots"`
	Used             int64   `json:"used"`
	UsedShare        float64 `json:"used_share"`
	Inserts          uint64  `json:"inserts"`
	EvictionsExpired uint64  `json:"evictions_expired"`
	EvictionsLive    uint64  `json:"evictions_live"`
}

var fateMeanings = [bpf.NumFates]string{
	bpf.FateSent:       "an event was sent",
	bpf.FateRateLimit:  "above the event rate of the CPU",
	bpf.FateRingFull:   "the ring of the CPU was full",
	bpf.FateNoReader:   "the CPU has no ring",
	bpf.FateSuppressed: "the flow had no token for it",
	bpf.FateOther:      "refused by the kernel",
	bpf.FateReaderGap:  "lost in the ring of an earlier process",
}

// status returns the content of the status page. The parameter page selects devices.
func (s *Site) status(r *http.Request) (any, error) {
	now := s.Now()
	counters := s.Source.Counters()
	status := &Status{
		Time: now, Version: s.Version, Revision: s.Revision, UptimeSeconds: now.Sub(s.started).Seconds(),
		Devices: s.devices(now, counters), DeviceSlots: DeviceSlots(slotsOf(s.Source.DeviceSlots())),
		Events: s.events(counters), FlowTable: s.flowTable(counters),
	}
	if s.Privileges != nil {
		held := *s.Privileges
		if held.Capabilities == nil {
			held.Capabilities = []string{} // not null
		}
		status.Privileges = &held
	}
	status.Fates.Name = "flagged packets"
	for fate := range bpf.NumFates {
		status.Fates.add(fate.String(), fateMeanings[fate], status.Events.Fates[fate.String()])
	}
	status.Fates.place()
	for i := range status.Devices {
		if status.Devices[i].State == "up" {
			status.Up++
		}
	}
	if !isAPI(r) {
		status.Pages = max(1, (len(status.Devices)+perPage-1)/perPage)
		page, _ := strconv.Atoi(r.URL.Query().Get("page"))
		status.Page = min(max(page, 1), status.Pages)
		first := (status.Page - 1) * perPage
		status.Devices = status.Devices[first:min(first+perPage, len(status.Devices))]
		for i := range status.Devices {
			s.drawSparks(now, &status.Devices[i])
		}
	}
	return status, nil
}

func isAPI(r *http.Request) bool {
	return len(r.URL.Path) > len(APIPath) && r.URL.Path[:len(APIPath)] == APIPath
}

func slotsOf(d bpf.DeviceSlots) struct{ Total, Used, Refused int } {
	return struct{ Total, Used, Refused int }{d.Total, d.Used, d.Refused}
}

// devices returns the state of all devices, in the order of the configuration, and after them those
// that have vanished within the last ten minutes.
func (s *Site) devices(now time.Time, counters []bpf.Counters) []Device {
	byName := make(map[string]*bpf.Counters, len(counters))
	for i := range counters {
		byName[counters[i].Device] = &counters[i]
	}
	devices, known := []Device{}, map[string]bool{}
	for _, hook := range s.Source.Hooks() {
		known[hook.Device] = true
		d := Device{Name: hook.Device, State: "down", Reason: hook.Reason, Mode: hook.Mode, Driver: hook.Driver, Clock: hook.Clock, LastSeen: now}
		if hook.Up {
			d.State = "up"
		}
		s.fill(now, &d, byName[hook.Device])
		devices = append(devices, d)
	}
	var gone []Device
	for name, seen := range s.History.Names() {
		if known[name] {
			continue
		}
		d := Device{Name: name, State: "gone", Reason: "the device has vanished", LastSeen: seen}
		s.fill(now, &d, byName[name])
		gone = append(gone, d)
	}
	slices.SortFunc(gone, func(a, b Device) int { return cmp.Compare(a.Name, b.Name) })
	return append(devices, gone...)
}

// fill fills in the counts of a device. The counters are nil if it is not present.
func (s *Site) fill(now time.Time, d *Device, counters *bpf.Counters) {
	series := s.History.Device(d.Name)
	var p history.Point
	switch {
	case counters != nil:
		p = history.NewPoint(now, counters)
	case len(series) > 0:
		p = series[len(series)-1]
	}
	d.Packets, d.Bytes, d.Scored = p.Packets, p.Bytes, p.Scored
	d.FlaggedEarly, d.FlaggedLate, d.Unparsed = p.Early, p.Late, p.Unparsed
	if counters != nil && counters.LastFlag != nil {
		d.LastFlag = newLastFlag(counters.LastFlag)
	}
	if first, last, ok := series.Since(rateAge); ok && d.State != "gone" && now.Sub(last.Time) < rateAge {
		d.PacketsPerSecond = history.Rate(&first, &last, packets)
		d.BitsPerSecond = 8 * history.Rate(&first, &last, func(p *history.Point) uint64 { return p.Bytes })
	}
	// In the first seconds the shares are those since the device was attached.
	var first history.Point
	if len(series) > 1 {
		first = series[0]
	}
	share := func(of, all func(*history.Point) uint64) *float64 {
		n, total := of(&p)-min(of(&p), of(&first)), all(&p)-min(all(&p), all(&first))
		if total == 0 {
			return nil
		}
		v := float64(n) / float64(total)
		return &v
	}
	d.FlaggedShare = share((*history.Point).Flags, func(p *history.Point) uint64 { return p.Scored })
	d.UnparsedShare = share(func(p *history.Point) uint64 { return p.Unparsed }, packets)
	d.RareShare = share(func(p *history.Point) uint64 { return p.Rare }, func(p *history.Point) uint64 { return p.Decided })
	d.LearningShare = share(func(p *history.Point) uint64 { return p.Learning }, packets)
}

func packets(p *history.Point) uint64 { return p.Packets }

func newLastFlag(flag *bpf.Flag) *LastFlag {
	return &LastFlag{
		Time: flag.WallTime(), TScore: finite(flag.Score()), DeltaSeconds: float64(flag.DeltaNs) / 1e9, LengthBytes: flag.LenBytes,
	}
}

// finite returns a number that JSON has.
func finite(v float64) float64 {
	switch {
	case math.IsNaN(v):
		return 0
	case math.IsInf(v, 0):
		return math.Copysign(math.MaxFloat64, v)
	}
	return v
}

func (s *Site) drawSparks(now time.Time, d *Device) {
	series := s.History.Device(d.Name)
	d.PacketSpark = newSpark(series.Rates(now, span, sparkSteps, packets), "packets per second", si)
	d.FlagSpark = newSpark(series.Rates(now, span, sparkSteps, (*history.Point).Flags), "flags per second", si)
}

// Path returns the path of the page of a device.
func (d *Device) Path() string { return devicePath(d.Name) }

func devicePath(name string) string { return "/device/" + url.PathEscape(name) }

// Flags returns the number of flagged packets.
func (d *Device) Flags() uint64 { return d.FlaggedEarly + d.FlaggedLate }

func (s *Site) events(counters []bpf.Counters) Events {
	counts := s.Source.EventCounts()
	e := Events{Fates: map[string]uint64{}, Lost: counts.Lost, Malformed: counts.Malformed}
	for fate := range bpf.NumFates {
		e.Fates[fate.String()] = 0
	}
	for i := range counters {
		c := &counters[i]
		e.Flags += c.Packets.Outcome(bpf.OutcomeFlaggedEarly) + c.Packets.Outcome(bpf.OutcomeFlaggedLate)
		e.Received += counts.Received[c.Device]
		for fate := range bpf.NumFates {
			e.Fates[fate.String()] += c.Fates[fate]
		}
	}
	return e
}

func (s *Site) flowTable(counters []bpf.Counters) FlowTable {
	t := FlowTable{Slots: s.Source.Slots(), Used: s.Source.DeviceSlots().GoneFlows}
	for i := range counters {
		t.Inserts += counters[i].Inserts
		t.EvictionsExpired += counters[i].Evictions[bpf.EvictionExpired]
		t.EvictionsLive += counters[i].Evictions[bpf.EvictionLive]
	}
	t.Used += int64(t.Inserts) - int64(t.EvictionsExpired) - int64(t.EvictionsLive)
	t.Used = max(0, min(t.Used, int64(t.Slots)))
	if t.Slots > 0 {
		t.UsedShare = float64(t.Used) / float64(t.Slots)
	}
	return t
}
