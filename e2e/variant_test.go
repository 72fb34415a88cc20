// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// Deltas vary by factors, and times are injected. The exporter flags exactly the deltas that the
// model flags. The linear domain flags dozens of times as many as the log2 domain; both flag the
// planted ones.
func TestFlagOfTheDomain(t *testing.T) {
	const (
		packets = 100_000
		sigma   = 0.3 // of ln Δ
		delay   = 8 * sigma
	)
	isPlanted := func(i int) bool { return i > 1000 && i%100 == 0 }
	random := rand.New(rand.NewPCG(3, 4))
	times, deltas := make([]uint64, packets), make([]uint64, packets)
	times[0] = 1e12
	for i := 1; i < packets; i++ {
		deviation := sigma * random.NormFloat64()
		if isPlanted(i) {
			deviation += delay
		}
		deltas[i] = uint64(math.Round(1e6 * math.Exp(deviation)))
		times[i] = times[i-1] + deltas[i]
	}
	for _, domain := range []timing.Domain{timing.Linear, timing.Log2} {
		t.Run(string(domain), func(t *testing.T) {
			params := timing.Params{Threshold: 4, MinSamples: 100, Window: 8192, Domain: domain, Clip: 1.8}
			var baseline timing.State
			var want []uint64 // flagged deltas
			planted, found := 0, 0
			for i, delta := range deltas[1:] {
				isFlagged := params.Observe(&baseline, delta) > timing.Judged
				if isFlagged {
					want = append(want, delta)
				}
				if isPlanted(i + 1) {
					planted++
					if isFlagged {
						found++
					}
				}
			}

			l := newLab(t)
			path := filepath.Join(t.TempDir(), "trail")
			e := l.startExporter("--audit.device="+device, "--audit.clock=metadata", "--audit.event-rate=1000000",
				"--audit.calibrate=0", "--audit.domain="+string(domain), "--trail.file="+path)
			if err := newGenerator(t, l.sender, generatorOptions{times: times}).send(generatedFrame(), packets); err != nil {
				t.Fatal(err)
			}
			s := e.atRest()
			if got := s.sum("leak_flags_total"); got != float64(len(want)) {
				t.Fatalf("%v packets flagged, want %d", got, len(want))
			}
			if got := s.series("baseline_samples"); len(got) != 0 {
				t.Errorf("flows have baselines, and so has the device: %v", got)
			}
			records := readTrail(t, path)
			if len(records) != len(want) {
				t.Fatalf("%d records, want %d", len(records), len(want))
			}
			for i, r := range records {
				if got := r.number(t, "delta_ns"); got != float64(want[i]) {
					t.Fatalf("record %d is of %v ns, want %d: %v", i, got, want[i], r)
				}
				r.checkScore(t, domain)
			}
			detected, falseRate := float64(found)/float64(planted), float64(len(want)-found)/float64(packets-planted)
			t.Logf("%.4f of %d planted delays flagged, %.2g of the rest", detected, planted, falseRate)
			switch {
			case detected < 0.99:
				t.Errorf("%.4f of the planted delays were flagged, want at least 0.99", detected)
			case domain == timing.Log2 && falseRate > 2e-4:
				t.Errorf("%.2g of the other packets were flagged, want at most 2e-4", falseRate)
			}
			e.expectStopped()
		})
	}
}

// checkScore compares the t-score of a record with the one that follows from its other fields.
func (r record) checkScore(t *testing.T, domain timing.Domain) {
	t.Helper()
	deviation, spread, other := r.number(t, "delta_ns")-r.number(t, "mean_ns"), "stddev_ns", "stddev_octaves"
	if domain == timing.Log2 {
		deviation, spread, other = math.Log2(r.number(t, "delta_ns")/r.number(t, "mean_ns")), other, spread
	}
	if _, isThere := r[other]; isThere {
		t.Fatalf("a record has %s: %v", other, r)
	}
	want := deviation / (r.number(t, spread) * math.Sqrt(1+1/r.number(t, "n")))
	if got := r.number(t, "tscore"); math.Abs(got-want) > 0.001+1e-4*math.Abs(want) {
		t.Fatalf("a record has the t-score %v, and its fields give %v: %v", got, want, r)
	}
}

// Flows are too short for a baseline of their own, and times are injected. With a baseline of
// the device the exporter flags exactly the packets that the model flags, and exports the
// baseline of the model. All packets arrive on one CPU.
func TestFlagOfTheBaseline(t *testing.T) {
	const (
		flows     = 1024
		rounds    = 40 // packets of each
		deviation = 20e3
		late      = 30 // the round in which every flow is late
	)
	random := rand.New(rand.NewPCG(5, 6))
	times := make([]uint64, rounds)
	times[0] = 1e12
	for i := 1; i < rounds; i++ {
		delta := 1e6 + deviation*random.NormFloat64()
		if i == late {
			delta += 10 * deviation
		}
		times[i] = times[i-1] + uint64(math.Round(delta))
	}
	for _, test := range []struct {
		scope  string
		domain timing.Domain
	}{{"flow", timing.Linear}, {"device", timing.Linear}, {"device", timing.Log2}} {
		t.Run(test.scope+", "+string(test.domain), func(t *testing.T) {
			params := timing.Params{Threshold: 4, MinSamples: 100, Window: 8192, Domain: test.domain, Clip: 1.8}
			var baseline timing.State
			var run timing.Run
			decisions := map[timing.Decision]float64{}
			for i := 1; i < rounds; i++ {
				for range flows {
					delta := times[i] - times[i-1]
					decision := params.Observe(&baseline, delta)
					decisions[decision]++
					params.DeviceRestarts(&run, &baseline, decision, delta, times[i])
				}
			}
			if decisions[timing.Late] < 10 {
				t.Fatalf("the model flags %v packets late: too few to tell", decisions[timing.Late])
			}
			if test.scope == "flow" {
				decisions = map[timing.Decision]float64{timing.TooFewSamples: (rounds - 1) * flows}
			}

			l := newLab(t)
			e := l.startExporter("--audit.device="+device, "--audit.clock=metadata", "--audit.domain="+string(test.domain),
				"--audit.baseline="+test.scope)
			g := newGenerator(t, l.sender, generatorOptions{flows: flows, times: times})
			if err := g.send(generatedFrame(), flows*rounds); err != nil {
				t.Fatal(err)
			}
			s := e.atRest()
			for outcome, want := range map[string]float64{
				"new_flow": flows, "min_samples": decisions[timing.TooFewSamples], "judged": decisions[timing.Judged],
				"flagged_early": decisions[timing.Early], "flagged_late": decisions[timing.Late],
			} {
				if got := s.sum("outcomes_total", "outcome="+outcome); got != want {
					t.Errorf("%v packets with the outcome %s, want %v", got, outcome, want)
				}
			}
			spread := math.Sqrt(timing.Params{Domain: test.domain}.Variance(params.Corrected(baseline)))
			want := map[string]float64{
				"baseline_samples": float64(baseline.N), "baseline_mean_seconds": test.domain.MeanNs(baseline) / 1e9,
				"baseline_stddev_seconds": spread / 1e9,
			}
			switch {
			case test.scope == "flow":
				want = nil
			case test.domain == timing.Log2:
				delete(want, "baseline_stddev_seconds")
				want["baseline_stddev_octaves"] = spread
			}
			for _, name := range []string{"baseline_samples", "baseline_mean_seconds", "baseline_stddev_seconds", "baseline_stddev_octaves"} {
				value, isWanted := want[name]
				if got := s.series(name, "device="+device); (len(got) == 1) != isWanted {
					t.Errorf("%s has %d series, wanted: %v", name, len(got), isWanted)
				}
				if got := s.sum(name); got != value {
					t.Errorf("%s is %v, want %v", name, got, value)
				}
			}
			e.expectStopped()
		})
	}
}
