// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leak

import "math"

// Report is the state of an assessment. All its numbers are finite. Differences are those of the
// second class, Y, from the first, X: a positive one says that Y is slower.
type Report struct {
	Order    string  `json:"order"`
	TargetNs float64 `json:"target_ns"`
	Alpha    float64 `json:"alpha"`

	Classes [2]ClassReport `json:"classes"`
	// Quantiles are the levels of all quantiles of the report.
	Quantiles [len(Quantiles)]float64 `json:"quantiles"`
	// ExcludedUnknown are excluded requests of no known class.
	ExcludedUnknown uint64 `json:"excluded_unknown"`
	// LostPairs is the greatest number of pairs that exclusions may have dropped.
	LostPairs uint64 `json:"lost_pairs"`
	Pairs     uint64 `json:"pairs"`
	Ties      uint64 `json:"ties"` // pairs of equal times

	// EvidenceLog10 is the highest logarithm of the e-value so far, which decides.
	EvidenceLog10        float64 `json:"evidence_log10"`
	EvidenceCurrentLog10 float64 `json:"evidence_current_log10"`
	ExistenceLog10       float64 `json:"existence_log10"`    // current, of the signs of differences
	DistributionLog10    float64 `json:"distribution_log10"` // current, of the distribution

	// EffectNs is the median of the differences. LowNs and HighNs are the ends of its 95 %
	// confidence sequence, FloorNs is half its width. All are 0 unless HasInterval.
	HasInterval bool    `json:"has_interval"`
	EffectNs    float64 `json:"effect_ns"`
	LowNs       float64 `json:"effect_low_ns"`
	HighNs      float64 `json:"effect_high_ns"`
	FloorNs     float64 `json:"floor_ns"`

	Verdict Verdict `json:"verdict"`
	// PairsNeeded is about how many more pairs a conclusion needs: 0 for a conclusion. It is nil
	// if that is not known, and PairsUnknown says why.
	PairsNeeded  *uint64 `json:"pairs_needed,omitempty"`
	PairsUnknown string  `json:"pairs_unknown,omitempty"`
	Checks       []Check `json:"checks"`
	// Slower and Faster are the quantiles at which Y is slower or faster by more than the target.
	Slower []float64 `json:"slower_quantiles"`
	Faster []float64 `json:"faster_quantiles"`

	// The following decide nothing.
	DifferencesNs [len(Quantiles)]float64 `json:"difference_quantiles_ns"` // of the pairs
	Scores        []Score                 `json:"scores"`
	MannWhitneyZ  float64                 `json:"mann_whitney_z"`
	// ProbabilitySlower is the probability that a response to Y is slower than one to X.
	ProbabilitySlower float64 `json:"probability_slower"`
	Drift             Drift   `json:"drift"`
	Course            []Point `json:"course"`

	Sentence string `json:"sentence"`
}

// ClassReport describes the responses of a class.
type ClassReport struct {
	Name        string                  `json:"name"`
	Responses   uint64                  `json:"responses"`
	Excluded    uint64                  `json:"excluded"`
	SumNs       uint64                  `json:"sum_ns"`
	QuantilesNs [len(Quantiles)]float64 `json:"quantiles_ns"`
}

// Score is Welch's t between the classes.
type Score struct {
	Order int     `json:"order"` // 1 for means, 2 for variances
	Scale string  `json:"scale"` // linear or log2
	T     float64 `json:"t"`
}

// Drift has correlations between batches of pairs.
type Drift struct {
	// Times and Effect are the rank correlations of times and of the effect with their order.
	Times  float64 `json:"times"`
	Effect float64 `json:"effect"`
	// NeighboursZ is the z of the correlation of the effect with that of the next batch.
	NeighboursZ float64 `json:"neighbours_z"`
	// EffectMoves says that the effect is not constant, so the interval may miss it.
	EffectMoves bool `json:"effect_moves"`
}

// Point is the evidence after a number of pairs.
type Point struct {
	Pairs        uint64  `json:"pairs"`
	TimeNs       uint64  `json:"time_ns"` // of the last request
	Log10        float64 `json:"evidence_log10"`
	CurrentLog10 float64 `json:"evidence_current_log10"`
}

// Check is a check of the data. Its evidence is against what it checks.
type Check struct {
	Name   string  `json:"name"`
	Passes bool    `json:"passes"`
	Log10  float64 `json:"evidence_log10"`
	Fault  string  `json:"fault"` // what a failure means
}

// Report returns the state of the assessment.
func (j *Judge) Report() Report {
	f := j.find()
	r := Report{
		Order: j.config.Order.String(), TargetNs: j.config.TargetNs, Alpha: j.config.Alpha, Quantiles: Quantiles,
		ExcludedUnknown: j.excluded[Unknown], LostPairs: j.lost(),
		Pairs: j.differences.count(), Ties: j.differences.other.cells[0],
		EvidenceLog10: log10(j.evidence.maxLogE), EvidenceCurrentLog10: log10(j.evidence.logE),
		ExistenceLog10: log10(j.existence.logE), DistributionLog10: log10(j.distribution.logE()),
		Slower: f.slower, Faster: f.faster,
		Verdict: f.name(j.config.Order), Checks: j.checks(f),
		Scores: j.scores(), Course: j.history.course(),
	}
	r.PairsNeeded, r.PairsUnknown = j.pairsNeeded(f)
	for _, check := range r.Checks {
		if !check.Passes {
			r.Verdict, r.PairsNeeded, r.PairsUnknown = Invalid, nil, "a check has failed, which no number of pairs changes"
		}
	}
	for i := range r.Classes {
		c := &j.classes[i]
		r.Classes[i] = ClassReport{Name: j.config.Classes[i], Responses: c.times.count, Excluded: j.excluded[i], SumNs: c.sumNs}
		for k, p := range Quantiles {
			r.Classes[i].QuantilesNs[k] = c.times.quantile(p)
		}
	}
	for i, p := range Quantiles {
		r.DifferencesNs[i] = j.differences.quantile(p)
	}
	if f.verdict != Waiting {
		r.HasInterval = true
		r.EffectNs, r.LowNs, r.HighNs, r.FloorNs = j.differences.quantile(0.5), f.low, f.high, (f.high-f.low)/2
	}
	r.MannWhitneyZ, r.ProbabilitySlower = mannWhitney(&j.classes[X].times, &j.classes[Y].times)
	r.Drift.Times, r.Drift.Effect, r.Drift.NeighboursZ = j.history.drift()
	r.Drift.EffectMoves = j.history.moves(r.Drift.Effect, r.Drift.NeighboursZ)
	r.Sentence = r.sentence()
	return r
}

// Pairs returns the number of pairs.
func (j *Judge) Pairs() uint64 { return j.differences.count() }

// EvidenceLog10 returns the highest logarithm of the e-value so far.
func (j *Judge) EvidenceLog10() float64 { return log10(j.evidence.maxLogE) }

func log10(ln float64) float64 { return ln / math.Ln10 }

// checks returns the checks. Those of labels say nothing if nobody assigned the labels.
func (j *Judge) checks(f finding) []Check {
	of := func(name, fault string, logE float64) Check {
		return Check{Name: name, Passes: j.config.Order == Observed || logE < math.Log(refusal), Log10: log10(logE), Fault: fault}
	}
	counts := func(of func(Class) uint64) [2]float64 { return [2]float64{float64(of(X)), float64(of(Y))} }
	logE := logLoss(counts(func(c Class) uint64 { return j.excluded[c] }),
		counts(func(c Class) uint64 { return j.classes[c].times.count }))
	order, share := "the classes do not follow each other as fair coins do", "the classes are not equally frequent"
	if j.config.Order == Blocks {
		order, share = "the requests are not in random blocks of two", "the same class is the first of a block too often"
	}
	return []Check{
		of("order", order, j.labels.order()),
		of("share", share, j.labels.share()),
		of("selection", "the classes of the responses that remain after exclusions are uneven", j.labels.selection()),
		{
			Name: "loss", Passes: logE < math.Log(refusal) || j.stands(f, j.lost()), Log10: log10(logE),
			Fault: "requests of one class are excluded more often, and those that are missing could change the verdict",
		},
	}
}

func (j *Judge) scores() (scores []Score) {
	x, y := &j.classes[X], &j.classes[Y]
	for order := 1; order <= 2; order++ {
		scores = append(scores, Score{order, "linear", welch(order, x.linear, y.linear)},
			Score{order, "log2", welch(order, x.octaves, y.octaves)})
	}
	return scores
}

// course returns the evidence at the ends of batches.
func (h *history) course() []Point {
	points := make([]Point, 0, len(h.batches))
	pairs := uint64(0)
	for _, b := range h.batches {
		pairs += b.pairs
		points = append(points, Point{pairs, b.endNs, log10(b.maxLogE), log10(b.logE)})
	}
	return points
}
