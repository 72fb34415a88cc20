// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import "fmt"

// tally is a part of the audit's counters.
type tally struct {
	packets    uint64
	inserts    uint64
	evictions  uint64
	limited    uint64 // events that the rate limit suppressed
	suppressed uint64 // events of flags that no token entitles
	outcomes   [NumOutcomes]uint64
}

func tallyOf(audit *Audit) (t tally) {
	c := audit.Counters()[0]
	t.inserts = c.Inserts
	t.limited = c.Fates[FateRateLimit]
	t.suppressed = c.Fates[FateSuppressed]
	for _, n := range c.Evictions {
		t.evictions += n
	}
	for o := range t.outcomes {
		t.outcomes[o] = c.Packets.Outcome(Outcome(o))
		t.packets += t.outcomes[o]
	}
	return t
}

func (t tally) plus(u tally) tally {
	t.packets += u.packets
	t.inserts += u.inserts
	t.evictions += u.evictions
	t.limited += u.limited
	t.suppressed += u.suppressed
	for o := range t.outcomes {
		t.outcomes[o] += u.outcomes[o]
	}
	return t
}

func (t tally) minus(u tally) tally {
	t.packets -= u.packets
	t.inserts -= u.inserts
	t.evictions -= u.evictions
	t.limited -= u.limited
	t.suppressed -= u.suppressed
	for o := range t.outcomes {
		t.outcomes[o] -= u.outcomes[o]
	}
	return t
}

func (t tally) flagged() uint64 {
	return t.outcomes[OutcomeFlaggedEarly] + t.outcomes[OutcomeFlaggedLate]
}

// expectation checks the tallies of the warm-up and of the measured packets. It returns an error if
// the audit did not do the work that the workload is named after.
type expectation func(warm, measured tally, config Config) error

// isKnown expects that many flows in the warm-up, and that every packet is scored afterwards. It
// accepts idle gaps, which occur if the machine stalls for longer than the idle timeout, and few
// packets of baselines that restart, which occur if the machine becomes slower or faster.
func isKnown(flows uint64) expectation {
	return func(warm, measured tally, _ Config) error {
		scored := measured.outcomes[OutcomeJudged] + measured.flagged()
		switch {
		case warm.inserts != flows || warm.evictions != 0 || measured.inserts != 0:
			return fmt.Errorf("want %d flows, all of which keep their slots", flows)
		case !isAlmostAll(scored, measured) || scored+measured.outcomes[OutcomeIdleGap]+measured.outcomes[OutcomeMinSamples] != measured.packets:
			return fmt.Errorf("some packets were not scored")
		}
		return nil
	}
}

// isOverfull expects a table in which most slots are used, and in which some flows keep their slots
// while others evict each other: the flows are not distributed evenly over the sets.
func isOverfull(warm, measured tally, config Config) error {
	const minUsed = 0.8 // of the slots: some sets get few flows
	used := warm.plus(measured).inserts - warm.plus(measured).evictions
	known := measured.packets - measured.outcomes[OutcomeNewFlow]
	switch {
	case float64(used) < minUsed*float64(config.Slots()):
		return fmt.Errorf("only %d slots are in use", used)
	case measured.outcomes[OutcomeNewFlow] != measured.inserts:
		return fmt.Errorf("some new flows got no slot")
	case measured.inserts == 0 || known < measured.packets/4:
		return fmt.Errorf("all flows keep their slots, or none do")
	}
	return nil
}

// isNew expects that every packet is the first of a flow.
func isNew(_, measured tally, _ Config) error {
	if measured.outcomes[OutcomeNewFlow] != measured.packets || measured.inserts != measured.packets {
		return fmt.Errorf("some packets were not the first of a flow")
	}
	return nil
}

// isSuppressed expects that every packet is flagged and almost none is rare.
func isSuppressed(warm, measured tally, _ Config) error {
	if err := isFlagged(warm, measured); err != nil {
		return err
	}
	if !isAlmostAll(measured.suppressed, measured) {
		return fmt.Errorf("few events were suppressed")
	}
	return nil
}

// isLimited expects that every packet is flagged and that the rate limit suppresses almost all
// events.
func isLimited(warm, measured tally, _ Config) error {
	if err := isFlagged(warm, measured); err != nil {
		return err
	}
	if !isAlmostAll(measured.limited, measured) {
		return fmt.Errorf("the rate limit suppressed few events")
	}
	return nil
}

func isFlagged(warm, measured tally) error {
	if warm.inserts != 1 || measured.flagged()+measured.outcomes[OutcomeIdleGap] != measured.packets {
		return fmt.Errorf("some packets were not flagged, or there was more than one flow")
	}
	return nil
}

// isUnparsed expects that no packet has a flow.
func isUnparsed(_, measured tally, _ Config) error {
	if measured.outcomes[OutcomeUnparsed] != measured.packets {
		return fmt.Errorf("some packets were parsed")
	}
	return nil
}

func isAlmostAll(n uint64, of tally) bool { return n >= of.packets-of.packets/100 }
