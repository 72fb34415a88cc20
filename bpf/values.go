// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"math"
	"net/netip"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// Uint128 is an unsigned 128-bit integer, as the sums in the maps are.
type Uint128 = timing.Uint128

// State is a baseline as the kernel keeps it: the number of samples, their mean, and the sum of squared deviations from it. Its
// unit is that of its [Domain].
type State = timing.State

// Histogram counts deltas by cell. Each bucket boundary of the native and the classic histogram is an edge between two cells.
type Histogram = timing.Histogram

// Family is the network layer of a packet, as the parser saw it.
type Family uint8

// The families, in the order of the cells in the maps.
const (
	FamilyOther Family = iota // not IP, or no complete Ethernet header
	FamilyIPv4
	FamilyIPv6
	NumFamilies
)

// Protocol is the transport of a packet, as the parser saw it.
type Protocol uint8

// The protocols, in the order of the cells in the maps.
const (
	ProtocolOther Protocol = iota // any other, or unknown because the packet is not IP or could not be parsed
	ProtocolTCP
	ProtocolUDP
	ProtocolSCTP
	ProtocolICMP // ICMP over IPv4, ICMPv6 over IPv6
	NumProtocols
)

// Outcome is what became of a packet; every packet has exactly one.
type Outcome uint8

// The outcomes, in the order of the cells in the maps.
const (
	OutcomeJudged       Outcome = iota // scored against its flow's baseline, below the threshold
	OutcomeMinSamples                  // delta entered a baseline that has too few samples to judge
	OutcomeNewFlow                     // first packet of a flow: there is no delta yet
	OutcomeFlaggedEarly                // scored, |t| at or above the threshold, earlier than the mean
	OutcomeFlaggedLate                 // scored, |t| at or above the threshold, later than the mean
	OutcomeIdleGap                     // longer after its predecessor than the idle timeout: a pause, not a delta
	OutcomeReordered                   // its clock reads earlier than its flow's last packet
	OutcomeContended                   // another CPU held the flow's set: counted, not scored
	OutcomeFragment                    // a fragment that is not the first, so it has no ports
	OutcomeUntimed                     // the audit clock had no timestamp for it
	OutcomeUnparsed                    // not IP, truncated or malformed
	NumOutcomes
)

// Fate is what became of the perf event of a flagged packet.
type Fate uint8

// The fates, in the order of the cells in the maps.
const (
	FateSent       Fate = iota // written to this CPU's ring
	FateRateLimit              // over the event rate of this CPU
	FateRingFull               // no room in this CPU's ring
	FateNoReader               // no ring is open for this CPU
	FateSuppressed             // held back by calibration
	FateOther                  // the kernel refused it for another reason
	FateReaderGap              // left in a ring whose reader had ended
	NumFates
)

// Eviction is why a flow lost its slot to a new one.
type Eviction uint8

// The reasons of evictions, in the order of the cells in the maps.
const (
	EvictionExpired Eviction = iota // the flow had been silent for longer than the idle timeout
	EvictionLive                    // the table was too small: the flow was still active
	NumEvictions
)

var (
	familyNames   = [NumFamilies]string{"other", "ipv4", "ipv6"}
	protocolNames = [NumProtocols]string{"other", "tcp", "udp", "sctp", "icmp"}
	outcomeNames  = [NumOutcomes]string{
		"judged", "min_samples", "new_flow", "flagged_early", "flagged_late", "idle_gap", "reordered",
		"contended", "fragment", "untimed", "unparsed",
	}
	fateNames     = [NumFates]string{"sent", "rate_limit", "ring_full", "no_reader", "suppressed", "other", "reader_gap"}
	evictionNames = [NumEvictions]string{"expired", "live"}
)

// String returns the value of the label family.
func (f Family) String() string { return familyNames[f] }

// String returns the value of the label protocol.
func (p Protocol) String() string { return protocolNames[p] }

// String returns the value of the label outcome.
func (o Outcome) String() string { return outcomeNames[o] }

// String returns the value of the label fate.
func (f Fate) String() string { return fateNames[f] }

// String returns the value of the label reason.
func (e Eviction) String() string { return evictionNames[e] }

// Packets counts packets by family, protocol and outcome.
type Packets [NumFamilies][NumProtocols][NumOutcomes]uint64

// Outcome returns the packets that had an outcome, over all families and protocols.
func (p *Packets) Outcome(o Outcome) uint64 {
	var sum uint64
	for f := range p {
		for q := range p[f] {
			sum += p[f][q][o]
		}
	}
	return sum
}

// Deltas returns the packets whose delta was measured: those that were judged, or will be once there are enough samples.
func (p *Packets) Deltas() uint64 {
	return p.Outcome(OutcomeJudged) + p.Outcome(OutcomeMinSamples) + p.Outcome(OutcomeFlaggedEarly) + p.Outcome(OutcomeFlaggedLate)
}

// Judged returns the packets that were scored, flagged or not.
func (p *Packets) Judged() uint64 {
	return p.Outcome(OutcomeJudged) + p.Outcome(OutcomeFlaggedEarly) + p.Outcome(OutcomeFlaggedLate)
}

// Protocol returns the packets of one family and protocol, over all outcomes.
func (p *Packets) Protocol(f Family, q Protocol) uint64 {
	var sum uint64
	for _, n := range p[f][q] {
		sum += n
	}
	return sum
}

// DeltaSums are sums over the deltas (inter-arrival times) of one device around a fixed reference, exact to the nanosecond.
type DeltaSums struct {
	ReferenceNs uint64  // the first delta that was measured; 0 before any
	AboveNs     Uint128 // Σ max(delta − reference, 0)
	BelowNs     Uint128 // Σ max(reference − delta, 0)
	SquaredNs2  Uint128 // Σ (delta − reference)²
	TotalNs     Uint128 // Σ delta
}

// Flag is the state that a packet was judged by: the arguments of the t-score, before the packet entered the baseline.
type Flag struct {
	AuditNs  uint64  // the packet's time on the audit clock
	KtimeNs  uint64  // CLOCK_MONOTONIC when it was judged
	DeltaNs  uint64  // time since the flow's last packet
	Domain   Domain  // scale that it was judged on: its unit is 1 ns, or 2⁻²⁰ octaves
	Samples  uint64  // n, the samples in the baseline
	MeanQ16  uint64  // mean of the baseline in 2⁻¹⁶ units
	M2       Uint128 // sum of squared deviations from the mean in units²
	LenBytes uint32  // length of the frame
	Late     bool    // later than the mean, or else earlier
}

// Baseline is the baseline of a device, its samples on all CPUs together.
type Baseline struct {
	Domain  Domain  // scale of the samples: their unit is 1 ns, or 2⁻²⁰ octaves
	Samples uint64  // halved from time to time, on each CPU by itself
	MeanQ16 uint64  // mean in 2⁻¹⁶ units
	M2      Uint128 // sum of squared deviations from the mean in units²

	FrozenSince time.Time // when it was saved, if it is audited against and not taught; else zero
}

// Calibration says which flagged packets of a device are rare enough to become events.
type Calibration struct {
	Judged       uint64     // packets that it was learnt from, on all CPUs; halved from time to time, on each CPU by itself
	LearningCPUs int        // CPUs that have judged packets, and too few to tell what is rare: there every flag may become an event
	EventScores  [2]float64 // |t| from which on packets become events, early and late ones, on the CPU where it is highest; may be infinite
}

// MeanNs returns the mean of the deltas in nanoseconds, in the domain log2 the geometric one; 0 without samples.
func (b Baseline) MeanNs() float64 {
	if b.Samples == 0 {
		return 0
	}
	return b.Domain.MeanNs(b.state())
}

// StandardDeviation returns that of the deltas, in nanoseconds, or in the domain log2 in octaves. It is 0 below two
// samples, and otherwise at least that of rounding to whole nanoseconds.
func (b Baseline) StandardDeviation() float64 {
	if b.Samples < 2 {
		return 0
	}
	return math.Sqrt(b.Domain.Variance(b.state()))
}

func (b Baseline) state() State {
	return State{N: b.Samples, MeanQ16: b.MeanQ16, M2: b.M2}
}

// Score returns the t-score of the flagged packet, negative when it came early.
func (f Flag) Score() float64 { return f.Domain.Score(f.DeltaNs, f.baseline()) }

// MeanNs returns the mean of the deltas in the baseline in nanoseconds, in the domain log2 the geometric one.
func (f Flag) MeanNs() float64 { return f.Domain.MeanNs(f.baseline()) }

// StandardDeviation returns that of the baseline, in nanoseconds, or in the domain log2 in octaves.
func (f Flag) StandardDeviation() float64 { return math.Sqrt(f.Domain.Variance(f.baseline())) }

func (f Flag) baseline() State {
	return State{N: f.Samples, MeanQ16: f.MeanQ16, M2: f.M2}
}

// Counters are the exact counters of one device since it was attached, summed over the CPUs.
type Counters struct {
	Device    string
	Packets   Packets
	Bytes     [NumFamilies][NumProtocols]uint64
	Fates     [NumFates]uint64
	Inserts   uint64               // flows that were given a slot
	Evictions [NumEvictions]uint64 // flows that lost their slot to a new one
	Sums      DeltaSums
	Histogram Histogram // deltas by cell
	LastFlag  *Flag     // the last flagged packet; nil before any
	Baseline  *Baseline // of the device; nil where flows have baselines of their own

	Calibration *Calibration // nil without
}

// Hook is the state of one audited device.
type Hook struct {
	Device     string
	Up         bool   // the program is attached
	Mode       string // drv, skb or hw: the mode it is attached in; empty when it is not
	Driver     string // the device's driver; empty when the kernel does not name one
	Clock      string // ktime, hw or metadata
	ProgramID  uint32
	ProgramTag string
}

// Runs is what the kernel accounts for one device's program while kernel.bpf_stats_enabled is 1.
type Runs struct {
	Device string
	Count  uint64
	TimeNs uint64
}

// DeviceSlots counts the devices that there is room for.
type DeviceSlots struct {
	Total   int
	Used    int // by devices that are there, or are named in the configuration
	Refused int // devices that match a glob and found no room

	// GoneFlows are the flows that were given a slot of the flow table less those that lost it, of devices that are gone.
	GoneFlows int64
}

// EventCounts are counts of the reading side of audit_events.
type EventCounts struct {
	Received  map[string]uint64 // events received, by device
	Lost      uint64            // records that the kernel reported lost (PERF_RECORD_LOST)
	Malformed uint64            // records that could not be decoded
}

// Event is a flagged packet as the kernel reported it.
type Event struct {
	Flag
	Device         string
	Time           time.Time // wall time at which the packet was judged
	Source         netip.AddrPort
	Destination    netip.AddrPort // for ICMP the port is type·256+code, as in NetFlow, and Source's the echo identifier
	Protocol       Protocol
	ProtocolNumber uint8  // as in the IP header
	VLAN           uint16 // outer VLAN id as seen in the frame; 0 without a tag
}
