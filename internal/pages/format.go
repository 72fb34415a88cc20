// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package pages

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// grouped formats a count with thin spaces between thousands.
func grouped(n uint64) string {
	digits := strconv.FormatUint(n, 10)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "\u202f" + digits[i:]
	}
	return digits
}

// digits formats a number with up to three significant digits, without an exponent.
func digits(v float64) string {
	switch {
	case v == 0: // also −0
		return "0"
	case math.IsNaN(v) || math.IsInf(v, 0):
		return strconv.FormatFloat(v, 'g', 3, 64)
	}
	decimals := min(12, max(0, 2-int(math.Floor(math.Log10(math.Abs(v))))))
	text := strconv.FormatFloat(v, 'f', decimals, 64)
	if strings.Contains(text, ".") {
		text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	}
	return strings.Replace(text, "-", "−", 1)
}

// si formats a number with a prefix of the SI.
func si(v float64) string {
	for _, prefix := range []struct {
		factor float64
		name   string
	}{{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if math.Abs(v) >= 0.9995*prefix.factor {
			return digits(v/prefix.factor) + "\u00a0" + prefix.name
		}
	}
	if math.Abs(v) < 0.005 {
		return "0"
	}
	return digits(math.Round(v*100) / 100)
}

// per formats a rate with a unit, which follows a prefix of the SI without a space.
func per(v float64, unit string) string {
	text := si(v)
	if strings.Contains(text, "\u00a0") {
		return text + unit
	}
	return text + "\u00a0" + unit
}

// percent formats a share, which is nil without anything to divide by.
func percent(share *float64) string {
	switch {
	case share == nil:
		return "–"
	case *share == 0:
		return "0\u00a0%"
	case *share < 1e-5:
		return "<\u00a00.001\u00a0%"
	}
	return digits(100**share) + "\u00a0%"
}

// seconds formats a time in seconds with its unit.
func seconds(s float64) string {
	for _, unit := range []struct {
		seconds float64
		name    string
	}{{1, "s"}, {1e-3, "ms"}, {1e-6, "µs"}} {
		if math.Abs(s) >= 0.9995*unit.seconds {
			return digits(s/unit.seconds) + "\u00a0" + unit.name
		}
	}
	return digits(s/1e-9) + "\u00a0ns"
}

// nanoseconds formats a time in nanoseconds with its unit.
func nanoseconds(ns float64) string { return seconds(ns / 1e9) }

// age formats a duration with its two largest units.
func age(d time.Duration) string {
	s := int64(max(d, 0) / time.Second)
	for _, unit := range []struct {
		seconds    int64
		name, less string
	}{{86400, "d", "h"}, {3600, "h", "min"}, {60, "min", "s"}} {
		if s >= unit.seconds {
			smaller := map[string]int64{"h": 3600, "min": 60, "s": 1}[unit.less]
			return fmt.Sprintf("%d\u00a0%s %d\u00a0%s", s/unit.seconds, unit.name, s%unit.seconds/smaller, unit.less)
		}
	}
	return fmt.Sprintf("%d\u00a0s", s)
}

// score formats a t-score.
func score(t float64) string {
	if math.Abs(t) >= 1e6 {
		return strings.Replace(strconv.FormatFloat(t, 'e', 2, 64), "-", "−", 1)
	}
	return digits(t)
}

// phrase is a part of a sentence.
type phrase struct {
	Text   string
	IsName bool
}

// phrases divides a sentence with names between backquotes.
func phrases(sentence string) (parts []phrase) {
	for i, text := range strings.Split(sentence, "`") {
		parts = append(parts, phrase{text, i%2 == 1})
	}
	return parts
}

// clock formats a time of day.
func clock(t time.Time) string { return t.UTC().Format("15:04:05.000") }

// date formats a time with its date, as HTML has it.
func date(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000") }

// stamp formats a time for machines.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }
