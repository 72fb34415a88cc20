// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

// writeResponses writes a recording into a new directory.
func writeResponses(t *testing.T, name string, lines []string) (directory string) {
	t.Helper()
	directory = t.TempDir()
	writeRecording(t, filepath.Join(directory, "responses", name+".csv.gz"), lines)
	return directory
}

// writeRecording writes a compressed file, into a new folder if needed.
func writeRecording(t *testing.T, path string, lines []string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	zipped := gzip.NewWriter(file)
	if _, err := zipped.Write([]byte(strings.Join(lines, "\n") + "\n")); err != nil {
		t.Fatal(err)
	}
	if err := zipped.Close(); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
}

// Recorded response times are judged, and a bound that one of them breaks fails.
func TestRecordedResponses(t *testing.T) {
	for _, test := range []struct {
		differsBy int
		isMet     bool
	}{{12_000, true}, {0, false}} {
		r := traffic.Rand(1, "recorded")
		var lines []string
		for range 2000 {
			class := r.IntN(2)
			lines = append(lines, fmt.Sprintf("%c,%.0f", 'X'+rune(class), 1e6+10_000*r.NormFloat64()+float64(class*test.differsBy)))
		}
		all, err := recordings(writeResponses(t, "web-lan", lines))
		if err != nil {
			t.Fatal(err)
		}
		results, err := (&lab{}).runThese(&strings.Builder{}, all, 1, 1, func(question) bool { return true })
		if err != nil {
			t.Fatal(err)
		}
		if len(results) != 4 || results[0].Row != "web-lan, 2,000 responses" || results[0].Packets != 2000 {
			t.Fatalf("got %+v", results)
		}
		if results[0].IsMet != test.isMet || (results[1].Value > 0) != test.isMet {
			t.Errorf("%d ns: got %+v", test.differsBy, results)
		}
		if median := results[2].Value * 1000; median < float64(test.differsBy)-2000 || median > float64(test.differsBy)+2000 {
			t.Errorf("%d ns: the median differs by %v ns", test.differsBy, median)
		}
		if err := (&report{Recordings: results}).failed(); (err == nil) != test.isMet {
			t.Errorf("%d ns: got the error %v", test.differsBy, err)
		}
	}
}

// Recordings that cannot be read are an error with the place.
func TestRecordingsThatCannotBeRead(t *testing.T) {
	directory := writeResponses(t, "wrong", []string{"X,5", "Z,7"})
	all, err := recordings(directory)
	if err != nil {
		t.Fatal(err)
	}
	_, err = (&lab{}).runThese(&strings.Builder{}, all, 1, 1, func(question) bool { return true })
	if err == nil || !strings.Contains(err.Error(), "line 2 of "+directory) || !strings.Contains(err.Error(), `"Z,7"`) {
		t.Errorf("got %v, want an error with the line", err)
	}
	path := filepath.Join(directory, "responses", "wrong.csv.gz")
	if err := os.WriteFile(path, []byte("X,5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := recordings(directory); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a file that is not compressed: got %v", err)
	}
	if all, err := recordings(""); all != nil || err != nil {
		t.Errorf("without a directory: got %v, %v", all, err)
	}
}

// A run without recordings leaves those of the documents.
func TestDocumentsKeepRecordings(t *testing.T) {
	if len(committed(t).Recordings) == 0 {
		t.Error("the documents have no figures of recordings: run make evaluate with TRACES")
	}
	for _, result := range committed(t).Recordings {
		if result.Table == tableResponses && result.Column == columnEvidence && result.Bound != boundOfResponses(strings.Split(result.Row, ",")[0]) {
			t.Errorf("%v: the bound is %v", result.question, result.Bound)
		}
	}
}

// TRACES=directory judges the recordings in it, each with its bound.
func TestTraces(t *testing.T) {
	directory := os.Getenv("TRACES")
	if directory == "" {
		t.Skip("no recordings: TRACES=directory judges those in it")
	}
	all, err := recordings(directory)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatalf("%s has none of responses/*.csv.gz, legitimate/*.txt.gz and covert/*.txt.gz", directory)
	}
	var lines strings.Builder
	results, err := (&lab{}).runThese(&lines, all, 1, 1, func(question) bool { return true })
	t.Log("\n" + lines.String())
	if err := errors.Join(err, (&report{Recordings: results}).failed()); err != nil {
		t.Error(err)
	}
}

// Windows of a channel alarm from any packet on, those of other traffic do not, and what is in the
// wrong folder fails. A pause is not a delta, and a recording may be too short for a window.
func TestRecordedDeltas(t *testing.T) {
	r := traffic.Rand(1, "deltas")
	var symbols, smooth []string
	for i := range 5000 {
		symbols = append(symbols, fmt.Sprint(40_000_000*(1+r.IntN(2))))
		smooth = append(smooth, fmt.Sprintf("%.0f", 20e6*r.ExpFloat64()))
		if i%100 == 0 {
			symbols, smooth = append(symbols, "5000000000"), append(smooth, "5000000000")
		}
	}
	directory := t.TempDir()
	for path, lines := range map[string][]string{
		"covert/symbols": symbols, "covert/smooth": smooth, "legitimate/symbols": symbols, "legitimate/smooth": smooth,
		"legitimate/short": smooth[:100],
	} {
		writeRecording(t, filepath.Join(directory, path+".txt.gz"), lines)
	}
	all, err := recordings(directory)
	if err != nil {
		t.Fatal(err)
	}
	results, err := (&lab{}).runThese(&strings.Builder{}, all, 1, 1, func(question) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, result := range results {
		if result.Column == columnRight {
			got = append(got, fmt.Sprintf("%s %d/%d %v", result.Row, result.Share.Hits, result.Share.Trials, result.IsMet))
		}
	}
	// Two windows from each of eleven packets on, and one from each of nine others.
	want := []string{
		"legitimate: short, 99 deltas 0/0 true", "legitimate: smooth, 5,000 deltas 31/31 true", "legitimate: symbols, 5,000 deltas 0/31 false",
		"covert: smooth, 5,000 deltas 0/31 false", "covert: symbols, 5,000 deltas 31/31 true",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	writeRecording(t, filepath.Join(directory, "covert", "wrong.txt.gz"), []string{"5", "-7"})
	if _, err := recordings(directory); err == nil || !strings.Contains(err.Error(), "line 2 of") || !strings.Contains(err.Error(), `"-7"`) {
		t.Errorf("got %v, want an error with the line", err)
	}
}
