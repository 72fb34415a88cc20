// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package baselinefile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/excess"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

var terms = Terms{Domain: timing.Linear, Threshold: 4, Clock: "ktime", IdleTimeout: time.Second}

func example() *File {
	l := timing.Learnt{State: timing.State{N: 8192, MeanQ16: 1_000_000 << 16, M2: timing.Uint128{Hi: 3, Lo: 5}}}
	return &File{Terms: terms, Saved: time.Date(2026, 11, 25, 10, 0, 0, 0, time.UTC), Devices: map[string]timing.Learnt{
		"eth0": l, "eth1": {State: timing.State{N: 100}},
	}, Pasts: map[string]excess.Past{"eth0": {Minutes: 720, Judged: 4e7, Flags: 2800.5, Dispersion: []excess.Blocks{
		{Blocks: 719, Squares: 2900, Usual: 2800, UsualSquares: 10900}, {Blocks: 89, Squares: 2700, Usual: 2790, UsualSquares: 87000},
		{Blocks: 11, Squares: 2500, Usual: 2750, UsualSquares: 690000}, {Blocks: 2, Squares: 1500, Usual: 2000, UsualSquares: 2000000},
	}}}}
}

// exampleText is the example of docs/baseline-file.md.
const exampleText = `{
	"baseline": {
		"version": 1,
		"saved": "2026-11-25T10:00:00Z",
		"terms": {
			"domain": "linear",
			"threshold": 4,
			"clock": "ktime",
			"idle_timeout_ns": 1000000000
		},
		"devices": {
			"eth0": {
				"samples": 8192,
				"mean_q16": 65536000000,
				"m2": "55340232221128654853",
				"past": {
					"minutes": 720,
					"judged": 40000000,
					"flags": 2800.5,
					"dispersion": [
						{
							"blocks": 719,
							"squares": 2900,
							"usual": 2800,
							"usual_squares": 10900
						},
						{
							"blocks": 89,
							"squares": 2700,
							"usual": 2790,
							"usual_squares": 87000
						},
						{
							"blocks": 11,
							"squares": 2500,
							"usual": 2750,
							"usual_squares": 690000
						},
						{
							"blocks": 2,
							"squares": 1500,
							"usual": 2000,
							"usual_squares": 2000000
						}
					]
				}
			},
			"eth1": {
				"samples": 100,
				"mean_q16": 0,
				"m2": "0"
			}
		}
	},
	"sha256": "DIGEST"
}
`

func TestFormat(t *testing.T) {
	text, err := example().Encode()
	if err != nil {
		t.Fatal(err)
	}
	var out outer
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	if want := strings.Replace(exampleText, "DIGEST", out.SHA256, 1); string(text) != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
	parsed, err := Parse(text)
	if err != nil || !reflect.DeepEqual(parsed, example()) {
		t.Errorf("read back: %+v, %v", parsed, err)
	}
}

// A file of an earlier version has the scores of flagged packets, which are ignored.
func TestScoresOfEarlierVersionsAreIgnored(t *testing.T) {
	text := withDigest(t, replaced(`"m2":"0"`, `"m2":"0","judged":1000000,"early":[],"late":[[0,100],[511,1]]`))
	if parsed, err := Parse([]byte(text)); err != nil || !reflect.DeepEqual(parsed, example()) {
		t.Errorf("got %+v, %v", parsed, err)
	}
}

// withDigest returns a file with a changed baseline and the matching digest.
func withDigest(t testing.TB, change func(baseline string) string) string {
	t.Helper()
	text, err := example().Encode()
	if err != nil {
		t.Fatal(err)
	}
	var out outer
	var compact bytes.Buffer
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	if err := json.Compact(&compact, out.Baseline); err != nil {
		t.Fatal(err)
	}
	changed := change(compact.String())
	if changed == compact.String() {
		t.Fatal("nothing was changed")
	}
	return `{"baseline":` + changed + `,"sha256":"` + digest([]byte(changed)) + `"}`
}

func replaced(before, after string) func(string) string {
	return func(s string) string { return strings.Replace(s, before, after, 1) }
}

func TestDamagedFilesAreRefused(t *testing.T) {
	whole, err := example().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, text, want string }{
		{"empty", "", "it is cut short"},
		{"cut short", string(whole[:len(whole)/2]), "it is cut short"},
		{"no JSON", "baseline", "it cannot be read"},
		{"another JSON", "[]", "it cannot be read"},
		{"nothing in it", "{}", "it has no baseline"},
		{"data after the end", string(whole) + "{}", "data after its end"},
		{"a changed digit", strings.Replace(string(whole), "8192", "8193", 1), "digest does not match"},
		{"another version", withDigest(t, replaced(`"version":1`, `"version":2`)), "it has version 2, but this exporter reads version 1"},
		{"no version", withDigest(t, replaced(`"version":1,`, ``)), "it has version 0"},
		{"an unknown field", withDigest(t, replaced(`"m2"`, `"m3":0,"m2"`)), `unknown field "m3"`},
		{"an unknown field outside", strings.Replace(string(whole), `"sha256"`, `"sha512":"","sha256"`, 1), `unknown field "sha512"`},
		{"no date", withDigest(t, replaced(`"2026-11-25T10:00:00Z"`, `"0001-01-01T00:00:00Z"`)), "it has no date"},
		{"no device", withDigest(t, func(s string) string {
			before, _, _ := strings.Cut(s, `{"eth0"`)
			return before + "{}}"
		}), "no device"},
		{"a name that is not escaped as the exporter does", withDigest(t, replaced(`"eth1"`, `"%65th1"`)), `device "%65th1": not a valid device name`},
		{"a name with half an escape", withDigest(t, replaced(`"eth1"`, `"eth%1"`)), `device "eth%1": not a valid device name`},
		{"a name of 16 bytes", withDigest(t, replaced(`"eth1"`, `"abcdefghijklmno%ff"`)), `not a valid device name`},
		{"a name that is a path", withDigest(t, replaced(`"eth1"`, `"../eth1"`)), `device "../eth1": not a valid device name`},
		{"a mean that is not a number", withDigest(t, replaced(`65536000000`, `NaN`)), "it cannot be read"},
		{"a mean with a fraction", withDigest(t, replaced(`65536000000`, `0.5`)), "it cannot be read"},
		{"a negative mean", withDigest(t, replaced(`65536000000`, `-1`)), "it cannot be read"},
		{"a mean beyond the arithmetic", withDigest(t, replaced(`65536000000`, `140737488355329`)), "a mean of 140737488355329 is above"},
		{"one sample", withDigest(t, replaced(`"samples":100`, `"samples":1`)), "1 samples are not between 2 and 16777216"},
		{"absurdly many samples", withDigest(t, replaced(`8192`, `18446744073709551615`)), "18446744073709551615 samples are not between"},
		{"squares that are not a number", withDigest(t, replaced(`"55340232221128654853"`, `"NaN"`)), `m2 "NaN" is not a whole number`},
		{"negative squares", withDigest(t, replaced(`"55340232221128654853"`, `"-1"`)), `m2 "-1" is not a whole number`},
		{"squares of more than the samples", withDigest(t, replaced(`"m2":"0"`, `"m2":"461168601842738790401"`)), "more than 100 samples can have"},
		{"a past of more flags than packets", withDigest(t, replaced(`2800.5`, `5e7`)), `device "eth0": its past has 5e+07 flags`},
		{"an unknown field of a past", withDigest(t, replaced(`"minutes"`, `"hours":1,"minutes"`)), `unknown field "hours"`},
		{"squares without end", withDigest(t, replaced(`"m2":"0"`, `"m2":"`+strings.Repeat("9", 1000)+`"`)), "is not a whole number below"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "baseline.json")
			if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := Read(path, terms)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %+v and the error %v, want %q", f, err, test.want)
			}
			if text := err.Error(); !strings.HasPrefix(text, path+" cannot be used: ") || !strings.HasSuffix(text, ": "+remedy) || strings.Contains(text, "\n") {
				t.Errorf("the error is not one line with file and remedy: %s", text)
			}
		})
	}
}

// A file that is too large for Read is not written, and the previous file stays.
func TestAFileThatIsTooLargeIsNotWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "baseline.json")
	if err := Write(path, example()); err != nil {
		t.Fatal(err)
	}
	large := example()
	for i := range 200_000 {
		large.Devices[fmt.Sprint("veth", i)] = large.Devices["eth0"]
	}
	if err := Write(path, large); err == nil || !strings.Contains(err.Error(), path+" was not written: 200002 devices take ") {
		t.Errorf("got %v", err)
	}
	if f, err := Read(path, terms); err != nil || !reflect.DeepEqual(f, example()) {
		t.Errorf("read back another file, or none: %v", err)
	}
}

func TestOtherTermsAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "baseline.json")
	if err := Write(path, example()); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Terms){
		"--audit.domain is log2 and was":          func(t *Terms) { t.Domain = timing.Log2 },
		"--audit.threshold is 5 and was 4":        func(t *Terms) { t.Threshold = 5 },
		"--audit.clock is metadata and was":       func(t *Terms) { t.Clock = "metadata" },
		"--audit.idle-timeout is 1m0s and was 1s": func(t *Terms) { t.IdleTimeout = time.Minute },
	} {
		now := terms
		change(&now)
		if _, err := Read(path, now); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), path) {
			t.Errorf("got %v, want that %s", err, name)
		}
	}
}

func TestFilesAreReplacedWhole(t *testing.T) {
	directory := t.TempDir()
	path := filepath.Join(directory, "baseline.json")
	if f, err := Read(path, terms); f != nil || err != nil {
		t.Errorf("without a file: got %+v, %v", f, err)
	}
	first, second := example(), example()
	delete(second.Devices, "eth1")
	for _, f := range []*File{first, second} {
		if err := Write(path, f); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(path, terms); err != nil || !reflect.DeepEqual(got, f) {
			t.Errorf("got %+v, %v, want %+v", got, err, f)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
	if err := CheckWritable(path); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(directory); err != nil || len(entries) != 1 {
		t.Errorf("the directory has %v, want only the file", entries)
	}
	if err := Write(filepath.Join(directory, "absent", "file"), first); err == nil {
		t.Error("a file was written in a directory that does not exist")
	}
	if err := CheckWritable(filepath.Join(directory, "absent", "file")); err == nil {
		t.Error("a file can be written in a directory that does not exist")
	}
	if _, err := Read(directory, terms); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: got %v", err)
	}
	large := filepath.Join(directory, "large")
	if err := os.WriteFile(large, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(large, 1<<40); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(large, terms); err == nil || !strings.Contains(err.Error(), large+" is larger than 16777216 bytes") {
		t.Errorf("a terabyte: got %v", err)
	}
}

// Every file that the parser accepts is valid, and is written back as it was read.
func FuzzParse(f *testing.F) {
	whole, err := example().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte(withDigest(f, replaced(`"version":1`, `"version":2`))))
	f.Add([]byte(withDigest(f, replaced(`"m2":"0"`, `"m2":"0","judged":1,"late":[[511,1]]`))))
	f.Add([]byte(withDigest(f, replaced(`"m2":"0"`, `"m2":"1e9"`))))
	f.Add([]byte(`{"baseline":null,"sha256":""}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := Parse(text)
		if err != nil {
			// Most inputs fail at the digest. A matching digest reaches the checks after it.
			var out outer
			var compact bytes.Buffer
			if json.Unmarshal(text, &out) != nil || json.Compact(&compact, out.Baseline) != nil {
				return
			}
			if file, err = Parse([]byte(`{"baseline":` + compact.String() + `,"sha256":"` + digest(compact.Bytes()) + `"}`)); err != nil {
				return
			}
		}
		for name, l := range file.Devices {
			if err := l.Validate(); err != nil {
				t.Errorf("device %q: %v", name, err)
			}
		}
		for name, past := range file.Pasts {
			if err := past.Validate(); err != nil {
				t.Errorf("device %q: %v", name, err)
			}
		}
		again, err := file.Encode()
		if err != nil {
			t.Fatal(err)
		}
		before := *file
		before.Saved = before.Saved.UTC().Truncate(time.Second)
		if parsed, err := Parse(again); err != nil || !reflect.DeepEqual(*parsed, before) {
			t.Errorf("written back: %+v, %v, want %+v", parsed, err, before)
		}
	})
}
