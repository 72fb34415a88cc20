// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leak

import (
	"math"

	"gonum.org/v1/gonum/mathext"
)

// existencePrior is the parameter a of the beta distribution over the probability that a difference
// is positive. A large one is best for small effects (Howard, Ramdas et al., 2021).
const existencePrior = 30

// coin is the e-process for "each outcome is that of a fair coin, given all before": the likelihood
// ratio of the beta-binomial mixture. Its logarithm is ln B(a+s, a+n−s) − ln B(a, a) + n·ln 2 after
// s successes in n outcomes.
type coin struct {
	prior              float64
	successes, outcome float64
	logE, maxLogE      float64
}

func (c *coin) add(isSuccess bool) {
	same := c.outcome - c.successes
	if isSuccess {
		same = c.successes
		c.successes++
	}
	c.logE += math.Log(2 * (c.prior + same) / (2*c.prior + c.outcome))
	c.outcome++
	c.maxLogE = max(c.maxLogE, c.logE)
}

// logBetaBinomial returns the logarithm of the e-value of s successes in n outcomes.
func logBetaBinomial(prior, s, n float64) float64 {
	return mathext.Lbeta(prior+s, prior+n-s) - mathext.Lbeta(prior, prior) + n*math.Ln2
}

// leastLogE stands for the logarithm of an e-value of 0.
const leastLogE = -1e4

// logOneSided returns the logarithm of an e-value of s successes in n outcomes against "a success
// has at most the probability 1/2": the mean of two beta-binomial mixtures, for small and large
// effects. Without their lower halves they would be at most twice as much.
func logOneSided(s, n float64) float64 {
	if 2*s <= n {
		return leastLogE
	}
	return logMean(logBetaBinomial(existencePrior, s, n), logBetaBinomial(1, s, n))
}

// evidence is the mean of the e-values of existence and of any change of the distribution.
type evidence struct {
	logE, maxLogE float64
}

func (e *evidence) look(logExistence, logDistribution float64) {
	e.logE = logMean(logExistence, logDistribution)
	e.maxLogE = max(e.maxLogE, e.logE)
}

// logMean returns the logarithm of the mean of two e-values.
func logMean(a, b float64) float64 {
	return max(a, b) + math.Log1p(math.Exp(-math.Abs(a-b))) - math.Ln2
}

const (
	resolutions = 6 // numbers of cells: 2, 4, …, 64
	mostCells   = 1 << resolutions
	tails       = 5 // fractions of responses: 1/64, 1/32, …, 1/4
	partitions  = resolutions + 2*tails
	// mixed is the number of e-processes that the mixture has.
	mixed = partitions * len(priors)
	// largestSum and smallestSum bound the sum of the mixture, and negligible its parts.
	largestSum, smallestSum, negligible = 1e150, 1e-150, 1e-280
)

// priors are the parameters a of the beta distributions over the probability that a response in a
// cell is of class Y. A large one is best for a small change in all cells.
var priors = [...]float64{1, 30, 1000}

// distribution is the e-process for "times and classes are independent", a mixture over partitions
// of the times and over priors. A partition has 2 to 64 cells of the same number of responses, or
// it has the slowest or fastest responses and all others. A change of few responses is lost in the
// noise of many cells. The cells are quantiles of the responses before, so the times may drift;
// the classes of these have no part in the cells.
type distribution struct {
	isFixed bool
	edges   [mostCells - 1]uint64 // lowest values of all finest cells except the first
	counts  [partitions][2][mostCells]float64
	labels  [2]float64
	// values are the e-values of the mixture, in units of exp(logUnit).
	values  [partitions][len(priors)]float64
	logUnit float64
}

func (d *distribution) reset() {
	for i := range d.values {
		for k := range d.values[i] {
			d.values[i][k] = 1
		}
	}
}

// fix takes new cells. The counts stay: they are those of ranks among the responses before.
func (d *distribution) fix(sorted []uint64) {
	d.isFixed = true
	for i := range d.edges {
		d.edges[i] = sorted[(i+1)*len(sorted)/mostCells]
	}
}

// finest returns the finest cell of a time.
func (d *distribution) finest(ns uint64) int {
	cell := 0
	for step := mostCells / 2; step > 0; step /= 2 {
		if d.edges[cell+step-1] <= ns {
			cell += step
		}
	}
	return cell
}

// cellIn returns the cell of a partition that has a finest cell.
func cellIn(partition, finest int) int {
	switch tail := partition - resolutions; {
	case tail < 0:
		return finest >> (resolutions - 1 - partition)
	case tail < tails:
		return (finest + 1<<tail) >> resolutions // the slowest responses
	default:
		return (mostCells - 1 - finest + 1<<(tail-tails)) >> resolutions // the fastest
	}
}

// add takes a response. Each prediction of its class is that of the beta-binomial distribution of
// its cell, whose mean is 1/2 or the share of the class so far.
func (d *distribution) add(class Class, ns uint64, hasUnknownShare bool) {
	if !d.isFixed {
		return
	}
	share := 0.5
	if hasUnknownShare {
		share = (d.labels[class] + 1) / (d.labels[X] + d.labels[Y] + 2)
	}
	finest := d.finest(ns)
	for i := range d.values {
		cell := cellIn(i, finest)
		same, other := &d.counts[i][class][cell], d.counts[i][1-class][cell]
		for k, prior := range priors {
			d.values[i][k] *= 2 * (*same + prior*share) / (*same + other + prior)
		}
		*same++
	}
	d.labels[class]++
}

// addBlock takes the times of a block. The prediction which of them is that of class Y has the odds
// of the earlier blocks (Podkopaev & Ramdas, 2023): g(cell of y) − g(cell of x), where g is the
// logarithm of the ratio of the counts.
func (d *distribution) addBlock(x, y uint64) {
	if !d.isFixed {
		return
	}
	ofX, ofY := d.finest(x), d.finest(y)
	for i := range d.values {
		x, y := cellIn(i, ofX), cellIn(i, ofY)
		counts := &d.counts[i]
		if x != y {
			for k, prior := range priors {
				right := (counts[Y][y] + prior) * (counts[X][x] + prior)
				wrong := (counts[X][y] + prior) * (counts[Y][x] + prior)
				d.values[i][k] *= 2 * right / (right + wrong)
			}
		}
		counts[X][x]++
		counts[Y][y]++
	}
}

// logE returns the logarithm of the e-value. Its denominator is the likelihood of the best constant
// share of the classes, so unequal shares are not evidence (universal inference: Wasserman, Ramdas,
// Balakrishnan, 2020).
func (d *distribution) logE() float64 {
	sum := 0.
	for i := range d.values {
		for k, value := range d.values[i] {
			if value < negligible {
				d.values[i][k] = 0 // arithmetic with subnormal numbers is slow
			}
			sum += value
		}
	}
	if sum > largestSum || sum < smallestSum {
		for i := range d.values {
			for k := range d.values[i] {
				d.values[i][k] /= sum
			}
		}
		d.logUnit += math.Log(sum)
		sum = 1
	}
	return math.Log(sum/float64(mixed)) + d.logUnit - logShare(d.labels[X], d.labels[Y])
}

// logShare returns the logarithm of the likelihood ratio of the best constant share against 1/2.
func logShare(x, y float64) float64 {
	if x == y {
		return 0
	}
	return xLogX(2*x, x+y) + xLogX(2*y, x+y)
}

// xLogX returns a/2·ln(a/b), and 0 for 0.
func xLogX(a, b float64) float64 {
	if a == 0 {
		return 0
	}
	return a / 2 * math.Log(a/b)
}
