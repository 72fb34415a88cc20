// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A packet of a second ago has the wall time of a second ago, whenever the anchor was made and
// however the wall clock was set then.
func TestWallTimeUsesTheCurrentClockSetting(t *testing.T) {
	const tolerance = 100 * time.Millisecond // of an anchor, which reads two clocks in turn
	begin, now, end := time.Now(), monotonicNs(), time.Now()
	fresh := newMonotonicAnchor()
	// As if it had been made an hour ago: both clocks have advanced since.
	old := monotonicAnchor{goTime: fresh.goTime.Add(-time.Hour), ktimeNs: fresh.ktimeNs - int64(time.Hour)}
	for name, anchor := range map[string]monotonicAnchor{"fresh": fresh, "old": old} {
		for _, ago := range []time.Duration{0, time.Second, 24 * time.Hour, -time.Second} {
			got := anchor.wallTime(now - uint64(ago))
			earliest, latest := begin.Add(-ago-tolerance), end.Add(-ago+tolerance)
			if got.Before(earliest) || got.After(latest) {
				t.Errorf("%s anchor, %v ago: got %v, want %v to %v", name, ago, got, earliest, latest)
			}
		}
	}
}

// In a time namespace, CLOCK_MONOTONIC of a process and of BPF programs differ.
func TestWallTimeInATimeNamespace(t *testing.T) {
	const variable, tolerance = "XDP_AUDIT_TEST_KTIME", 500 * time.Millisecond
	if inside := os.Getenv(variable); inside != "" {
		ktimeNs, err := strconv.ParseUint(inside, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println(newMonotonicAnchor().wallTime(ktimeNs).Format(time.RFC3339Nano))
		return
	}
	for _, offset := range []string{"0", "86400", "-1"} { // in seconds
		begin, ktimeNs, end := time.Now(), monotonicNs(), time.Now()
		command := exec.CommandContext(t.Context(), "unshare", "--time", "--monotonic="+offset, os.Args[0], "-test.run=^"+t.Name()+"$")
		command.Env = append(os.Environ(), variable+"="+strconv.FormatUint(ktimeNs, 10))
		output, err := command.CombinedOutput()
		if err != nil {
			t.Fatalf("offset %s s: %v: %s", offset, err, output)
		}
		line, _, _ := strings.Cut(string(output), "\n")
		got, err := time.Parse(time.RFC3339Nano, line)
		if err != nil || got.Before(begin.Add(-tolerance)) || got.After(end.Add(tolerance)) {
			t.Errorf("offset %s s: got %q, want %v to %v: %v", offset, line, begin, end, err)
		}
	}
}

func TestParseMonotonicOffset(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"monotonic           0         0\nboottime            0         0\n": 0,
		"monotonic       86400         5\nboottime            7         0\n": 24*time.Hour + 5,
		"boottime            7         0\nmonotonic          -1 999999999\n": -1,
		"": 0, "monotonic\n": 0, "monotonic x 0\n": 0,
	} {
		if got := parseMonotonicOffset([]byte(text)); got != want {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
}
