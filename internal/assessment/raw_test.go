// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package assessment

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

func TestRawFormats(t *testing.T) {
	for _, test := range []struct {
		name string
		want string
	}{
		{"csv", "V1,V2\nX,1\nY,1500000000\nX,0\n"},
		{"tlsfuzzer", "class,raw times\n0,0.000000001\n1,1.500000000\n0,0.000000000\n"},
	} {
		format, err := ParseRawFormat(test.name)
		if err != nil || format.String() != test.name {
			t.Fatalf("%v, %v", format, err)
		}
		path := filepath.Join(t.TempDir(), "raw.csv")
		raw := NewRaw(path, format)
		if err := raw.Reload([]string{"a"}); err != nil {
			t.Fatal(err)
		}
		s := New(raw)
		reload(t, s, configuration(t, leak.Random, "a"), 0)
		_ = s.Add([]bpf.Exchange{
			{Assessment: "a", Class: 0, TimeNs: 1e10, ResponseNs: 1, Connection: 1, HasStart: true},
			{Assessment: "a", Class: 1, Exclusion: bpf.ExclusionPipelined, TimeNs: 1.5e10, ResponseNs: 7, Connection: 3, HasStart: true},
			{Assessment: "a", Class: 1, TimeNs: 2e10, ResponseNs: 1.5e9, Connection: 1, Position: 1, HasStart: true},
			{Assessment: "a", Class: 0, TimeNs: 3e10, ResponseNs: 0, Connection: 2, HasStart: true},
		})
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := raw.Close(); err != nil {
			t.Fatal(err)
		}
		if got := read(t, path); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
		if raw.Counts().Lines() != 3 || raw.Counts().Lost() != 0 {
			t.Errorf("%d written, %d lost", raw.Counts().Lines(), raw.Counts().Lost())
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
	}
	if _, err := ParseRawFormat("json"); err == nil || !strings.Contains(err.Error(), "csv or tlsfuzzer") {
		t.Errorf("error %v", err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func appendLines(t *testing.T, raw *Raw, assessment, lines string) {
	t.Helper()
	if err := raw.Append(assessment, []byte(lines)); err != nil {
		t.Fatal(err)
	}
}

// Each assessment has a file, a rotation begins new ones, and each file has its header once.
func TestRawFiles(t *testing.T) {
	directory := t.TempDir()
	raw := NewRaw(filepath.Join(directory, "raw-{assessment}.csv"), RawCSV)
	if err := raw.Reload([]string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	appendLines(t, raw, "a", "X,1\n")
	appendLines(t, raw, "b", "Y,2\n")
	a, b, c := filepath.Join(directory, "raw-a.csv"), filepath.Join(directory, "raw-b.csv"), filepath.Join(directory, "raw-c.csv")
	if err := os.Rename(a, a+".1"); err != nil {
		t.Fatal(err)
	}
	appendLines(t, raw, "a", "X,3\n")
	if err := raw.Reopen(); err != nil {
		t.Fatal(err)
	}
	appendLines(t, raw, "a", "X,4\n")
	appendLines(t, raw, "b", "Y,5\nX,6\n")
	if err := raw.Reload([]string{"b", "c"}); err != nil {
		t.Fatal(err)
	}
	appendLines(t, raw, "a", "X,7\nX,8\n") // of an assessment that is gone
	appendLines(t, raw, "b", "Y,9\n")
	appendLines(t, raw, "c", "Y,10\n")
	for path, want := range map[string]string{
		a + ".1": "V1,V2\nX,1\nX,3\n", a: "V1,V2\nX,4\n", b: "V1,V2\nY,2\nY,5\nX,6\nY,9\n", c: "V1,V2\nY,10\n",
	} {
		if got := read(t, path); got != want {
			t.Errorf("%s has %q, want %q", path, got, want)
		}
	}
	if raw.Counts().Lines() != 8 || raw.Counts().Lost() != 2 {
		t.Errorf("%d written, %d lost", raw.Counts().Lines(), raw.Counts().Lost())
	}

	// After an error nothing is changed.
	if err := os.Mkdir(filepath.Join(directory, "raw-d.csv"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := raw.Reload([]string{"e", "d"}); err == nil || !strings.Contains(err.Error(), "raw-d.csv") {
		t.Errorf("error %v", err)
	}
	appendLines(t, raw, "c", "Y,11\n")
	if got := read(t, c); got != "V1,V2\nY,10\nY,11\n" {
		t.Errorf("%q", got)
	}

	if err := raw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := raw.Append("c", []byte("Y,12\n")); err == nil || !strings.Contains(err.Error(), "assessment c") {
		t.Errorf("error after Close: %v", err)
	}

	one := NewRaw(filepath.Join(directory, "raw.csv"), RawCSV)
	if err := one.Reload([]string{"a", "b"}); err == nil || !strings.Contains(err.Error(), "{assessment}") {
		t.Errorf("one file for two assessments: %v", err)
	}
}
