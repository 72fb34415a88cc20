// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

// writeResponses writes a recording into a new directory.
func writeResponses(t *testing.T, name string, lines []string) (directory string) {
	t.Helper()
	directory = t.TempDir()
	if err := os.Mkdir(filepath.Join(directory, "responses"), 0o755); err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(directory, "responses", name+".csv.gz"))
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
	return directory
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
