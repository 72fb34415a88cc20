// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package excess

import (
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/testnumber"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

// alerts follows the two shipped alerts: a burst, a score of burstScore; and a lasting excess, 15
// minutes of 1 or more.
type alerts struct {
	bursts, lasting int
	isBurst         bool
	minutes         int // of 1 or more
}

const (
	burstScore     = 6
	lastingMinutes = 15
)

func (a *alerts) add(score float64) {
	wasBurst := a.isBurst
	if a.isBurst = score >= burstScore; a.isBurst && !wasBurst {
		a.bursts++
	}
	if score < 1 {
		a.minutes = 0
	} else if a.minutes++; a.minutes == lastingMinutes+1 {
		a.lasting++
	}
}

// A device and month has at most 0.1 false alerts. EXCESS_MONTHS=100 with -v prints the table of
// docs/statistics.md.
func TestQuietMonths(t *testing.T) {
	months := testnumber.Of(t, "EXCESS_MONTHS", 10)
	for _, test := range traffic.QuietDevices() {
		t.Run(test.Name, func(t *testing.T) {
			t.Parallel()
			var a alerts
			for month := range months {
				r := traffic.Rand(uint64(month), test.Name)
				of := test.New()
				var d Device
				for i := range 30 * 1440 {
					d.AddMinute(of(r, i))
					a.add(d.Score())
				}
			}
			t.Logf("| %s | %d | %d of %d |", test.Name, a.bursts, a.lasting, months)
			if a.bursts+a.lasting > months/10 {
				t.Errorf("%d bursts and %d lasting excesses in %d months", a.bursts, a.lasting, months)
			}
		})
	}
}

// device returns a device that has seen days of a kind of minutes.
func device(r *rand.Rand, days int, of traffic.Minutes) *Device {
	d := &Device{}
	for i := range days * 1440 {
		d.AddMinute(of(r, i))
	}
	return d
}

// Leaks are flags in addition to the usual ones. A lasting excess is found within the median number
// of minutes of docs/statistics.md, and ends within an hour after the leak.
func TestLeaksAreFound(t *testing.T) {
	for _, test := range []struct {
		name                 string
		judged, usual, leak  float64
		days, median, within int
	}{
		{"1e-4 on 7e-5 at 1,000 packets a second", 60000, 7e-5, 1e-4, 3, 8, 20},
		{"1e-4 on 7e-5 at 100 packets a second", 6000, 7e-5, 1e-4, 3, 90, 240},
		{"1e-2 on 8e-3 at 1,000 packets a second", 60000, 8e-3, 1e-2, 3, 5, 5},
		{"5e-2 on 2.7e-2 at 1,000 packets a second", 60000, 2.7e-2, 5e-2, 3, 5, 5},
		{"1e-2 on 8e-3 at 1,000 packets a second, after 6 hours", 60000, 8e-3, 1e-2, 0, 5, 6},
	} {
		t.Run(test.name, func(t *testing.T) {
			usual, leaking := traffic.PoissonMinutes(test.judged, test.usual), traffic.PoissonMinutes(test.judged, test.usual+test.leak)
			var times, ends []int
			for run := range 25 {
				r := traffic.Rand(uint64(run), test.name)
				d := device(r, test.days, usual)
				for i := range MinMinutes {
					d.AddMinute(usual(r, i))
				}
				minutes := 0
				for ; d.sum < limit && minutes < 1000; minutes++ {
					d.AddMinute(leaking(r, minutes))
				}
				times = append(times, minutes)
				for i := range 120 {
					d.AddMinute(leaking(r, i))
				}
				end := 0
				for ; d.Score() >= 1 && end < 1000; end++ {
					d.AddMinute(usual(r, end))
				}
				ends = append(ends, end)
			}
			slices.Sort(times)
			slices.Sort(ends)
			t.Logf("found after %v minutes, ended after %v", times, ends)
			if times[len(times)/2] > test.median || times[len(times)-1] > test.within {
				t.Errorf("found after %v minutes", times)
			}
			if ends[len(ends)-1] > 60 {
				t.Errorf("ended after %v minutes", ends)
			}
		})
	}
}

// A leak that stays becomes usual: the score is 1 or more for the days of docs/statistics.md.
func TestALeakBecomesUsual(t *testing.T) {
	const least, most = 0.8, 2.5 // days
	for _, test := range []struct {
		name                string
		judged, usual, leak float64
		past                int // days
	}{
		{"1e-4 on 7e-5 at 1,000 packets a second", 60000, 7e-5, 1e-4, 3},
		{"1e-4 on 7e-5 at 1,000 packets a second, after two weeks", 60000, 7e-5, 1e-4, 14},
		{"1e-2 on 8e-3 at 1,000 packets a second", 60000, 8e-3, 1e-2, 3},
		{"5e-2 on 2.7e-2 at 1,000 packets a second", 60000, 2.7e-2, 5e-2, 3},
		{"5e-2 on 2.7e-2 at 1,000 packets a second, after two weeks", 60000, 2.7e-2, 5e-2, 14},
	} {
		t.Run(test.name, func(t *testing.T) {
			usual, leaking := traffic.PoissonMinutes(test.judged, test.usual), traffic.PoissonMinutes(test.judged, test.usual+test.leak)
			var ends []float64
			for run := range 10 {
				r := traffic.Rand(uint64(run), test.name)
				d := device(r, test.past, usual)
				last := 0
				for i := range 20 * 1440 {
					d.AddMinute(leaking(r, i))
					if d.Score() >= 1 {
						last = i
					}
				}
				ends = append(ends, float64(last)/1440)
			}
			slices.Sort(ends)
			t.Logf("usual after %.2f days", ends)
			if ends[0] < least || ends[len(ends)-1] > most {
				t.Errorf("usual after %.2f days, want %v to %v", ends, least, most)
			}
		})
	}
}

// A burst is a burst in its minute and for five minutes, no lasting excess, and leaves the device
// able to find the next one.
func TestBurst(t *testing.T) {
	r := traffic.Rand(1, "burst")
	usual := traffic.PoissonMinutes(60000, 7e-5)
	d := device(r, 1, usual)
	for range 2 {
		var a alerts
		d.AddMinute(60000, 50000)
		a.add(d.Score())
		if a.bursts != 1 {
			t.Fatalf("the score is %v", d.Score())
		}
		for i := range 120 {
			d.AddMinute(usual(r, i))
			a.add(d.Score())
			if i >= 4 && d.Score() >= 1 {
				t.Errorf("minute %d after the burst: the score is %v", i, d.Score())
			}
		}
		if a.bursts != 1 || a.lasting != 0 {
			t.Errorf("%d bursts, %d lasting excesses", a.bursts, a.lasting)
		}
	}
}

// A device that continues a past, also one that was written and read, judges as if its process had
// not ended. It has lost the sum, and the blocks that were not complete.
func TestPastIsContinued(t *testing.T) {
	r := traffic.Rand(1, "past")
	usual, leaking := traffic.PoissonMinutes(60000, 8e-3), traffic.PoissonMinutes(60000, 1.8e-2)
	before := device(r, 3, usual)
	before.AddMinute(60000, 50000)
	text, err := json.Marshal(before.Past())
	if err != nil {
		t.Fatal(err)
	}
	var p Past
	if err := json.Unmarshal(text, &p); err != nil {
		t.Fatal(err)
	}
	if err := p.Validate(); err != nil || !reflect.DeepEqual(p, before.Past()) {
		t.Fatalf("read back: %v: %+v, want %+v", err, p, before.Past())
	}
	after := Continue(p)
	if after.Score() != 0 {
		t.Errorf("the score is %v at the start", after.Score())
	}
	if got, want := after.dispersionAt(480), before.dispersionAt(480); got != want {
		t.Errorf("the dispersion is %v, and was %v", got, want)
	}
	minutes := 0
	for ; after.sum < limit && minutes < 100; minutes++ {
		after.AddMinute(leaking(r, minutes))
	}
	if minutes > 10 {
		t.Errorf("a leak was found after %d minutes", minutes)
	}
	var none Device
	if err := none.Past().Validate(); err != nil {
		t.Errorf("no past: %v", err)
	}
}

func TestImpossiblePastsAreRefused(t *testing.T) {
	for _, test := range []struct {
		description, want string
		change            func(p *Past)
	}{
		{"no dispersion", "dispersion of 0 lengths, not 4", func(p *Past) { p.Dispersion = nil }},
		{"a negative number of minutes", "in -1 minutes", func(p *Past) { p.Minutes = -1 }},
		{"packets in no minute", "in 0 minutes", func(p *Past) { p.Minutes = 0 }},
		{"minutes without packets", "0 scored packets", func(p *Past) { p.Judged, p.Flags = 0, 0 }},
		{"more flags than packets", "flags of", func(p *Past) { p.Flags = 2 * p.Judged }},
		{"negative flags", "-1 flags", func(p *Past) { p.Flags = -1 }},
		{"absurdly many packets", "1e+61 scored packets", func(p *Past) { p.Judged = 1e61 }},
		{"negative squares", "impossible dispersion of -1", func(p *Past) { p.Dispersion[2].Squares = -1 }},
		{"absurd squares", "impossible dispersion of 1e+61", func(p *Past) { p.Dispersion[2].Squares = 1e61 }},
		{"flags without squares", "without blocks or usual flags", func(p *Past) { p.Dispersion[0].UsualSquares = 0 }},
		{"flags without blocks", "without blocks or usual flags", func(p *Past) { p.Dispersion[3].Blocks = 0 }},
	} {
		t.Run(test.description, func(t *testing.T) {
			p := device(traffic.Rand(1, "past"), 1, traffic.PoissonMinutes(60000, 8e-3)).Past()
			test.change(&p)
			if err := p.Validate(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// Without a past, without packets and without flags nothing is an excess.
func TestNoPast(t *testing.T) {
	var d Device
	for range MinMinutes {
		d.AddMinute(0, 0)
	}
	for range MinMinutes - 1 {
		d.AddMinute(1000, 0)
	}
	d.AddMinute(1000, 1000)
	if d.Score() != 0 {
		t.Errorf("the score is %v in the first %d minutes with packets", d.Score(), MinMinutes)
	}
	d = Device{}
	for range MinMinutes {
		d.AddMinute(1000, 0)
	}
	d.AddMinute(1000, 1)
	if got := d.Score(); got <= 0 || got >= 1 {
		t.Errorf("the score of one flag after none is %v", got)
	}
}

// A past without flags does not say that there are none. One flag in as many packets adds nothing,
// and three do.
func TestPastWithoutFlags(t *testing.T) {
	const packets = 1000
	for _, test := range []struct {
		flags    uint64
		isExcess bool
	}{{1, false}, {3, true}} {
		var d Device
		for range MinMinutes {
			d.AddMinute(packets, 0)
		}
		d.AddMinute(MinMinutes*packets, test.flags)
		if score := d.Score(); (score > 0) != test.isExcess {
			t.Errorf("%d flags: score %v", test.flags, score)
		}
	}
}
