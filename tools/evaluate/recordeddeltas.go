// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
)

const (
	tableRecorded = "covert: recorded traffic"

	columnRight   = "windows judged right"
	columnNearest = "nearest score"

	// startStep is the number of deltas between the first windows of a recording: the exporter
	// may begin to watch a flow at any packet.
	startStep = 100
)

// recordedDeltas returns the experiments with recorded inter-arrival times: lines of nanoseconds
// in the files legitimate/*.txt.gz, of which no window may alarm, and covert/*.txt.gz. A time
// above the idle timeout is a pause.
func recordedDeltas(directory string) ([]experiment, error) {
	var all []experiment
	for _, kind := range []struct {
		folder    string
		isChannel bool
		bound     bound
	}{{"legitimate", false, atLeast(1)}, {"covert", true, atLeast(0.99)}} {
		paths, err := filepath.Glob(filepath.Join(directory, kind.folder, "*.txt.gz"))
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			deltas, err := readDeltas(path)
			if err != nil {
				return nil, err
			}
			expected := kind.bound
			if len(deltas) < covert.WindowLength { // not a single window
				expected = bound{}
			}
			judged := once(func(*lab, run) (judgedWindows, error) { return judgeDeltas(deltas, kind.isChannel), nil })
			row := fmt.Sprintf("%s: %s, %s deltas", kind.folder, strings.TrimSuffix(filepath.Base(path), ".txt.gz"), grouped(len(deltas)))
			for _, column := range []struct {
				name  string
				bound bound
				value func(judgedWindows) figure
			}{
				{columnRight, expected, func(j judgedWindows) figure { return shareFigure(j.right) }},
				{columnNearest, bound{}, func(j judgedWindows) figure { return figure{Value: j.nearest, Unit: "of the limit"} }},
			} {
				all = append(all, experiment{
					table: tableRecorded, row: row, column: column.name, config: bpf.DefaultConfig(), packets: len(deltas), bound: column.bound,
					measure: pick(judged, column.value),
				})
			}
		}
	}
	return all, nil
}

func readDeltas(path string) (deltas []uint32, err error) {
	idle := uint64(bpf.DefaultConfig().IdleTimeout)
	err = linesOf(path, func(line string) error {
		ns, err := strconv.ParseUint(line, 10, 64)
		if err != nil {
			return fmt.Errorf("%q is not a number of nanoseconds", line)
		}
		if ns <= idle {
			deltas = append(deltas, uint32(ns))
		}
		return nil
	})
	return deltas, err
}

// judgedWindows are the windows of a recording.
type judgedWindows struct {
	right share
	// nearest is the highest score of a window by symbols or phase that should not alarm, or of
	// windows that should the lowest of their higher scores.
	nearest float64
}

// judgeDeltas judges the windows of a recording in turn, from each of many deltas on.
func judgeDeltas(deltas []uint32, isChannel bool) judgedWindows {
	judged := judgedWindows{right: share{Clustering: 1}}
	if isChannel {
		judged.nearest = math.Inf(1)
	}
	meter := covert.NewMeter()
	for start := 0; start < covert.WindowLength; start += startStep {
		var past covert.Past
		for from := start; from+covert.WindowLength <= len(deltas); from += covert.WindowLength {
			scores := meter.Judge(&past, meter.Measure(deltas[from:from+covert.WindowLength]))
			judged.right.Trials++
			if len(scores.Alarms()) > 0 == isChannel {
				judged.right.Hits++
			}
			alone := scores[covert.Symbols]
			if scores[covert.Phase] > alone { // false for NaN
				alone = scores[covert.Phase]
			}
			if isChannel {
				judged.nearest = min(judged.nearest, alone)
			} else {
				judged.nearest = max(judged.nearest, alone)
			}
		}
	}
	return judged
}
