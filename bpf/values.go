// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"math"
	"net/netip"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// Uint128 is an unsigned 128-bit integer, such as the sums in the maps.
type Uint128 = timing.Uint128

// State is a baseline as the kernel keeps it: the number of samples, their mean, and the sum of
// squared deviations from the mean, in units of the [Domain].
type State = timing.State

// Histogram counts deltas by cell. Each bucket boundary of the native and the classic histogram
// is a boundary between two cells.
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
	ProtocolOther Protocol = iota // another one, or unknown: not IP, or not parsed
	ProtocolTCP
	ProtocolUDP
	ProtocolSCTP
	ProtocolICMP // ICMP over IPv4, ICMPv6 over IPv6
	NumProtocols
)

// Outcome is the result of auditing a packet. Every packet has exactly one.
type Outcome uint8

// The outcomes, in the order of the cells in the maps.
const (
	OutcomeJudged       Outcome = iota // scored, |t| below the threshold
	OutcomeMinSamples                  // added to a baseline with too few samples to score
	OutcomeNewFlow                     // first packet of a flow, without a delta
	OutcomeFlaggedEarly                // scored, early, |t| at or above the threshold
	OutcomeFlaggedLate                 // scored, late, |t| at or above the threshold
	OutcomeIdleGap                     // silence longer than the idle timeout: a pause, not a delta
	OutcomeReordered                   // its time is before that of the flow's last packet
	OutcomeContended                   // another CPU held the lock of the flow's set: not scored
	OutcomeFragment                    // a fragment other than the first, without ports
	OutcomeUntimed                     // the audit clock had no timestamp for it
	OutcomeUnparsed                    // not IP, truncated or malformed
	NumOutcomes
)

// Fate is the result of sending the perf event of a flagged packet. Every flagged packet has
// exactly one.
type Fate uint8

// The fates, in the order of the cells in the maps.
const (
	FateSent       Fate = iota // written to the ring of the CPU
	FateRateLimit              // over the event rate of the CPU
	FateRingFull               // no space in the ring of the CPU
	FateNoReader               // the CPU has no ring
	FateSuppressed             // the calibration withheld it
	FateOther                  // refused by the kernel for another reason
	FateReaderGap              // lost in the ring of a process that had ended
	NumFates

	fateNoToken Fate = 7 // FATE_NO_TOKEN in the maps, part of FateSuppressed
)

// Decision is what the calibration decides on a flagged packet. Only packets that the rate limit
// does not refuse have one.
type Decision uint8

// The decisions, in the order of the cells in the maps.
const (
	DecisionEarned   Decision = iota // an event, by a token that the flow earned with its packets
	DecisionUnearned                 // an event, by a token that every flow has
	DecisionCommon                   // no event: common for its flow, and no token is left for such
	DecisionNoToken                  // no event: rare for its flow, but no token is left
	NumDecisions
)

// Eviction is the reason why a flow lost its slot to a new flow.
type Eviction uint8

// The eviction reasons, in the order of the cells in the maps.
const (
	EvictionExpired Eviction = iota // the flow had been silent for longer than the idle timeout
	EvictionLive                    // the flow was active: the table is too small
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
	decisionNames = [NumDecisions]string{"earned", "unearned", "common", "no_token"}
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

// String returns the value of the label decision.
func (d Decision) String() string { return decisionNames[d] }

// String returns the value of the label reason.
func (e Eviction) String() string { return evictionNames[e] }

// Packets counts packets by family, protocol and outcome.
type Packets [NumFamilies][NumProtocols][NumOutcomes]uint64

// Outcome returns the number of packets with an outcome, over all families and protocols.
func (p *Packets) Outcome(o Outcome) uint64 {
	var sum uint64
	for f := range p {
		for q := range p[f] {
			sum += p[f][q][o]
		}
	}
	return sum
}

// Deltas returns the number of packets whose delta was measured: those that were scored, and
// those with too few samples.
func (p *Packets) Deltas() uint64 {
	return p.Outcome(OutcomeJudged) + p.Outcome(OutcomeMinSamples) + p.Outcome(OutcomeFlaggedEarly) + p.Outcome(OutcomeFlaggedLate)
}

// Judged returns the number of packets that were scored, flagged or not.
func (p *Packets) Judged() uint64 {
	return p.Outcome(OutcomeJudged) + p.Outcome(OutcomeFlaggedEarly) + p.Outcome(OutcomeFlaggedLate)
}

// Protocol returns the number of packets of one family and protocol, over all outcomes.
func (p *Packets) Protocol(f Family, q Protocol) uint64 {
	var sum uint64
	for _, n := range p[f][q] {
		sum += n
	}
	return sum
}

// DeltaSums are sums over the deltas (inter-arrival times) of one device relative to a fixed
// reference. They are exact to the nanosecond.
type DeltaSums struct {
	ReferenceNs uint64  // the first measured delta; 0 before it
	AboveNs     Uint128 // Σ max(delta − reference, 0)
	BelowNs     Uint128 // Σ max(reference − delta, 0)
	SquaredNs2  Uint128 // Σ (delta − reference)²
	TotalNs     Uint128 // Σ delta
}

// Flag describes a flagged packet: its delta, and the baseline that it was scored against,
// before the packet was added to it. Both are the arguments of the t-score.
type Flag struct {
	AuditNs  uint64  // the packet's time on the audit clock
	KtimeNs  uint64  // CLOCK_MONOTONIC when the packet was scored
	DeltaNs  uint64  // time since the flow's last packet
	Domain   Domain  // scale of the score: the unit is 1 ns, or 2⁻²⁰ octaves
	Samples  uint64  // n, the samples in the baseline
	MeanQ16  uint64  // mean of the baseline in 2⁻¹⁶ units
	M2       Uint128 // sum of squared deviations from the mean in units², as clipped
	Clip     float64 // Config.Clip
	LenBytes uint32  // length of the frame
	Late     bool    // later than the mean; false: earlier
}

// Baseline is the baseline of a device, merged over all CPUs.
type Baseline struct {
	Domain  Domain  // scale of the samples: the unit is 1 ns, or 2⁻²⁰ octaves
	Samples uint64  // number of samples; halved from time to time, on each CPU separately
	MeanQ16 uint64  // mean in 2⁻¹⁶ units
	M2      Uint128 // sum of squared deviations from the mean in units², corrected for the clip

	FrozenSince time.Time // time at which a frozen baseline was saved; zero if it learns
}

// MeanNs returns the mean of the deltas in nanoseconds, in the domain log2 their geometric
// mean. It is 0 without samples.
func (b Baseline) MeanNs() float64 {
	if b.Samples == 0 {
		return 0
	}
	return b.Domain.MeanNs(b.state())
}

// StandardDeviation returns the standard deviation of the deltas, in nanoseconds, or in the
// domain log2 in octaves. It is 0 with fewer than two samples, and otherwise at least that of
// rounding to nanoseconds.
func (b Baseline) StandardDeviation() float64 {
	if b.Samples < 2 {
		return 0
	}
	return math.Sqrt(timing.Params{Domain: b.Domain}.Variance(b.state()))
}

func (b Baseline) state() State {
	return State{N: b.Samples, MeanQ16: b.MeanQ16, M2: b.M2}
}

// Score returns the t-score of the flagged packet. It is negative if the packet was early.
func (f Flag) Score() float64 { return f.params().Score(f.DeltaNs, f.baseline()) }

func (f Flag) params() timing.Params { return timing.Params{Domain: f.Domain, Clip: f.Clip} }

// MeanNs returns the mean of the baseline in nanoseconds, in the domain log2 the geometric mean
// of its deltas.
func (f Flag) MeanNs() float64 { return f.Domain.MeanNs(f.baseline()) }

// StandardDeviation returns the standard deviation of the baseline, in nanoseconds, or in the
// domain log2 in octaves.
func (f Flag) StandardDeviation() float64 { return math.Sqrt(f.params().Variance(f.baseline())) }

func (f Flag) baseline() State {
	return State{N: f.Samples, MeanQ16: f.MeanQ16, M2: f.M2}
}

// Counters are the exact counters of one device since it was first attached, summed over the CPUs.
type Counters struct {
	Device    string
	Packets   Packets
	Bytes     [NumFamilies][NumProtocols]uint64
	Fates     [NumFates]uint64
	Decisions [NumDecisions]uint64 // 0 if Config.Calibrate is 0
	Inserts   uint64               // flows inserted into the flow table
	Restarts  uint64               // baselines that restarted at the level of a run of flags
	Evictions [NumEvictions]uint64 // flows that lost their slot to a new flow of this device
	Sums      DeltaSums
	Histogram Histogram // deltas by cell
	LastFlag  *Flag     // the last flagged packet; nil before the first one
	Baseline  *Baseline // nil if each flow has its own baseline
}

// Hook is the state of one audited device.
type Hook struct {
	Device     string
	Up         bool   // a device of that name in this network namespace runs the program now
	Reason     string // why it is not up; empty while it is
	Received   uint64 // packets that the kernel counts as received by the device, if it is up
	Mode       string // drv, skb or hw; empty when the program is not attached
	Driver     string // driver of the device; empty if the kernel does not name it
	Clock      string // ktime, hw or metadata
	ProgramID  uint32
	ProgramTag string
}

// Runs counts the runs of one device's program and their time. The kernel counts them while
// kernel.bpf_stats_enabled is 1.
type Runs struct {
	Device string
	Count  uint64
	TimeNs uint64
}

// DeviceSlots counts the slots for devices: one for each device that can be audited at a time.
type DeviceSlots struct {
	Total   int
	Used    int // slots of devices that are present or named in the configuration
	Refused int // devices that match a glob and got no slot

	// GoneFlows is the number of flows that vanished devices inserted into the flow table, less
	// the number that they evicted. GoneFlows plus the inserts of the other devices, less their
	// evictions, is the number of used slots.
	GoneFlows int64
}

// EventCounts are the counts of the reader of audit_events.
type EventCounts struct {
	Received  map[string]uint64 // events received, by device
	Lost      uint64            // records that the kernel reported as lost (PERF_RECORD_LOST)
	Malformed uint64            // records that could not be decoded
}

// Event is the perf event of a flagged packet.
type Event struct {
	Flag
	Device string
	Time   time.Time // wall time at which the packet was scored

	// Source and Destination are those of the packet. For ICMP the port of Source is the echo
	// identifier, and that of Destination is type·256+code, as in NetFlow.
	Source, Destination netip.AddrPort

	Protocol       Protocol
	ProtocolNumber uint8  // as in the IP header
	VLAN           uint16 // outer VLAN id in the frame; 0 without a tag
}
