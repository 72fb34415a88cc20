// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package excess judges whether a device flags more packets than its own past.
//
// Each minute has a gain: the logarithm of the likelihood ratio of Poisson counts, twice as many
// flags as usual against as many as usual, divided by the dispersion of the past. The score is the
// larger of a CUSUM of the gains (Page, 1954) and of the gains of single minutes, in units of the
// limit. docs/statistics.md has what the score finds, and how rarely it is wrong.
package excess

import "math"

const (
	// MinMinutes is the number of minutes with scored packets in a past that judges.
	MinMinutes = 360

	// ratio of the flags of an excess to the usual flags. An excess below (ratio − 1)/ln(ratio),
	// 1.44 times the usual, is never reported.
	ratio = 2

	// limit of the CUSUM. Under a Poisson past the mean time to a false alarm is at least
	// exp(limit) minutes (Lorden, 1971), 28 months.
	limit = 14

	// maxCarried is the largest sum that is carried to the next minute, so the score falls soon
	// after an excess ends. maxStep is the largest part of one minute, so the sum needs several.
	maxCarried = 1.25 * limit
	maxStep    = limit / 4

	// sumMemory and pastMemory are the minutes after which a minute counts 1/e in the sum and in
	// the past.
	sumMemory  = 720
	pastMemory = 4320

	// heldMinutes is how long the gain of a minute is reported, so that a slow scrape sees it.
	heldMinutes = 5
)

// scales are the lengths in minutes of the blocks whose dispersion counts. Minutes that resemble
// their neighbours have more dispersion in long blocks.
var scales = [...]int{1, 8, 64, 256}

// Device is the past and the score of one device. The zero value has no past.
type Device struct {
	minutes       int     // with scored packets
	judged, flags float64 // sums of the past, older minutes count less
	dispersion    [len(scales)]dispersion
	sum           float64
	held          [heldMinutes]float64
	next          int // place in held
}

// Score returns 1 or more for an excess, and 0 while the past is too short. A sum of several
// minutes is at most 1.25; above that is the gain of one of the last five minutes.
func (d *Device) Score() float64 {
	score := d.sum
	for _, gain := range d.held {
		score = max(score, gain)
	}
	return score / limit
}

// AddMinute judges the packets of one minute by the past, and then adds them to it: the numbers
// of scored and of flagged packets.
func (d *Device) AddMinute(judged, flags uint64) {
	d.sum *= 1 - 1.0/sumMemory
	d.held[d.next] = 0
	if judged > 0 {
		if d.minutes >= MinMinutes {
			d.judge(float64(judged), float64(flags))
		}
		d.learn(float64(judged), float64(flags))
	}
	d.next = (d.next + 1) % heldMinutes
}

// judge takes a standard error of the past's flags, and one flag, more than usual for usual.
func (d *Device) judge(judged, flags float64) {
	usual := judged / d.judged * d.flags
	// A short past has not seen everything that is usual.
	dispersion := d.dispersionAt(usual) * (1 + MinMinutes/min(float64(d.minutes), pastMemory))
	usual += judged / d.judged * (1 + math.Sqrt(dispersion*d.flags))
	gain := (flags*math.Log(ratio) - (ratio-1)*usual) / dispersion
	d.sum = min(max(d.sum+min(gain, maxStep), 0), maxCarried)
	d.held[d.next] = max(gain, 0)
}

// learn adds a minute to the past. One minute at most doubles the dispersion of minutes, and none
// changes it while there is an excess: what is reported must not become its own excuse. The
// fraction of flags follows all minutes, so a lasting excess becomes usual within days.
func (d *Device) learn(judged, flags float64) {
	if d.judged > 0 {
		usual := judged / d.judged * (d.flags + 1)
		deviation := flags - usual
		if d.minutes >= MinMinutes {
			deviation = min(deviation, math.Sqrt(pastMemory*d.dispersionAt(usual)*usual))
			flags = usual + deviation
		}
		if d.sum < limit {
			for i := range d.dispersion {
				d.dispersion[i].add(scales[i], usual, deviation)
			}
		}
	}
	const keep = 1 - 1.0/pastMemory
	d.judged, d.flags = d.judged*keep+judged, d.flags*keep+flags
	d.minutes++
}

// dispersionAt returns the variance of a minute with that many usual flags, divided by this
// number: 1 or more.
func (d *Device) dispersionAt(usual float64) float64 {
	largest := 1.0
	for i := range d.dispersion {
		largest = max(largest, d.dispersion[i].at(scales[i], usual))
	}
	return largest
}

// dispersion has the sums of blocks of minutes: the squares of their deviations, their usual
// flags and the squares of these. Older blocks count less.
type dispersion struct {
	blocks, squares, usual, usualSquares float64

	count                 int // minutes of the block that is not complete
	blockUsual, deviation float64
}

func (s *dispersion) add(length int, usual, deviation float64) {
	s.count++
	s.blockUsual += usual
	s.deviation += deviation
	if s.count < length {
		return
	}
	keep := 1 - float64(length)/pastMemory
	s.blocks = s.blocks*keep + 1
	s.squares = s.squares*keep + s.deviation*s.deviation
	s.usual = s.usual*keep + s.blockUsual
	s.usualSquares = s.usualSquares*keep + s.blockUsual*s.blockUsual
	s.count, s.blockUsual, s.deviation = 0, 0, 0
}

// at returns the larger of two models: a variance in proportion to the usual flags, and a
// fraction of flags that varies, which adds a variance in proportion to their square. Long blocks
// are few, so half a standard error is subtracted.
func (s *dispersion) at(length int, usual float64) float64 {
	if s.usual == 0 {
		return 1
	}
	squares := s.squares * (1 - 0.5*math.Sqrt(2/max(s.blocks, 2)))
	if length == 1 {
		squares = s.squares
	}
	return max(squares/s.usual, 1+(squares-s.usual)/s.usualSquares*float64(length)*usual)
}
