// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leak

import "math"

// Verdict is the conclusion of an assessment.
type Verdict uint8

// The verdicts. Difference and NoDifference are those of the order Observed, for Leak and None.
const (
	Waiting      Verdict = iota // too few pairs for an interval
	Inconclusive                // more pairs are needed
	Leak                        // the classes differ by more than the target
	None                        // they differ by less than the target
	Invalid                     // a check has failed
	Difference
	NoDifference
	NumVerdicts
)

var verdictNames = [NumVerdicts]string{"waiting", "inconclusive", "leak", "none", "invalid", "difference", "no_difference"}

// String returns the value of the label verdict.
func (v Verdict) String() string { return verdictNames[v] }

// MarshalText returns the value of the label verdict.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// finding is a verdict of the times alone, and what it rests on.
type finding struct {
	verdict        Verdict   // Waiting, Inconclusive, Leak or None
	low, high      float64   // of the interval of the median
	slower, faster []float64 // levels at which Y differs by more than the target
}

// differs reports whether the median or a level differs by more than the target.
func (f *finding) differs(targetNs float64) bool {
	return f.low > targetNs || f.high < -targetNs || len(f.slower)+len(f.faster) > 0
}

// find returns the finding. Its evidence is the highest ever.
func (j *Judge) find() finding {
	f := finding{}
	f.low, f.high = j.differences.interval(0, 0, j.config.TickNs)
	f.slower, f.faster = j.levels.anyDiffers(0)
	if j.differences.count() < LeastPairs {
		return f
	}
	f.verdict = Inconclusive
	target := j.config.TargetNs
	switch {
	case f.differs(target):
		if j.evidence.maxLogE >= -math.Log(j.config.Alpha) {
			f.verdict = Leak
		}
	case f.low > -target && f.high < target && j.levels.allAgree(0):
		f.verdict = None
	}
	return f
}

// stands reports whether a finding is the same if each of the lost pairs is against it.
func (j *Judge) stands(f finding, lost uint64) bool {
	target := j.config.TargetNs
	low, _ := j.differences.interval(lost, 0, j.config.TickNs)
	_, high := j.differences.interval(0, lost, j.config.TickNs)
	switch f.verdict {
	case Leak:
		slower, faster := j.levels.anyDiffers(lost)
		isFound := f.low > target && low > target || f.high < -target && high < -target || len(slower)+len(faster) > 0
		s, n := j.existence.successes, j.existence.outcome
		logE := logBetaBinomial(existencePrior, max(s, n-s), n+float64(lost))
		return isFound && logMean(logE, j.levels.logMeanDiffers(lost)) >= -math.Log(j.config.Alpha)
	case None:
		return low > -target && high < target && j.levels.allAgree(lost)
	}
	return true
}

// lost returns the number of pairs that exclusions have dropped, at most.
func (j *Judge) lost() uint64 {
	if j.connections != nil {
		return j.dropped
	}
	return (j.excluded[X] + j.excluded[Y] + 1) / 2
}

// name returns the verdict under the name that it has for the order.
func (f *finding) name(order Order) Verdict {
	switch {
	case order == Observed && f.verdict == Leak:
		return Difference
	case order == Observed && f.verdict == None:
		return NoDifference
	}
	return f.verdict
}

// pairsNeeded returns about how many more pairs a conclusion needs, 0 for a conclusion, or why that
// is not known. The width of the interval is in inverse proportion to the root of the pairs.
func (j *Judge) pairsNeeded(f finding) (needed *uint64, unknown string) {
	pairs := j.differences.count()
	switch f.verdict {
	case Waiting:
		return new(LeastPairs - pairs), ""
	case Leak, None:
		return new(uint64(0)), ""
	}
	factor, unknown := j.pairsFactor(f)
	if unknown != "" {
		return nil, unknown
	}
	return new(uint64(math.Ceil(min(float64(pairs)*(factor-1), 1e15)))), ""
}

// pairsFactor returns the factor of pairs at which a conclusion comes, or why it is not known.
func (j *Judge) pairsFactor(f finding) (factor float64, unknown string) {
	target, wanted := j.config.TargetNs, -math.Log(j.config.Alpha)
	if f.differs(target) {
		factor = growth(j.evidence.logE, wanted)
		if math.IsInf(factor, 0) {
			return 0, "the evidence does not grow"
		}
		return factor, ""
	}
	floor, effect := (f.high-f.low)/2, math.Abs(f.low+f.high)/2
	// Near the target no number of pairs would do.
	margin := max(math.Abs(effect-target), target/4, j.config.TickNs, 1)
	factor = floor / margin * floor / margin
	switch isInside := f.low > -target && f.high < target; {
	case isInside:
		return j.levels.growth()
	case factor <= 1:
		return 0, "the difference is too near to the target"
	case effect < target:
		if all, unknown := j.levels.growth(); unknown == "" {
			factor = max(factor, all)
		}
	default:
		if enough := growth(j.evidence.logE, wanted); !math.IsInf(enough, 0) {
			factor = max(factor, enough)
		}
	}
	return factor, ""
}

// growth returns the factor of pairs at which an e-value reaches what is wanted, if its logarithm
// grows in proportion to the pairs; infinite for one that does not grow.
func growth(logE, wanted float64) float64 {
	if logE <= 0 {
		return math.Inf(1)
	}
	return wanted / logE
}

// growth returns the factor of pairs at which the classes agree at all levels, or why it is not
// known.
func (l *levels) growth() (factor float64, unknown string) {
	factor = 1.
	for i, p := range Quantiles {
		notSlower, notFaster := l.agrees(i, 0)
		of := growth(min(notSlower, notFaster), math.Log(inverseError))
		switch {
		case math.IsInf(of, 0):
			return 0, "at percentile " + percentile(p) + " nothing says yet that the classes differ by less than the target"
		case of <= 1 && !l.isNear(i):
			return 0, "the times change too fast to compare the classes at percentile " + percentile(p)
		}
		factor = max(factor, of)
	}
	return factor, ""
}
