// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package probe

import (
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

// The elements of a JUnit file that CI systems read.
type (
	junitSuites struct {
		XMLName xml.Name `xml:"testsuites"`
		Suites  []junitSuite
	}
	junitSuite struct {
		XMLName   xml.Name `xml:"testsuite"`
		Name      string   `xml:"name,attr"`
		Tests     int      `xml:"tests,attr"`
		Failures  int      `xml:"failures,attr"`
		Errors    int      `xml:"errors,attr"`
		Skipped   int      `xml:"skipped,attr"`
		Time      string   `xml:"time,attr"`
		Timestamp string   `xml:"timestamp,attr"`
		Cases     []junitCase
	}
	junitCase struct {
		XMLName   xml.Name      `xml:"testcase"`
		ClassName string        `xml:"classname,attr"`
		Name      string        `xml:"name,attr"`
		Time      string        `xml:"time,attr"`
		Failure   *junitMessage `xml:"failure"`
		Error     *junitMessage `xml:"error"`
		Skipped   *junitMessage `xml:"skipped"`
		Output    string        `xml:"system-out,omitempty"`
	}
	junitMessage struct {
		Message string `xml:"message,attr"`
		Type    string `xml:"type,attr,omitempty"`
	}
)

// junit returns the result as one test for the verdict, and one for each fault.
func (r *result) junit() *junitSuites {
	seconds := fmt.Sprintf("%.3f", r.Seconds)
	s := junitSuite{Name: Name, Time: seconds, Timestamp: r.Begin.UTC().Format(time.RFC3339)}
	add := func(c junitCase) {
		c.ClassName = Name + "." + r.URL
		s.Tests++
		for _, count := range []struct {
			message *junitMessage
			n       *int
		}{{c.Failure, &s.Failures}, {c.Error, &s.Errors}, {c.Skipped, &s.Skipped}} {
			if count.message != nil {
				*count.n++
			}
		}
		s.Cases = append(s.Cases, c)
	}
	verdict := junitCase{Name: "response times do not depend on the class", Time: seconds, Output: r.Sentence}
	message := &junitMessage{r.Sentence, r.Verdict.String()}
	switch {
	case r.ExitCode == exitLeak:
		verdict.Failure = message
	case r.ExitCode == exitInconclusive:
		verdict.Skipped = &junitMessage{Message: r.Sentence}
	case r.Verdict == leak.Invalid:
		verdict.Error = message
	}
	add(verdict)
	for _, f := range r.Faults {
		add(junitCase{Name: f.Name, Time: "0", Error: &junitMessage{f.Text, "invalid"}})
	}
	return &junitSuites{Suites: []junitSuite{s}}
}

// writeJUnit writes the result as JUnit's XML.
func (r *result) writeJUnit(w io.Writer) error {
	text, err := xml.MarshalIndent(r.junit(), "", "  ")
	if err == nil {
		_, err = w.Write(slices.Concat([]byte(xml.Header), text, []byte("\n")))
	}
	if err != nil {
		return fmt.Errorf("--junit: %w", err)
	}
	return nil
}
