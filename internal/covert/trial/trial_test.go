// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package trial

import (
	"math"
	"slices"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/covert"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

const (
	seed       = 1
	mostAlarms = 0.02 // share of the windows of legitimate traffic
	legitimate = 1000 // windows
	ofAnother  = 300
	ofAChannel = 500
	confidence = 0.95
)

// run is Flows.Run in parallel with others.
func run(t *testing.T, flows Flows, windows int, check func(Result)) {
	t.Helper()
	t.Run(flows.Name, func(t *testing.T) {
		t.Parallel()
		result := flows.Run(windows, seed)
		t.Logf("%s: %v of %d windows alarm: %v", flows.Name, result.Combined, result.Combined.Windows, result.ByTest)
		check(result)
	})
}

func TestLegitimateTrafficHardlyAlarms(t *testing.T) {
	known := Legitimate()
	for i, flows := range slices.Concat(known, Slow(), Applications()) {
		windows := legitimate
		if i >= len(known) {
			windows = ofAnother
		}
		run(t, flows, windows, func(r Result) {
			for _, rate := range []Rate{r.Combined, r.InTurn} {
				if _, high := rate.Interval(confidence); rate.Share() > mostAlarms || high > 2*mostAlarms {
					t.Errorf("%s: %v of the windows alarm, want at most %v", flows.Name, rate, mostAlarms)
				}
			}
			if r.Pages.Alarms > 0 {
				t.Errorf("%s: %d of %d flows page, want none", flows.Name, r.Pages.Alarms, r.Pages.Windows)
			}
		})
	}
}

// Applications with few delays may have symbols, but do not page.
func TestAmbiguousTrafficDoesNotPage(t *testing.T) {
	for _, flows := range Ambiguous() {
		run(t, flows, ofAnother, func(r Result) {
			if r.Pages.Alarms > 0 {
				t.Errorf("%s: %d of %d flows page, want none", flows.Name, r.Pages.Alarms, r.Pages.Windows)
			}
			if phase := r.ByTest[covert.Phase]; phase.Share() > mostAlarms {
				t.Errorf("%s: %v of the windows alarm by their phase, want at most %v", flows.Name, phase, mostAlarms)
			}
		})
	}
}

// JitterBug, with a window of 11 ms and more and 1 ms of jitter, is detected in covers with
// memory.
func TestJitterBugAlarms(t *testing.T) {
	for _, flows := range JitterBug(true) {
		run(t, flows.Flows, ofAnother, func(r Result) {
			if r.InTurn.Share() < 0.95 {
				t.Errorf("%s: %v of the windows alarm, want at least 0.95", flows.Name, r.InTurn)
			}
		})
	}
}

func TestChannelsAlarm(t *testing.T) {
	for _, group := range []struct {
		channels []Channel
		want     float64 // share of the windows that alarm, at least
	}{{Symbols(), 0.99}, {Disguised(), 0.9}} {
		for _, channel := range group.channels {
			run(t, channel.Flows, ofAChannel, func(r Result) {
				if r.Combined.Share() < group.want {
					t.Errorf("%s: %v of the windows alarm, want at least %v", channel.Name, r.Combined, group.want)
				}
				if by := r.ByTest[channel.By]; by.Share() < 0.9 {
					t.Errorf("%s: by %v %v of the windows alarm, want at least 0.9", channel.Name, channel.By, by)
				}
			})
		}
	}
}

// Bits of a text depend on each other, but less than what an application sends.
func TestPlainTextAlarms(t *testing.T) {
	for _, flows := range Plain() {
		run(t, flows, ofAnother, func(r Result) {
			if symbols := r.ByTest[covert.Symbols]; symbols.Share() < 0.99 {
				t.Errorf("%s: %v of the windows alarm by symbols, want at least 0.99", flows.Name, symbols)
			}
		})
	}
}

// Channels at the edge of what the tests see alarm at times.
func TestFaintChannels(t *testing.T) {
	bounds := []struct{ least, most float64 }{{0.4, 0.85}, {0.4, 0.85}, {0.3, 0.98}, {0, 0.1}}
	for i, flows := range Faint() {
		run(t, flows, ofAChannel, func(r Result) {
			if share := r.Combined.Share(); share < bounds[i].least || share > bounds[i].most {
				t.Errorf("%s: %v of the windows alarm, want %v to %v", flows.Name, r.Combined, bounds[i].least, bounds[i].most)
			}
		})
	}
}

// What the tests cannot see, as docs/statistics.md says.
func TestBlindness(t *testing.T) {
	for _, flows := range Unseen() {
		run(t, flows, ofAChannel, func(r Result) {
			if r.Combined.Share() > 0.1 {
				t.Errorf("%s: %v of the windows alarm: it is not as blind as it is said to be", flows.Name, r.Combined)
			}
		})
	}
}

func TestInterval(t *testing.T) {
	for _, test := range []struct {
		rate      Rate
		low, high float64
	}{
		// 1 − 0.025^(1/n), and the reverse.
		{Rate{0, 10}, 0, 1 - math.Pow(0.025, 0.1)},
		{Rate{10, 10}, math.Pow(0.025, 0.1), 1},
		// Clopper and Pearson's example of 1934, as R's binom.test gives it.
		{Rate{5, 10}, 0.1870860, 0.8129140},
	} {
		low, high := test.rate.Interval(0.95)
		if math.Abs(low-test.low) > 1e-6 || math.Abs(high-test.high) > 1e-6 {
			t.Errorf("%+v: got %v to %v, want %v to %v", test.rate, low, high, test.low, test.high)
		}
	}
}

// The same seed gives the same result, and another does not.
func TestRunIsReproducible(t *testing.T) {
	flows := Flows{Name: "weak", Cover: cover(0.1), Then: traffic.ModelBased(cover(0.1), covert.WindowLength)}
	first := flows.Run(100, 1)
	if second := flows.Run(100, 1); first != second {
		t.Errorf("got %v, then %v", first, second)
	}
	if other := flows.Run(100, 2); first == other {
		t.Error("another seed gives the same")
	}
}
