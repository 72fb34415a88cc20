// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package timing

import "math"

// A flow is entitled to events by tokens of its own, which no other flow can use up:
//
//   - For each judged packet it earns Params.Calibrate tokens, at most [mostTokens]. They are for
//     flags that are rare for the flow; the last one, which a further packet would make overflow,
//     is for any flag.
//   - It has [mostTokens] unearned tokens for any flag, and each comes back within the hour.
//
// A flag is rare if its score reaches the cut of its side. Each rare flag raises the cut by a step,
// and each judged packet lowers it by the step times half of Params.Calibrate: the rare flags of a
// side are that share of the packets in the long run, whatever the distribution of the scores
// (stochastic approximation, Robbins and Monro 1951; with quantiles in this form: adaptive
// conformal inference, Gibbs and Candès 2021). Among N packets of a flow at most Calibrate · N +
// mostTokens events are earned.

// The constants of entitlement.
const (
	tokenShift = 32 // fraction bits of a token, of a cut and of a share
	oneToken   = 1 << tokenShift
	mostTokens = 8 // of each kind, for a flow

	unearnedIntervalNs = 3600e9 / mostTokens
	unearnedBurstNs    = mostTokens * unearnedIntervalNs

	cutShift  = 3 // a step is an eighth of an octave of t²
	cutStep   = oneToken >> cutShift
	timeShift = 11 // time lowers a cut by 2⁻⁴³ octaves per ns, three steps an hour

	// youngSamples is the number of samples up to which a baseline is young. Scores against a young
	// baseline raise no cut.
	youngSamples = 512

	mostHalvings = 253

	minCalibrate = 1e-6
	maxCalibrate = 0.1
)

// Token says what entitles a flag to become an event, or why nothing does.
type Token uint8

// The tokens.
const (
	TokenEarned   Token = iota
	TokenSurplus        // the earned one that would overflow, for a flag that is common
	TokenUnearned       // one of those that every flow has
	NoTokenCommon       // none is left for a flag that is common for its flow
	NoTokenLeft         // none is left for a flag that is rare for its flow
)

// FlowRecord is what flagged packets need to know of their flow. It is the model of
// bpf/xdp/record.h.
type FlowRecord struct {
	N          uint32    // of the baseline after the last flagged packet
	Run        Run       // as of the last flagged packet
	Earned     uint64    // tokens in 2⁻³²
	UnearnedAt uint64    // time on the audit clock after which an unearned token is left
	Drift      uint64    // by which judged packets have lowered the cuts, in 2⁻³² octaves
	Cuts       [2]uint64 // by side: log2 of t², plus the drift when the cut was raised

	Halvings   uint32 // of the baseline since the last flagged packet
	IsBaseline bool   // the flow was flagged since its baseline began
}

// NewFlowRecord returns the record of a flow whose first flagged packet is at that time.
func NewFlowRecord(nowNs uint64) FlowRecord { return FlowRecord{UnearnedAt: nowNs - unearnedBurstNs} }

// Flagged is a flagged packet.
type Flagged struct {
	Score
	DeltaNs uint64
	IsLate  bool
	Samples uint64 // n, of the baseline that the packet was scored against
	NowNs   uint64 // on the audit clock
}

// validateCalibrate returns an error unless alpha is 0 or within the range that the arithmetic
// resolves.
func validateCalibrate(alpha float64) error {
	if alpha == 0 || alpha >= minCalibrate && alpha <= maxCalibrate {
		return nil
	}
	return invalid("Calibrate", "calibration %v is neither 0 (off) nor between %v and %v", alpha, minCalibrate, maxCalibrate)
}

// EarnedShare returns the tokens that a flow earns for each judged packet, in 2⁻³². It is 0
// without calibration.
func (p Params) EarnedShare() uint32 { return uint32(math.Round(p.Calibrate * oneToken)) }

// CutFloor returns log2 of threshold² in 2⁻³² octaves, below which no cut falls.
func (p Params) CutFloor() uint64 {
	return uint64(math.Round(math.Ldexp(2*math.Log2(max(p.Threshold, 1)), tokenShift)))
}

// YoungSamples returns the number of samples from which on a baseline is no longer young.
func (p Params) YoungSamples() uint32 { return uint32(min(youngSamples, p.Window)) }

// Restart makes r the record of the same flow with a baseline that has no samples.
func (r *FlowRecord) Restart() { r.Halvings, r.IsBaseline = 0, false }

// CountHalving counts a halving of the baseline, which has n samples after a packet and had one
// less than that, or more, before it.
func (r *FlowRecord) CountHalving(before, n uint64) {
	if n != before+1 && r.Halvings < mostHalvings {
		r.Halvings++
	}
}

// judged returns the judged packets of the flow since its last flagged one, or since its baseline
// began. n is the number of samples of the baseline, with the packet that is being judged.
func (p Params) judged(r *FlowRecord, n uint64) uint32 {
	since := r.N
	if !r.IsBaseline {
		since = uint32(p.MinSamples)
	}
	return r.Halvings*uint32(p.Window) + uint32(n) - since
}

// Flag records a flagged packet in r and returns what entitles it. The caller calls Spend if the
// packet becomes an event. s is the flow's baseline with the packet, which Flag replaces at a new
// level, as [Params.Restarts] does. It reports whether it did.
func (p Params) Flag(r *FlowRecord, s *State, flag Flagged) (token Token, restarts bool) {
	judged := p.judged(r, s.N)
	restarts = p.countRun(r, judged, flag) && p.restart(&r.Run, s)
	r.N, r.Halvings, r.IsBaseline = uint32(s.N), 0, true
	return p.token(r, judged, flag), restarts
}

// FlagAlone is [Params.Flag] for a flow without a baseline of its own, of which n packets were
// judged.
func (p Params) FlagAlone(r *FlowRecord, n uint64, flag Flagged) Token {
	judged := uint32(n) - r.N
	if !r.IsBaseline {
		judged = uint32(n)
	}
	r.N, r.IsBaseline = uint32(n), true
	return p.token(r, judged, flag)
}

// countRun counts a flagged packet that is the judged one with that number since the last flagged.
func (p Params) countRun(r *FlowRecord, judged uint32, flag Flagged) bool {
	if !r.IsBaseline {
		r.Run.Packets = 0
	}
	if p.RestartRun() == 0 {
		return false
	}
	r.Run.skip(uint64(judged - 1))
	return p.addFlagged(&r.Run, flag.IsLate, flag.DeltaNs, flag.NowNs)
}

func (p Params) token(r *FlowRecord, judged uint32, flag Flagged) Token {
	if p.Calibrate == 0 {
		return TokenEarned
	}
	earned := uint64(judged) * uint64(p.EarnedShare())
	r.Drift += earned >> (cutShift + 1)
	r.Earned = min(r.Earned+earned, mostTokens*oneToken)
	level := r.Drift + flag.NowNs>>timeShift + p.CutFloor()
	side := 0
	if flag.IsLate {
		side = 1
	}
	height := uint64(max(int64(r.Cuts[side]-level), 0))
	isRare := flag.isAtLeast(height)
	if isRare && flag.Samples >= uint64(p.YoungSamples()) {
		r.Cuts[side] = level + height + cutStep
	}
	switch {
	case isRare && r.Earned >= oneToken:
		return TokenEarned
	case r.Earned >= (mostTokens-1)*oneToken:
		return TokenSurplus
	}
	switch {
	case !r.isUnearnedSpent(flag.NowNs):
		return TokenUnearned
	case isRare:
		return NoTokenLeft
	}
	return NoTokenCommon
}

// Cuts returns the |t| from which on a flag of the flow is rare, early and late, after n samples of
// its baseline and at a time on the audit clock. isAlone says that the flow has no baseline of its
// own; then n is the number of its judged packets.
func (p Params) Cuts(r *FlowRecord, n uint32, isAlone bool, nowNs uint64) (early, late float64) {
	var judged uint32
	switch {
	case r.IsBaseline && isAlone:
		judged = n - r.N
	case isAlone:
		judged = n
	case r.IsBaseline || n > uint32(p.MinSamples):
		judged = p.judged(r, uint64(n))
	}
	level := r.Drift + uint64(judged)*uint64(p.EarnedShare())>>(cutShift+1) + nowNs>>timeShift + p.CutFloor()
	of := func(cut uint64) float64 { // with the approximation of isAtLeast
		height := uint64(max(int64(cut-level), 0))
		fraction := float64(uint32(height)) / oneToken
		return p.Threshold * math.Sqrt(math.Ldexp(1+fraction, int(height>>tokenShift)))
	}
	return of(r.Cuts[0]), of(r.Cuts[1])
}

// isUnearnedSpent reports whether a flow has no unearned token left: it gets one within the time of
// one. A clock that was set back gives it all of them.
func (r *FlowRecord) isUnearnedSpent(nowNs uint64) bool {
	return r.UnearnedAt-nowNs <= unearnedIntervalNs
}

// spendUnearned takes an unearned token.
func (r *FlowRecord) spendUnearned(nowNs uint64) {
	all := nowNs - unearnedBurstNs + unearnedIntervalNs - 1
	if r.UnearnedAt-all > unearnedBurstNs {
		r.UnearnedAt = all
	}
	r.UnearnedAt += unearnedIntervalNs
}

// Spend takes a token from a flow.
func (p Params) Spend(r *FlowRecord, token Token, nowNs uint64) {
	switch {
	case p.Calibrate == 0:
	case token == TokenEarned, token == TokenSurplus:
		r.Earned -= oneToken
	case token == TokenUnearned:
		r.spendUnearned(nowNs)
	}
}

// Refuse takes the place of Spend for an event that the rate limit refused. It costs no token,
// except for the surplus one: in a storm of flags it would stay, and entitle each of them.
func (p Params) Refuse(r *FlowRecord, token Token) {
	if token == TokenSurplus {
		r.Earned -= oneToken
	}
}

// isAtLeast reports whether t² reaches threshold² · 2^cut, for a cut in 2⁻³² octaves. 2^cut is
// approximated by (1 + f) · 2^w, with the fraction f and the whole octaves w of the cut.
func (s Score) isAtLeast(cut uint64) bool {
	const half = 1 << 31
	octaves := -s.shift - int(cut>>tokenShift)
	left, right := s.left>>32*half, s.right>>32*(half+uint64(uint32(cut))>>1)
	switch {
	case octaves < -1: // left is less than four times as large as right
		return false
	case octaves == -1:
		return left>>1 >= right
	case octaves <= 2:
		return left >= right>>octaves
	}
	return true // right is less than eight times as large as left
}
