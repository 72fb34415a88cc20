// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leak

import (
	"math"

	"gonum.org/v1/gonum/floats"
)

// Quantiles are the levels at which the distributions of the classes are compared: the deciles, and
// the fastest and the slowest responses.
var Quantiles = [...]float64{.01, .1, .2, .3, .4, .5, .6, .7, .8, .9, .99}

// levels compare, at each quantile of the responses before, how often the times of the two classes
// exceed it, with those of Y shifted by the target. In a pair of which one exceeds it, it is either
// of them with the same probability, unless the difference is larger than the target.
type levels struct {
	targetNs float64
	isFixed  bool
	limits   [len(Quantiles)]float64
	pairs    uint64
	// exceeded are the responses of both classes that exceed a limit, reached those that do not
	// fall below it. They differ by equal times.
	exceeded, reached [len(Quantiles)]uint64
	// slower are the pairs with Y made faster by the target, faster those with Y made slower.
	slower, faster [len(Quantiles)]exceeding
}

// exceeding are the numbers of pairs of which only X or only Y exceeds a limit.
type exceeding struct{ x, y uint64 }

// fix takes new limits. They do not depend on classes, so the counts stay valid.
func (l *levels) fix(sorted []uint64) {
	l.isFixed = true
	for i, p := range Quantiles {
		l.limits[i] = float64(sorted[int(math.Ceil(p*float64(len(sorted))))-1])
	}
}

func (l *levels) add(x, y uint64) {
	if !l.isFixed {
		return
	}
	l.pairs++
	ofX := l.limitsBelow(float64(x))
	for _, ns := range []uint64{x, y} {
		for i := range l.limitsBelow(float64(ns)) {
			l.exceeded[i]++
		}
		for i := range l.limitsBelow(float64(ns) + 0.5) {
			l.reached[i]++
		}
	}
	count(&l.slower, ofX, l.limitsBelow(float64(y)-l.targetNs))
	count(&l.faster, ofX, l.limitsBelow(float64(y)+l.targetNs))
}

// limitsBelow returns the number of limits that a time exceeds.
func (l *levels) limitsBelow(ns float64) int {
	n := 0
	for n < len(l.limits) && ns > l.limits[n] {
		n++
	}
	return n
}

func count(pairs *[len(Quantiles)]exceeding, x, y int) {
	for i := x; i < y; i++ {
		pairs[i].y++
	}
	for i := y; i < x; i++ {
		pairs[i].x++
	}
}

// levelTests is the number of one-sided tests.
const levelTests = 2 * len(Quantiles)

// differs returns the logarithms of the e-values against "Y is slower by at most the target" and
// "Y is faster by at most the target" at a level. lost pairs are counted against a difference.
func (l *levels) differs(i int, lost uint64) (slower, faster float64) {
	s, f := l.slower[i], l.faster[i]
	return logOneSided(float64(s.y), float64(s.x+s.y+lost)), logOneSided(float64(f.x), float64(f.x+f.y+lost))
}

// agrees returns the logarithms of the e-values against "Y is slower by the target or more" and "Y
// is faster by the target or more" at a level, in at least the tolerated share of responses. lost
// pairs are counted for a difference.
func (l *levels) agrees(i int, lost uint64) (notSlower, notFaster float64) {
	of := func(against, agreeing uint64) float64 {
		against += lost
		one := logOneSided(float64(agreeing), float64(agreeing+against))
		return logMean(one, logFewer(float64(against), float64(agreeing), float64(l.pairs+lost)))
	}
	return of(l.slower[i].y, l.slower[i].x), of(l.faster[i].x, l.faster[i].y)
}

// tolerated is the share of responses that may differ by more than the target in a verdict that
// they do not. Without it, a level in a gap of the distribution would forbid that verdict for ever.
const tolerated = 0.005

// logFewer returns the logarithm of the e-value against "the probability of pairs against exceeds
// that of agreeing ones by the tolerated share", for their numbers among all pairs: a mixture of
// bets (Waudby-Smith & Ramdas, 2024).
func logFewer(against, agreeing, pairs float64) float64 {
	bets := [...]float64{0.01, 0.02, 0.05, 0.1, 0.2, 0.5}
	var logE [len(bets)]float64
	for i, bet := range bets {
		logE[i] = against*math.Log1p(bet*(tolerated-1)) + agreeing*math.Log1p(bet*(tolerated+1)) +
			(pairs-against-agreeing)*math.Log1p(bet*tolerated)
	}
	return floats.LogSumExp(logE[:]) - math.Log(float64(len(bets)))
}

// anyDiffers reports at which levels Y is slower or faster by more than the target: an error of 5 %
// is divided among all tests (Bonferroni).
func (l *levels) anyDiffers(lost uint64) (slower, faster []float64) {
	slower, faster = []float64{}, []float64{}
	for i, p := range Quantiles {
		ofSlower, ofFaster := l.differs(i, lost)
		if ofSlower >= math.Log(inverseError*float64(levelTests)) {
			slower = append(slower, p)
		}
		if ofFaster >= math.Log(inverseError*float64(levelTests)) {
			faster = append(faster, p)
		}
	}
	return slower, faster
}

// isNear reports whether the limits of a level were near its quantile, within a factor of 5. They
// are not if the times drift too fast. Then the pairs say nothing about the level. Times that are
// equal to a limit are on both sides of it.
func (l *levels) isNear(i int) bool {
	const factor = 5
	n, below := float64(2*max(l.pairs, 1)), Quantiles[i]
	atMost, less := 1-float64(l.exceeded[i])/n, 1-float64(l.reached[i])/n
	return 1-less >= (1-below)/factor && 1-atMost <= (1-below)*factor && atMost >= below/factor && less <= below*factor
}

// allAgree reports whether Y is slower and faster by less than the target at all levels, apart from
// the tolerated share of responses. Every test must reject, so the error of each is that of all.
func (l *levels) allAgree(lost uint64) bool {
	for i := range Quantiles {
		notSlower, notFaster := l.agrees(i, lost)
		if min(notSlower, notFaster) < math.Log(inverseError) || !l.isNear(i) {
			return false
		}
	}
	return true
}

// logMeanDiffers returns the logarithm of the mean of the e-values of all tests, which is an
// e-value against "the class does not matter".
func (l *levels) logMeanDiffers(lost uint64) float64 {
	var logE [levelTests]float64
	for i := range Quantiles {
		logE[2*i], logE[2*i+1] = l.differs(i, lost)
	}
	return floats.LogSumExp(logE[:]) - math.Log(float64(levelTests))
}
