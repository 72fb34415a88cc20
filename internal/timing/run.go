// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

const (
	restartRun    = 64     // flagged packets in a row on one side after which a baseline restarts
	longestRun    = 256    // longer than any run that the kernel program counts
	shortestRunNs = 50_000 // a shorter run is a burst, such as packets after an interrupt
)

// Run counts the flagged packets of a baseline in a row on one side.
type Run struct {
	packets uint32
	side    Decision
	sinceNs uint64 // time of its second packet
}

// RestartRun returns the number of flagged packets in a row on one side after which a baseline
// restarts: the level of the traffic has changed, and an empty baseline learns the new level sooner
// than one that clips it. With a threshold of 0, at which every packet is flagged, no baseline
// restarts.
func (p Params) RestartRun() uint32 {
	if p.Threshold == 0 {
		return longestRun
	}
	return restartRun
}

// Restarts counts the decision on the packet of a flow after the last counted one, with its time.
// It reports whether the baseline restarts: whether the caller has to empty it after this packet.
// A run that lasts for less than 50 µs is a burst.
func (p Params) Restarts(r *Run, d Decision, nowNs uint64) bool {
	return p.countRun(r, d, nowNs) && r.end()
}

// DeviceRestarts is Restarts for the baseline of a device, with the delta of the packet. When the
// host pauses once, the next packet of each flow is late. Therefore the run also has to last for
// two of its deltas.
func (p Params) DeviceRestarts(r *Run, d Decision, nowNs, deltaNs uint64) bool {
	return p.countRun(r, d, nowNs) && nowNs-r.sinceNs >= 2*deltaNs && r.end()
}

// countRun reports whether the run is long enough for a restart.
func (p Params) countRun(r *Run, d Decision, nowNs uint64) bool {
	if d != Early && d != Late {
		*r = Run{}
		return false
	}
	if d != r.side {
		*r = Run{side: d}
	}
	if r.packets == 1 {
		r.sinceNs = nowNs
	}
	r.packets = min(r.packets+1, longestRun-1)
	return r.packets >= p.RestartRun() && nowNs-r.sinceNs >= shortestRunNs
}

func (r *Run) end() bool {
	*r = Run{}
	return true
}
