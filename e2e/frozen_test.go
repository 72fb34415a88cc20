// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The exporter learns a baseline, saves it when it ends, and audits against the saved baseline
// after a restart. Times are injected. A slow drift is flagged more and more against the saved
// baseline, and is not flagged against a baseline that keeps learning.
func TestSlowDriftAgainstASavedBaseline(t *testing.T) {
	const (
		packets   = 300_000
		deviation = 20e3 // ns
		drift     = 10 * deviation
	)
	// schedule returns times with deltas of about 1 ms that grow by the drift from the first to
	// the last.
	schedule := func(drift float64) []uint64 {
		random := rand.New(rand.NewPCG(7, 8))
		times := make([]uint64, packets)
		times[0] = 1e12
		for i := 1; i < packets; i++ {
			times[i] = times[i-1] + uint64(math.Round(1e6+drift*float64(i)/packets+deviation*random.NormFloat64()))
		}
		return times
	}
	l := newLab(t)
	path := filepath.Join(t.TempDir(), "folder", "baseline.json")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	// flagged sends a schedule to an exporter and returns the fraction of packets that it flags.
	flagged := func(times []uint64, args ...string) (float64, scrape) {
		t.Helper()
		e := l.startExporter(append([]string{"--audit.device=" + device, "--audit.clock=metadata", "--audit.calibrate=1e-3"}, args...)...)
		if err := newGenerator(t, l.sender, generatorOptions{times: times}).send(generatedFrame(), packets); err != nil {
			t.Fatal(err)
		}
		s := e.atRest()
		if got := s.sum("packets_total", "protocol=udp"); got != packets {
			t.Fatalf("%v packets were counted, want %d", got, packets)
		}
		e.expectStopped()
		return s.sum("leak_flags_total") / packets, s
	}
	file := "--audit.baseline-file=" + path

	steady, drifting := schedule(0), schedule(drift)
	usual, s := flagged(steady, file)
	if got := s.sum("baseline_frozen"); got != 0 || len(s.series("baseline_frozen")) != 1 || len(s.series("baseline_saved_timestamp_seconds")) != 0 {
		t.Errorf("while it learns the baseline is frozen: %v", got)
	}
	mean := s.sum("baseline_mean_seconds")
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Fatalf("saved was %v, %v, want a file of mode 0600", info, err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}

	taught, s := flagged(drifting, "--audit.baseline=device")
	if got := s.sum("baseline_mean_seconds"); math.Abs(got-(1e6+drift)/1e9) > 0.05*drift/1e9 {
		t.Errorf("the mean that was taught is %v s, want that of the end of the drift", got)
	}
	frozen, s := flagged(drifting, file)
	if got := s.sum("baseline_frozen"); got != 1 {
		t.Errorf("after a restart the baseline is not frozen: %v", got)
	}
	if got := s.sum("baseline_mean_seconds"); got != mean {
		t.Errorf("the frozen mean is %v s, want %v as learnt", got, mean)
	}
	if got := s.sum("baseline_saved_timestamp_seconds"); math.Abs(got-float64(info.ModTime().Unix())) > 5 || time.Since(time.Unix(int64(got), 0)) > time.Hour {
		t.Errorf("it says to be saved at %v, and the file is of %v", got, info.ModTime())
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("the file was changed: %v", err)
	}
	t.Logf("flagged: steady %.2g, drifting %.2g against a baseline that is taught, %.2g against the saved one", usual, taught, frozen)
	if usual > 2e-4 || taught > 3e-4 || frozen < 0.4 {
		t.Errorf("flagged: steady %.2g, drifting %.2g against a baseline that is taught, %.2g against the saved one; want few, few, and 0.4 at least",
			usual, taught, frozen)
	}

	// A damaged file is refused before anything is attached.
	if err := os.WriteFile(path, before[:len(before)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	p := l.start(binaries.exporter, []string{"--audit.device=" + device, "--audit.clock=metadata", "--web.listen-address=" + address, file})
	if code := p.wait(); code != 1 || strings.Count(p.stderr.String(), "\n") != 1 || !strings.Contains(p.stderr.String(), path) {
		t.Errorf("a file that is cut short: exit code %d, %s", code, &p.stderr)
	}
}
