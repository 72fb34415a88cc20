// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package covert

import (
	"math"

	"gonum.org/v1/gonum/stat/distuv"
)

// Test is a way to see a channel.
type Test int

// The tests. The first two judge a window by itself, the others by the earlier windows of its flow.
const (
	Symbols         Test = iota // there are gaps between the deltas that are frequent
	Phase                       // deltas prefer a phase of some period
	Entropy                     // the histogram of the deltas is more, or less, even than it was
	Information                 // a delta tells more, or less, of the next than it did
	Autocorrelation             // and so in the linear sense, of logarithms
	NumTests
)

var testNames = [NumTests]string{"symbols", "phase", "entropy", "information", "autocorrelation"}

// String returns the value of the label test.
func (t Test) String() string { return testNames[t] }

const (
	// symbolsLimit is reached by none of the distributions of docs/statistics.md.
	symbolsLimit = 0.5
	// phaseChance and pastChance are the shares of windows of which the tests alarm by chance, where their assumptions hold.
	phaseChance = 1e-3
	pastChance  = 1e-3

	// PastLength is the number of windows that a flow needs to be judged by them.
	PastLength = 10
	// pastWindow is the number of windows after which a past begins to forget: at twice as many it is halved.
	pastWindow = 32
	// acceptAfter is the number of windows in turn that have to alarm by the past for it to be given up, and begun anew with
	// what is there now.
	acceptAfter = 64
	// leastSpread is the least standard deviation of a statistic that is judged by the past. From window to window those of
	// random traffic vary by more; those of a flow that is perfectly regular do not vary at all.
	leastSpread = 0.01
)

// Scores are those of a window by test: 1 and more is an alarm, and NaN one of a test that cannot judge it.
type Scores [NumTests]float64

// Alarms returns the tests that alarm.
func (s Scores) Alarms() (alarms []Test) {
	for test, score := range s {
		if score >= 1 {
			alarms = append(alarms, Test(test))
		}
	}
	return alarms
}

// Verdict is what is to be said of a window that alarms.
type Verdict struct {
	Tests   []Test // that alarm
	Scores  Scores
	Earlier int // windows in the past that it was judged by
	Alarms  int // windows of the flow that alarmed since the last verdict, and this one
}

// byPast is the number of tests that judge by the past, the last ones.
const byPast = NumTests - Entropy

// Past is what the earlier windows of a flow were like. The zero value is one without any. It is not safe for concurrent use.
type Past struct {
	n         float64
	mean, sum [byPast]float64 // sum of squared deviations
	alarms    int             // windows in turn that alarmed by it
}

// Windows returns the number of windows that the past consists of, which is halved from time to time.
func (p *Past) Windows() int { return int(p.n) }

// Judge returns the scores of a window, and lets it enter the past. By the past, the score is that of a packet,
// t = (x − mean) / (s·√(1 + 1/n)), as a share of what |t| reaches by chance in one of a thousand windows. What alarms by it
// does not enter, so that a channel does not become usual by going on; a change that lasts for 64 windows is what is usual
// from then on.
func (m *Meter) Judge(p *Past, s Statistics) Scores {
	scores := Scores{Symbols: s.Symbols / symbolsLimit, Phase: math.NaN()}
	if s.Periods > 0 {
		scores[Phase] = s.Phase / math.Log(float64(s.Periods)/phaseChance)
	}
	limit := math.NaN()
	if p.n >= PastLength {
		limit = m.limit(int(p.n))
	}
	values, isAlarm := s.normal(), false
	for i, x := range values {
		width := limit * max(leastSpread, math.Sqrt(p.sum[i]/(p.n-1))) * math.Sqrt(1+1/p.n)
		score := math.Abs(x-p.mean[i]) / width
		scores[Entropy+Test(i)] = score
		isAlarm = isAlarm || score >= 1
	}
	if !isAlarm {
		p.add(values)
		return scores
	}
	if p.alarms++; p.alarms == acceptAfter {
		*p = Past{}
		p.add(values)
	}
	return scores
}

// add lets a window enter the past, and halves that when it has twice the windows that it may remember.
func (p *Past) add(values [byPast]float64) {
	p.alarms = 0
	p.n++
	for i, x := range values {
		deviation := x - p.mean[i]
		p.mean[i] += deviation / p.n
		p.sum[i] += deviation * (x - p.mean[i])
	}
	if p.n == 2*pastWindow {
		p.n = pastWindow
		for i := range p.sum {
			p.sum[i] /= 2
		}
	}
}

// limit returns what |t| reaches by chance in one of a thousand windows after n. It takes far longer to compute than all
// statistics of a window.
func (m *Meter) limit(n int) float64 {
	if m.limits[n] == 0 {
		m.limits[n] = distuv.StudentsT{Sigma: 1, Nu: float64(n - 1)}.Quantile(1 - pastChance/2)
	}
	return m.limits[n]
}

// normal returns the statistics that are judged by the past, of which those that are far from normal are transformed: the
// square root of what is nearly a χ², and Fisher's transformation of a correlation.
func (s Statistics) normal() [byPast]float64 {
	const most = 1 - 1e-9
	return [byPast]float64{
		0:                         s.Entropy,
		Information - Entropy:     math.Sqrt(max(0, s.Information)),
		Autocorrelation - Entropy: math.Atanh(max(-most, min(s.Autocorrelation, most))),
	}
}
