// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
	timings "github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

// timedFlow sends frames of a flow at injected times.
type timedFlow struct {
	frame  []byte
	port   string // of the destination
	source timings.Source
	now    uint64
}

func newTimedFlow(port uint16, kind timings.Kind) *timedFlow {
	return &timedFlow{
		frame: makeFrame(unix.IPPROTO_UDP, port), port: fmt.Sprint(port), source: kind(timings.Rand(1, fmt.Sprint(port))), now: 1e12,
	}
}

func (f *timedFlow) send(t *testing.T, l *lab, packets int) {
	t.Helper()
	times := make([]uint64, packets)
	for i := range times {
		f.now += timings.Round(f.source())
		times[i] = f.now
	}
	if err := newGenerator(t, l.sender, generatorOptions{times: times}).send(f.frame, packets); err != nil {
		t.Fatal(err)
	}
}

// Two flows have injected times. One is a channel of two symbols: its windows raise alarms from
// the first on, and those of the other flow do not. Later the other flow repeats its own deltas,
// and is found by its past.
func TestCovertChannelsAlarm(t *testing.T) {
	cover := timings.LogAR1(1e6, 0.6, 0.9)
	legitimate, channel := newTimedFlow(1001, cover), newTimedFlow(1002, timings.TwoSymbols(1e6, 2e6, 0.02))

	l := newLab(t)
	path := filepath.Join(t.TempDir(), "trail")
	e := l.startExporter("--audit.device="+device, "--audit.clock=metadata", "--collector.covert", "--collector.covert.flows=2", "--trail.file="+path)
	if got := e.scrape().series("covert_score", "device="+device); len(got) != int(covert.NumTests) {
		t.Errorf("%d scores before any window, want %d", len(got), covert.NumTests)
	}
	for _, f := range []*timedFlow{legitimate, channel} {
		before := e.scrape().sum("covert_watched_flows")
		f.send(t, l, 1000)
		e.await(func(s scrape) error {
			if got := s.sum("covert_watched_flows"); got <= before {
				return fmt.Errorf("%v flows are watched", got)
			}
			return nil
		})
	}
	sendWindows := func(n int, flows ...*timedFlow) (s scrape) {
		for range n {
			want := e.scrape().sum("covert_windows_total") + float64(len(flows))
			for _, f := range flows {
				f.send(t, l, covert.WindowLength)
			}
			s = e.await(func(s scrape) error {
				if got := s.sum("covert_windows_total"); got < want {
					return fmt.Errorf("%v windows were judged, want %v", got, want)
				}
				return nil
			})
		}
		return s
	}

	const training = covert.PastLength + 2
	s := sendWindows(training, legitimate, channel)
	for metric, want := range map[string]float64{
		"covert_windows_total": 2 * training, "covert_alarmed_windows_total": training, "covert_skipped_deltas_total": 0,
	} {
		if got := s.sum(metric); got != want {
			t.Errorf("%s is %v, want %v", metric, got, want)
		}
	}
	for test, want := range map[covert.Test]float64{covert.Symbols: training, covert.Information: 0, covert.Autocorrelation: 0} {
		if got := s.sum("covert_alarms_total", "test="+test.String()); got != want {
			t.Errorf("%v windows alarm by %v, want %v", got, test, want)
		}
	}
	if score := s.sum("covert_score", "test=symbols"); score < 2 {
		t.Errorf("the score by symbols is %v", score)
	}

	legitimate.source = timings.ReplayedCover(cover, covert.WindowLength)(timings.Rand(2, "replayed"))
	s = sendWindows(2, legitimate) // the first window begins with deltas of the cover
	for _, test := range []covert.Test{covert.Information, covert.Autocorrelation} {
		if score := s.sum("covert_score", "test="+test.String()); score < 1 {
			t.Errorf("the score of the replayed cover by %v is %v", test, score)
		}
	}
	e.expectStopped()

	alarms := map[string]string{} // tests of the first record, by destination port
	for _, r := range readTrail(t, path) {
		tests, isCovert := r["covert"]
		if !isCovert {
			if r["direction"] == "" {
				t.Errorf("a record is neither of a packet nor of a window: %v", r)
			}
			continue
		}
		if r["direction"] != "" || r["device"] != device || r["source"] != "198.51.100.1" || r["destination"] != "198.51.100.2" ||
			r["protocol"] != "udp" || r["deltas"] != "2000" {
			t.Errorf("record %v", r)
		}
		if _, isKnown := alarms[r["destination_port"]]; !isKnown {
			alarms[r["destination_port"]] = tests
		}
	}
	if len(alarms) != 2 || !strings.HasPrefix(alarms[channel.port], "symbols") || !strings.Contains(alarms[legitimate.port], "autocorrelation") {
		t.Errorf("the first alarms by destination port are %v", alarms)
	}
}
