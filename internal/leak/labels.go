// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leak

import (
	"math"

	"gonum.org/v1/gonum/mathext"
)

// refusal is the e-value at which a check refuses the data. There are three checks of labels, so
// valid data are ever refused with a probability of at most 3e-4.
const refusal = 1e4

// labels are the checks of how classes were assigned. For the order Blocks the labels are those of
// the first requests of blocks.
type labels struct {
	all, included sequence
	blocks        violations
	patterns      int // tests of the check of order
}

func newLabels(order Order) labels {
	l := labels{patterns: 4, blocks: violations{logE: math.Inf(-1)}}
	l.all.init()
	l.included.init()
	if order == Blocks {
		l.patterns++
	}
	return l
}

// order, share and selection return the logarithms of e-values against "the labels are those of
// fair coins": their order, the share of a class, and that among responses that are not excluded.
// The largest of several e-values is divided by their number.
func (l *labels) order() float64 {
	largest := max(l.all.changes.maxLogE, l.all.pattern.maxLogE, l.included.changes.maxLogE, l.included.pattern.maxLogE, l.blocks.maxLogE)
	return max(0, largest-math.Log(float64(l.patterns)))
}

func (l *labels) share() float64     { return l.all.share.maxLogE }
func (l *labels) selection() float64 { return l.included.share.maxLogE }

// sequence tests a sequence of labels for those of a fair coin.
type sequence struct {
	share, changes coin
	pattern        pattern
	last           Class
}

func (s *sequence) init() {
	s.share, s.changes, s.last = coin{prior: 1}, coin{prior: 1}, Unknown
}

func (s *sequence) add(label Class) {
	s.share.add(label == Y)
	if s.last != Unknown {
		s.changes.add(label != s.last)
	}
	s.pattern.add(label)
	s.last = label
}

// patternLength is the number of labels from which the next one is predicted.
const patternLength = 6

// pattern is the e-process of predictions by the last labels (Krichevsky & Trofimov, 1981).
type pattern struct {
	last          int // labels, as bits
	counts        [1 << patternLength][2]float64
	logE, maxLogE float64
}

func (p *pattern) add(label Class) {
	counts := &p.counts[p.last]
	p.logE += math.Log((2*counts[label] + 1) / (counts[X] + counts[Y] + 1))
	p.maxLogE = max(p.maxLogE, p.logE)
	counts[label]++
	p.last = (p.last<<1 | int(label)) % (1 << patternLength)
}

const (
	// mostViolations is the share of blocks with equal labels that is tolerated: a lost frame
	// displaces the blocks of its connection for a moment. usualViolations is the share if labels
	// are not in blocks at all, or less.
	mostViolations, usualViolations = 0.01, 0.25
)

// violations is the e-process for "at most 1 in 100 blocks has equal labels": a mixture of
// likelihood ratios that begin at each block, so what begins late is found as well.
type violations struct {
	count         float64
	logE, maxLogE float64 // logE: of those that have begun
}

func (v *violations) add(isViolation bool) {
	v.count++
	gain := math.Log((1 - usualViolations) / (1 - mostViolations))
	if isViolation {
		gain = math.Log(usualViolations / mostViolations)
	}
	begins := -math.Log(v.count * (v.count + 1))
	v.logE = math.Ln2 + logMean(v.logE, begins) + gain
	v.maxLogE = max(v.maxLogE, v.logE)
}

// logLoss returns the logarithm of an e-value against "the share of a class is the same among
// excluded requests and responses".
func logLoss(excluded, included [2]float64) float64 {
	x, y := excluded[X]+included[X], excluded[Y]+included[Y]
	logE := mathext.Lbeta(excluded[Y]+1, excluded[X]+1) + mathext.Lbeta(included[Y]+1, included[X]+1)
	return logE + (x+y)*math.Ln2 - logShare(x, y)
}
