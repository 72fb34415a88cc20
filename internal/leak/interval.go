// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leak

import "math"

const (
	// LeastPairs is the number of pairs from which there is an interval: that many positive signs
	// have the e-value 20.
	LeastPairs = 23
	// inverseError is 1 divided by the probability that the interval ever misses a constant effect.
	inverseError = 20
)

// differences are the times of Y minus those of X, of all pairs.
type differences struct {
	negative, other histogram // absolute values
}

func (d *differences) add(ns int64) {
	if ns < 0 {
		d.negative.add(uint64(-ns))
		return
	}
	d.other.add(uint64(ns))
}

func (d *differences) count() uint64 { return d.negative.count + d.other.count }

// atRank returns the least and the greatest difference of the cell that has the difference of that
// rank, from 1 to count.
func (d *differences) atRank(rank uint64) (least, greatest float64) {
	if rank <= d.negative.count {
		near, far := bounds(d.negative.atRank(d.negative.count - rank + 1))
		return -float64(far), -float64(near)
	}
	near, far := bounds(d.other.atRank(rank - d.negative.count))
	return float64(near), float64(far)
}

// quantile returns about the quantile p; 0 without differences.
func (d *differences) quantile(p float64) float64 {
	n := d.count()
	if n == 0 {
		return 0
	}
	middle := func(rank float64) float64 {
		least, greatest := d.atRank(uint64(min(max(rank, 1), float64(n))))
		return (least + greatest) / 2
	}
	at := p * float64(n)
	return (middle(math.Ceil(at)) + middle(math.Floor(at)+1)) / 2
}

// interval returns the confidence sequence of the median: all δ for which the e-value of the signs
// of D − δ is below 20 (Howard & Ramdas, 2022). below and above are the numbers of pairs that are
// counted as −∞ and +∞ in addition. The ends are ±∞ for too few pairs.
func (d *differences) interval(below, above uint64, tickNs float64) (low, high float64) {
	low, high = math.Inf(-1), math.Inf(1)
	n := d.count() + below + above
	b, ok := deviation(float64(n))
	if !ok {
		return low, high
	}
	half := float64(n) / 2
	if first := math.Floor(half-b) + 1 - float64(below); first >= 1 && first <= float64(d.count()) {
		low, _ = d.atRank(uint64(first))
		low -= tickNs / 2
	}
	if last := math.Ceil(half+b) - float64(below); last >= 1 && last <= float64(d.count()) {
		_, high = d.atRank(uint64(last))
		high += tickNs / 2
	}
	return low, high
}

// deviation returns b such that n/2 + b positive signs of n have the e-value 20. Not ok if even n
// positive signs have less.
func deviation(n float64) (b float64, ok bool) {
	isLess := func(b float64) bool {
		return logBetaBinomial(existencePrior, n/2+b, n) < math.Log(inverseError)
	}
	if isLess(n / 2) {
		return 0, false
	}
	low, high := 0., n/2
	for range 64 {
		middle := (low + high) / 2
		if isLess(middle) {
			low = middle
		} else {
			high = middle
		}
	}
	return high, true
}
