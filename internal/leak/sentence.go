// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leak

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// sentence returns the verdict in plain words.
func (r *Report) sentence() string {
	x, y := "`"+r.Classes[X].Name+"`", "`"+r.Classes[Y].Name+"`"
	target := duration(r.TargetNs)
	switch r.Verdict {
	case Waiting:
		return fmt.Sprintf("An interval needs %d pairs of responses. Pairs so far: %s.", LeastPairs, grouped(r.Pairs))
	case Invalid:
		var faults []string
		for _, check := range r.Checks {
			if !check.Passes {
				faults = append(faults, check.Fault)
			}
		}
		return "These responses cannot be judged: " + strings.Join(faults, "; ") + "."
	case None, NoDifference:
		return fmt.Sprintf("Responses to %s and %s differ by less than %s: at the median (%s), and at percentiles 1, 10, 20 to 90 and 99, where up to %s %% may differ more.",
			x, y, target, r.interval(1), number(100*tolerated)) + r.moving()
	case Leak, Difference:
		if r.LowNs > r.TargetNs || r.HighNs < -r.TargetNs {
			return fmt.Sprintf("Responses to %s are %s (%s).", x, r.shift(y), r.shiftInterval()) + r.certainty() + r.moving()
		}
		return fmt.Sprintf("Some responses to %s are %s, than those to %s. At the median, responses to %s are %s (%s).",
			y, r.directions(), x, x, r.shift(y), r.shiftInterval()) + r.certainty() + r.moving()
	}
	return fmt.Sprintf("No verdict yet. At the median, responses to %s are %s (%s); %s. %s.",
		x, r.shift(y), r.shiftInterval(), r.whatMatters(), r.needed()) + r.moving()
}

// needed says how many more pairs a conclusion needs.
func (r *Report) needed() string {
	if r.PairsNeeded == nil {
		return "It is not known how many more pairs a verdict takes: " + r.PairsUnknown
	}
	return fmt.Sprintf("It takes about %s more pairs", grouped(*r.PairsNeeded))
}

// whatMatters says which differences do not matter.
func (r *Report) whatMatters() string {
	if r.TargetNs == 0 {
		return "every difference matters"
	}
	return "differences up to " + duration(r.TargetNs) + " do not matter"
}

// isFaster reports whether X is faster, by the median of the differences.
func (r *Report) isFaster() bool { return r.EffectNs > 0 }

// shift says how much faster or slower X is than y.
func (r *Report) shift(y string) string {
	size := duration(math.Abs(r.EffectNs))
	switch {
	case size == noTime:
		return "as fast as to " + y
	case r.isFaster():
		return size + " faster than to " + y
	}
	return size + " slower than to " + y
}

// shiftInterval returns the interval of the shift.
func (r *Report) shiftInterval() string {
	if r.isFaster() {
		return r.interval(1)
	}
	return r.interval(-1)
}

// interval returns the ends of the interval times 1 or -1.
func (r *Report) interval(sign float64) string {
	low, high := sign*r.LowNs, sign*r.HighNs
	if low > high {
		low, high = high, low
	}
	return duration(low) + " to " + duration(high)
}

// directions says in which directions some responses differ, and at which quantiles.
func (r *Report) directions() string {
	var parts []string
	for _, p := range []struct {
		word   string
		levels []float64
	}{{"slower", r.Slower}, {"faster", r.Faster}} {
		if len(p.levels) == 0 {
			continue
		}
		var percentiles []string
		for _, level := range p.levels {
			percentiles = append(percentiles, percentile(level))
		}
		word := p.word
		if r.TargetNs > 0 {
			word = "more than " + duration(r.TargetNs) + " " + word
		}
		parts = append(parts, fmt.Sprintf("%s (near percentile %s)", word, strings.Join(percentiles, ", ")))
	}
	return strings.Join(parts, ", and some are ")
}

// percentile formats a level.
func percentile(level float64) string { return strconv.FormatFloat(100*level, 'f', -1, 64) }

// certainty says what the evidence means, as a power of ten that it reaches.
func (r *Report) certainty() string {
	const most = 9
	exponent := math.Floor(min(r.EvidenceLog10, most) + 1e-9)
	assessments := uint64(math.Pow(10, exponent))
	condition := "If the class did not matter"
	if r.Verdict == Difference {
		condition = "If the classes came in random order and did not matter"
	}
	return fmt.Sprintf(" %s, evidence this strong would appear in at most 1 of %s assessments.", condition, grouped(assessments))
}

// moving warns of an effect that is not constant.
func (r *Report) moving() string {
	if !r.Drift.EffectMoves {
		return ""
	}
	return " The difference changes with time, so the interval may miss it."
}

// noTime is what duration returns for a time that it rounds to 0.
const noTime = "0 ns"

// duration formats nanoseconds with up to three digits.
func duration(ns float64) string {
	for _, unit := range []struct {
		ns   float64
		name string
	}{{1e9, "s"}, {1e6, "ms"}, {1e3, "µs"}} {
		if math.Abs(ns) >= 0.9995*unit.ns {
			return number(ns/unit.ns) + " " + unit.name
		}
	}
	return number(ns) + " ns"
}

// number formats a number below 1000, or whole seconds, with up to three digits.
func number(v float64) string {
	decimals := max(0, 2-int(math.Floor(math.Log10(max(math.Abs(v), 1)))))
	text := strconv.FormatFloat(v, 'f', decimals, 64)
	if strings.Contains(text, ".") {
		text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	}
	if text == "-0" {
		return "0"
	}
	return text
}

// grouped formats a number with commas between thousands.
func grouped(n uint64) string {
	digits := strconv.FormatUint(n, 10)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
