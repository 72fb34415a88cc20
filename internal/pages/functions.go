// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package pages

import (
	"html/template"
	"time"
)

// repository is where the documents are. Nothing is loaded from there.
const repository = "https://github.com/xdp-audit/xdp_audit_exporter/blob/main/"

// functions returns the functions of the templates.
func (s *Site) functions() template.FuncMap {
	return template.FuncMap{
		"grouped": grouped,
		"count":   func(n int) string { return grouped(uint64(max(n, 0))) },
		"digits":  digits,
		"si":      si,
		"per":     per,
		"percent": percent,
		"share":   func(v float64) string { return percent(&v) },
		"seconds": seconds,
		"ns":      nanoseconds,
		"score":   score,
		"clock":   clock,
		"phrases": phrases,
		"stamp":   stamp,
		"date":    date,
		"coord":   coordinate,
		"add":     func(a, b float64) float64 { return a + b },
		"inc":     func(a, b int) int { return a + b },
		"bytes":   func(n uint64) string { return per(float64(n), "B") },
		"uptime":  func(v float64) string { return age(time.Duration(v * float64(time.Second))) },
		"ago":     func(t time.Time) string { return age(s.Now().Sub(t)) },
		"doc":     func(name string) string { return repository + name },
		"device":  devicePath,
		"used":    func(n int64) string { return grouped(uint64(max(n, 0))) },
		"deref":   func(v *float64) float64 { return *v },
		"half":    func(v float64) *float64 { v /= 2; return &v },
	}
}
