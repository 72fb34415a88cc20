// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
	"github.com/xdp-audit/xdp_audit_exporter/internal/leak/trial"
)

// recordings returns the experiments with the recorded times of a directory; none without a
// directory. They need no seed.
func recordings(directory string) ([]experiment, error) {
	if directory == "" {
		return nil, nil
	}
	responses, err := recordedResponses(directory)
	if err != nil {
		return nil, err
	}
	deltas, err := recordedDeltas(directory)
	return slices.Concat(responses, deltas), err
}

// linesOf passes each line of a compressed file.
func linesOf(path string, take func(line string) error) (err error) {
	file, err := os.Open(path) //nolint:gosec // the user of the tool chooses the recordings
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	lines := bufio.NewScanner(unzipped)
	for number := 1; lines.Scan(); number++ {
		if err := take(lines.Text()); err != nil {
			return fmt.Errorf("line %d of %s: %w", number, path, err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	return nil
}

const (
	tableResponses = "leak: recorded response times"

	columnEvidence  = "evidence"
	columnResponses = "responses until an e-value of 10,000"
	columnMedian    = "difference of the median"
	columnFloor     = "half of the interval"
)

// boundOfResponses returns the bound of the evidence of a recording. That of a web application has
// classes that differ by about 12 µs.
func boundOfResponses(name string) bound {
	if name == "web-lan" {
		return atLeast(4)
	}
	return bound{}
}

// recordedResponses returns the experiments with recorded response times: lines of a class, X or Y,
// and nanoseconds, in the order of measurement and with labels in random order.
func recordedResponses(directory string) ([]experiment, error) {
	paths, err := filepath.Glob(filepath.Join(directory, "responses", "*.csv.gz"))
	if err != nil {
		return nil, err
	}
	var all []experiment
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".csv.gz")
		count := 0
		if err := linesOf(path, func(string) error { count++; return nil }); err != nil {
			return nil, err
		}
		judged := once(func(*lab, run) (judgedResponses, error) { return judgeResponses(path) })
		for _, column := range []struct {
			name  string
			bound bound
			value func(judgedResponses) figure
		}{
			{columnEvidence, boundOfResponses(name), func(j judgedResponses) figure {
				return figure{Value: max(0, j.report.EvidenceLog10), Unit: "decades"}
			}},
			{columnResponses, bound{}, func(j judgedResponses) figure { return figure{Value: float64(j.found)} }},
			{columnMedian, bound{}, func(j judgedResponses) figure {
				return figure{Value: math.Abs(j.report.EffectNs) / 1000, Unit: "µs"}
			}},
			{columnFloor, bound{}, func(j judgedResponses) figure { return figure{Value: j.report.FloorNs / 1000, Unit: "µs"} }},
		} {
			all = append(all, experiment{
				table: tableResponses, row: fmt.Sprintf("%s, %s responses", name, grouped(count)), column: column.name,
				config: bpf.DefaultConfig(), packets: count, bound: column.bound,
				measure: pick(judged, column.value),
			})
		}
	}
	return all, nil
}

// judgedResponses is the report on a recording, and the number of responses until the e-value
// reached 10,000; 0 for never.
type judgedResponses struct {
	report leak.Report
	found  int
}

func judgeResponses(path string) (judged judgedResponses, err error) {
	j, err := leak.New(trial.Config(leak.Random))
	if err != nil {
		return judged, err
	}
	count := 0
	err = linesOf(path, func(line string) error {
		class, text, _ := strings.Cut(line, ",")
		of := slices.Index([]string{"X", "Y"}, class)
		ns, err := strconv.ParseUint(text, 10, 64)
		if of < 0 || err != nil {
			return fmt.Errorf("%q is not a class X or Y and nanoseconds", line)
		}
		j.Response(leak.Request{Class: leak.Class(of), TimeNs: uint64(count)}, ns)
		if count++; judged.found == 0 && j.EvidenceLog10() >= 4 {
			judged.found = count
		}
		return nil
	})
	judged.report = j.Report()
	return judged, err
}
