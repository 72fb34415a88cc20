// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leak

import "fmt"

// FormatNs returns nanoseconds as the sentence of a report has them, with up to three digits.
func FormatNs(ns float64) string { return duration(ns) }

// FormatCount returns a number as the sentence of a report has it, with commas between thousands.
func FormatCount(n uint64) string { return grouped(n) }

// UnmarshalText takes the value of the label verdict.
func (v *Verdict) UnmarshalText(text []byte) error {
	for verdict, name := range verdictNames {
		if name == string(text) {
			*v = Verdict(verdict)
			return nil
		}
	}
	return fmt.Errorf("verdict %.50q is not known", text)
}
