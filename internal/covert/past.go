// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package covert

import (
	"math"
	"slices"

	"gonum.org/v1/gonum/stat/distuv"
)

// Test is a test for covert timing channels.
type Test int

// The tests. Symbols and Phase score a window alone; the others score a window against the
// earlier windows of the flow.
const (
	Symbols         Test = iota // there are gaps between frequent deltas
	Phase                       // deltas prefer a phase of a period
	Entropy                     // the entropy of the deltas has changed
	Information                 // the mutual information of consecutive deltas has changed
	Autocorrelation             // the correlation of consecutive deltas has changed
	NumTests
)

var testNames = [NumTests]string{"symbols", "phase", "entropy", "information", "autocorrelation"}

// String returns the value of the label test.
func (t Test) String() string { return testNames[t] }

const (
	// symbolsLimit is more than three times the value of every smooth distribution in
	// docs/statistics.md.
	symbolsLimit = 0.25
	// informationLimit tells symbols of a message from those of an application. The bits of a
	// message hardly depend on each other; what an application sends next often depends on
	// what it sent before. Recorded channels have up to 0.22 bit, and recorded applications
	// with symbols 0.86 bit or more.
	informationLimit = 0.4
	// phaseChance and pastChance are the fractions of windows in which a test alarms by chance,
	// if its assumptions hold.
	phaseChance = 1e-3
	pastChance  = 1e-3

	// PastLength is the number of earlier windows that a flow needs for the tests against the
	// past.
	PastLength = 10
	// pastWindow is the window of a past: at twice this many windows the count is halved.
	pastWindow = 32
	// acceptAfter is the number of consecutive alarms of the tests against the past after which
	// the past is discarded and starts again from the current window.
	acceptAfter = 64
	// minSpread is the lower bound on the standard deviation of a statistic in the past.
	// Statistics of random traffic vary by more from window to window; those of a perfectly
	// regular flow do not vary at all.
	minSpread = 0.01
)

// Scores are the scores of a window by test: 1 or more is an alarm, NaN is a test that cannot
// judge the window.
type Scores [NumTests]float64

// Alarms returns the tests with an alarm.
func (s Scores) Alarms() (alarms []Test) {
	for test, score := range s {
		if score >= 1 {
			alarms = append(alarms, Test(test))
		}
	}
	return alarms
}

// Verdict describes a window with an alarm.
type Verdict struct {
	Tests   []Test // tests with an alarm
	Scores  Scores
	Earlier int // windows in the past that the window was scored against
	Alarms  int // windows of the flow with an alarm since the last verdict, including this one
}

// Meaning says what has the signs that the tests found.
func (v *Verdict) Meaning() string {
	switch {
	case slices.ContainsFunc(v.Tests, Test.comparesWithPast):
		return "a change, as a channel or an application that begins in the flow makes"
	case slices.Contains(v.Tests, Phase):
		return "a phase, as a channel or a sender with a coarse timer has"
	}
	return "symbols, as a channel or an application with few delays has"
}

// comparesWithPast returns true for the tests against the earlier windows of the flow.
func (t Test) comparesWithPast() bool { return t >= Entropy }

// byPast is the number of tests against the past. They are the last ones.
const byPast = NumTests - Entropy

// Past is the mean and the variance of the statistics of the earlier windows of a flow. The
// zero value has no windows. A Past is not safe for concurrent use.
type Past struct {
	n         float64
	mean, sum [byPast]float64 // sum is that of the squared deviations from the mean
	alarms    int             // consecutive windows with an alarm against the past
}

// Windows returns the number of windows in the past. Halving decreases it.
func (p *Past) Windows() int { return int(p.n) }

// Judge returns the scores of a window and adds the window to the past. The score against the
// past is |t| with t = (x − mean) / (s·√(1 + 1/n)), as for a packet, divided by the |t| that
// one window in a thousand reaches by chance. A window with such an alarm is not added, so a
// lasting channel does not become the normal state. After 64 consecutive alarms the past starts
// again from the current window.
func (m *Meter) Judge(p *Past, s Statistics) Scores {
	scores := Scores{Symbols: min(s.Symbols/symbolsLimit, informationLimit/max(s.Information, 1e-9)), Phase: math.NaN()}
	if s.Periods > 0 {
		scores[Phase] = s.Phase / math.Log(float64(s.Periods)/phaseChance)
	}
	limit := math.NaN()
	if p.n >= PastLength {
		limit = m.limit(int(p.n))
	}
	values, isAlarm := s.normal(), false
	for i, x := range values {
		width := limit * max(minSpread, math.Sqrt(p.sum[i]/(p.n-1))) * math.Sqrt(1+1/p.n)
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

// add adds a window to the past, and halves the past at twice pastWindow windows.
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

// limit returns the |t| that one window in a thousand reaches by chance after n windows. It
// caches the result, because the quantile takes far longer to compute than all statistics of a
// window.
func (m *Meter) limit(n int) float64 {
	if m.limits[n] == 0 {
		m.limits[n] = distuv.StudentsT{Sigma: 1, Nu: float64(n - 1)}.Quantile(1 - pastChance/2)
	}
	return m.limits[n]
}

// normal returns the statistics for the tests against the past. Those that are far from
// normally distributed are transformed: the square root of the mutual information, which is
// nearly a χ², and Fisher's transformation of the correlation.
func (s Statistics) normal() [byPast]float64 {
	const limit = 1 - 1e-9
	return [byPast]float64{
		0:                         s.Entropy,
		Information - Entropy:     math.Sqrt(max(0, s.Information)),
		Autocorrelation - Entropy: math.Atanh(max(-limit, min(s.Autocorrelation, limit))),
	}
}
