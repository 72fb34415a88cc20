// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package trial

import (
	"math"
	"testing"

	"gonum.org/v1/gonum/stat"

	"github.com/xdp-audit/xdp_audit_exporter/internal/fleet"
	"github.com/xdp-audit/xdp_audit_exporter/internal/testnumber"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

// The rules look at a fleet once a minute. While nothing changes, few months have a large z at any
// of 43,200 looks, and fewer have one for ten minutes. FLEET_MONTHS=3000 with -v prints the figures
// of docs/statistics.md.
func TestManyLooks(t *testing.T) {
	const (
		looks, devices = 30 * 1440, 3
		deltas         = 1000 // in a minute
		octaves        = 1.5 / math.Ln2
		mark           = 5.0
		lasting        = 11 // a look at each end of ten minutes
	)
	months := testnumber.Of(t, "FLEET_MONTHS", 30)
	pair := Pairs()[0]
	var once, lasts int
	for month := range months {
		r := traffic.Rand(uint64(month), "looks")
		all := make([][]fleet.Batch, devices)
		for i := range all {
			for range looks + pair.Now + pair.Before {
				// The mean of the logarithms of lognormal deltas is normal.
				all[i] = append(all[i], fleet.Batch{Deltas: deltas, Octaves: deltas*20 + octaves*math.Sqrt(deltas)*r.NormFloat64()})
			}
		}
		inRow, most := 0, 0
		z := make([]float64, devices)
		for look := range looks {
			middle := look + pair.Before
			for i, batches := range all {
				score, degrees, ok := fleet.Test(batches[middle:middle+pair.Now], batches[look:middle])
				if !ok {
					t.Fatal("a window has too few deltas")
				}
				z[i] = fleet.Normal(score, degrees)
			}
			if inRow++; math.Abs(fleet.Combine(z)) < mark {
				inRow = 0
			}
			most = max(most, inRow)
		}
		if most > 0 {
			once++
		}
		if most >= lasting {
			lasts++
		}
	}
	t.Logf("%d of %d months have |z| ≥ %v at a look, %d for ten minutes", once, months, mark, lasts)
	if once > months/10 || lasts > 0 {
		t.Errorf("%d of %d months have a large z at a look, %d for ten minutes", once, months, lasts)
	}
}

// Welch's t takes neighbours for independent, and the z of a device does not. FLEET_WINDOWS=20000
// with -v prints the figures of docs/statistics.md.
func TestNeighboursThatDependOnEachOther(t *testing.T) {
	const perMinute, mark = 600, 5.0
	windows, pair := testnumber.Of(t, "FLEET_WINDOWS", 200), Pairs()[0]
	next := traffic.AR1(1e6, 20e3, 0.9)(traffic.Rand(1, "neighbours"))
	var welch, large int
	for range windows {
		var means, variances, deltas [2]float64
		var batches [2][]fleet.Batch
		for i, minutes := range []int{pair.Before, pair.Now} {
			var all []float64
			for range minutes {
				b := fleet.Batch{Deltas: perMinute}
				for range perMinute {
					delta := next()
					all = append(all, delta)
					b.Octaves += math.Log2(delta)
				}
				batches[i] = append(batches[i], b)
			}
			means[i], variances[i] = stat.MeanVariance(all, nil)
			deltas[i] = float64(len(all))
		}
		if math.Abs(means[0]-means[1]) >= mark*math.Sqrt(variances[0]/deltas[0]+variances[1]/deltas[1]) {
			welch++
		}
		if score, degrees, ok := fleet.Test(batches[1], batches[0]); !ok || math.Abs(fleet.Normal(score, degrees)) >= mark {
			large++
		}
	}
	t.Logf("of %d windows %d have Welch's |t| ≥ %v, and %d have |z| ≥ %v", windows, welch, mark, large, mark)
	if large > 0 {
		t.Errorf("%d of %d windows have a large z", large, windows)
	}
	// Neighbours with a correlation of 0.9 multiply the variance of a mean by 19.
	if want := math.Erfc(mark / math.Sqrt(2*19)); math.Abs(float64(welch)/float64(windows)-want) > 0.1 {
		t.Errorf("%d of %d windows have a large t, want about %.2f of them: docs/statistics.md says so", welch, windows, want)
	}
}
