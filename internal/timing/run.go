// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

const (
	leastRun      = 64      // flagged packets of a run, from the second on, for a restart
	longestRun    = 1 << 30 // longer than any run that the kernel program counts
	mostPatience  = 4
	gapPenalty    = 8
	shortestRunNs = 50_000 // a shorter run is a burst, such as packets after an interrupt
)

// Run counts the flagged packets of a baseline in a row on one side, and learns their level.
type Run struct {
	Packets  uint32 // less 8 for each packet in between that was not flagged
	IsLate   bool   // the side
	SinceNs  uint64 // time of the second packet
	Level    State  // of the packets from the second on
	Patience uint8  // log2 of the factor by which a run has to be longer
}

// RestartRun returns the number of flagged packets in a row on one side, after the first, that make
// a new level: as many as a baseline needs before it judges. It is 0 with a threshold of 0, at
// which every packet is flagged and there is no new level.
func (p Params) RestartRun() uint32 {
	if p.Threshold == 0 {
		return 0
	}
	return uint32(max(leastRun, p.MinSamples))
}

// Restarts counts the decision on a packet of a flow, with its delta and time. A run that is long
// enough is a new level: the baseline of the run's packets takes the place of s, and Restarts
// returns true.
//
// A run that lasts for less than 50 µs is a burst. A baseline that is replaced soon doubles the
// length of the next run, up to 16 times: a flow that changes its level all the time gets one
// baseline of all levels, and delays that come in runs stay flagged.
func (p Params) Restarts(r *Run, s *State, d Decision, deltaNs, nowNs uint64) bool {
	return p.count(r, d, deltaNs, nowNs) && p.restart(r, s)
}

// DeviceRestarts is Restarts for the baseline of a device. When the host pauses once, the next
// packet of each flow is late. Therefore the run also has to last for two of its deltas.
func (p Params) DeviceRestarts(r *Run, s *State, d Decision, deltaNs, nowNs uint64) bool {
	return p.count(r, d, deltaNs, nowNs) && nowNs-r.SinceNs >= 2*deltaNs && p.restart(r, s)
}

func (p Params) count(r *Run, d Decision, deltaNs, nowNs uint64) bool {
	if d != Early && d != Late {
		r.skip(1)
		return false
	}
	return p.addFlagged(r, d == Late, deltaNs, nowNs)
}

// skip counts packets that are not flagged.
func (r *Run) skip(packets uint64) {
	r.Packets -= uint32(min(uint64(r.Packets), gapPenalty*packets))
}

// addFlagged counts a flagged packet. It reports whether the run is long enough for a restart.
func (p Params) addFlagged(r *Run, isLate bool, deltaNs, nowNs uint64) bool {
	if p.RestartRun() == 0 {
		return false
	}
	if r.Packets == 0 || isLate != r.IsLate {
		r.Packets, r.IsLate = 1, isLate
		return false
	}
	if r.Packets == 1 {
		r.SinceNs, r.Level = nowNs, State{}
	}
	x := p.Domain.sample(deltaNs) << meanShift
	p.update(&r.Level, max(x, r.Level.MeanQ16)-min(x, r.Level.MeanQ16), x < r.Level.MeanQ16)
	r.Packets = min(r.Packets+1, longestRun)
	return r.Packets > p.RestartRun()<<r.Patience && nowNs-r.SinceNs >= shortestRunNs
}

// restart makes the level of the run the baseline.
func (p Params) restart(r *Run, s *State) bool {
	if s.N-uint64(r.Packets) >= uint64(p.RestartRun())<<mostPatience {
		r.Patience = 0
	} else {
		r.Patience = min(r.Patience+1, mostPatience)
	}
	*s = r.Level
	p.learnt(s)
	r.Packets = 0
	return true
}
