// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package history

import (
	"math"
	"time"
)

// Series are readings of a device, from the oldest to the newest.
type Series []Point

// Since returns the reading that is at least as old as the duration before the last, or the first
// one, and the last. It returns false for fewer than two readings.
func (s Series) Since(age time.Duration) (first, last Point, ok bool) {
	if len(s) < 2 {
		return first, last, false
	}
	last, first = s[len(s)-1], s[0]
	for i := len(s) - 2; i >= 0; i-- {
		if last.Time.Sub(s[i].Time) >= age {
			first = s[i]
			break
		}
	}
	return first, last, true
}

// Rate returns the rate of a count per second between two readings.
func Rate(first, last *Point, count func(*Point) uint64) float64 {
	seconds := last.Time.Sub(first.Time).Seconds()
	if seconds <= 0 {
		return 0
	}
	return float64(count(last)-count(first)) / seconds
}

// Rates divides the time up to now into n equal steps, and returns the rate of a count per second
// in each. A step without readings is NaN: the device was not there.
func (s Series) Rates(now time.Time, span time.Duration, n int, count func(*Point) uint64) []float64 {
	rates := make([]float64, n)
	step := span / time.Duration(n)
	begin := now.Add(-span)
	at := 0 // the first reading that is not before the step
	for i := range rates {
		from, to := begin.Add(time.Duration(i)*step), begin.Add(time.Duration(i+1)*step)
		for at < len(s) && s[at].Time.Before(from) {
			at++
		}
		end := at
		for end < len(s) && s[end].Time.Before(to) {
			end++
		}
		rates[i] = math.NaN()
		// The last reading of the step before begins it, unless readings are missing in between.
		first := at
		if at > 0 && from.Sub(s[at-1].Time) <= 2*Interval {
			first = at - 1
		}
		if end-first >= 2 {
			rates[i] = Rate(&s[first], &s[end-1], count)
		}
	}
	return rates
}
