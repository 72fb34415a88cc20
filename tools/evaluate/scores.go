// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"fmt"
	"math"
)

const (
	scoreSteps = 4  // cells to a unit of t
	scoreMost  = 20 // all higher scores share the last cell
)

// scoreCounts counts scores by |t| in steps of 1/scoreSteps.
type scoreCounts [scoreMost*scoreSteps + 1]uint64

func (c *scoreCounts) add(t float64) { c[int(math.Min(math.Abs(t), scoreMost)*scoreSteps)]++ }

// from returns the share of the scores whose |t| is at least that many steps.
func (c *scoreCounts) from(step int) float64 {
	var all, those uint64
	for i, n := range c {
		all += n
		if i >= step {
			those += n
		}
	}
	if all == 0 {
		return 0
	}
	return float64(those) / float64(all)
}

// scores counts the exact scores of the judged packets of a flow, computed from the baseline
// before each packet.
type scores struct {
	Early   scoreCounts `json:"early,omitzero"` // of packets without a planted delay
	Late    scoreCounts `json:"late,omitzero"`  // the same
	Planted scoreCounts `json:"planted,omitzero"`

	threshold float64
	differ    int    // decisions of the audit that contradict the scores
	first     string // description of the first one
}

// decisionError is the distance from the threshold within which a decision of the audit may
// differ from the exact score: the program compares products with a relative rounding error of
// 2⁻²⁹.
const decisionError = 4e-8

func (s *scores) add(p *packet, t float64) {
	switch {
	case p.isPlanted:
		s.Planted.add(t)
	case t < 0:
		s.Early.add(t)
	default:
		s.Late.add(t)
	}
	if p.isFlagged == (math.Abs(t) >= s.threshold) || math.Abs(math.Abs(t)-s.threshold) < decisionError {
		return
	}
	if s.differ == 0 {
		s.first = fmt.Sprintf("packet %d: t is %v against %+v, but flagged is %t", p.number, t, p.before, p.isFlagged)
	}
	s.differ++
}

// ordinary returns the scores of the packets without a planted delay, by |t|.
func (s *scores) ordinary() *scoreCounts {
	both := s.Early
	for i, n := range s.Late {
		both[i] += n
	}
	return &both
}

// check returns an error if a decision of the audit contradicts the scores.
func (s *scores) check() error {
	if s.differ > 0 {
		return fmt.Errorf("%d decisions contradict the exact scores; the first is %s", s.differ, s.first)
	}
	return nil
}
