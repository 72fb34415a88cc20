// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package trial simulates fleets of devices, and counts how often their z is large.
package trial

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/xdp-audit/xdp_audit_exporter/internal/fleet"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

// Mark is the |z| that counts as a change.
const Mark = 4.5

// Family is a kind of traffic.
type Family struct {
	Name string
	Kind traffic.Kind
	// HasMemory says that the logarithms of neighbours depend on each other so much that a change
	// is harder to find.
	HasMemory bool
}

// Families returns the kinds of traffic of the trials. The deltas of a device are those of the
// kind times a factor from 1 to 100.
func Families() []Family {
	return []Family{
		{"lognormal, σ = 1.5", traffic.Lognormal(20e3, 1.5), false},
		{"exponential", traffic.Exponential(50e3), false},
		{"AR(1), ρ = 0.9", traffic.AR1(50e3, 1e3, 0.9), false},
		{"correlated logarithms, ρ = 0.9", traffic.LogAR1(20e3, 1.5, 0.9), true},
	}
}

// Windows is a pair of windows that are compared, in batches of a minute.
type Windows struct {
	Name        string
	Now, Before int
}

// Pairs returns the pairs of windows of the recording rules.
func Pairs() []Windows {
	return []Windows{{"5 minutes, hour", 5, 60}, {"hour, day", 60, 1440}}
}

// device sends the deltas of a kind, and remembers the batches of the window of the past.
type device struct {
	next    traffic.Source
	factor  float64
	now     []fleet.Batch
	changed []fleet.Batch // the batches of now if each delta were longer
	past    []fleet.Batch
}

// Trial is a fleet of devices whose traffic does not change.
type Trial struct {
	windows Windows
	deltas  int // in a batch
	devices []*device
	cuts    *[timing.LinearCells]uint32
	octaves *[timing.Cells]float64
	longest float64
}

// New starts a fleet whose devices have that many deltas in the shorter window.
func New(f Family, w Windows, devices, deltas int, seed uint64) *Trial {
	t := &Trial{windows: w, deltas: deltas / w.Now, cuts: timing.Cuts(), octaves: timing.CellOctaves(), longest: 2e9}
	for i := range devices {
		r := rand.New(rand.NewPCG(seed, traffic.Rand(seed, fmt.Sprint(f.Name, w.Name, i)).Uint64())) //nolint:gosec // reproducible on purpose
		d := &device{next: f.Kind(r), factor: math.Pow(10, float64(i%3))}
		t.devices = append(t.devices, d)
		for range w.Before {
			b, _ := t.batch(d, 1)
			d.past = append(d.past, b)
		}
	}
	return t
}

// batch sends the deltas of a minute. changed has each of them times change.
func (t *Trial) batch(d *device, change float64) (usual, changed fleet.Batch) {
	usual.Deltas, changed.Deltas = float64(t.deltas), float64(t.deltas)
	for range t.deltas {
		delta := d.factor * d.next()
		usual.Octaves += t.octavesOf(delta)
		if change != 1 {
			changed.Octaves += t.octavesOf(delta * change)
		}
	}
	return usual, changed
}

func (t *Trial) octavesOf(delta float64) float64 {
	return t.octaves[timing.Cell(uint64(math.Round(min(delta, t.longest))), t.cuts)]
}

// Next sends another window, and returns the z of each device. The deltas of the first device
// are multiplied by change, for the test only: the next window is compared with what was usual.
func (t *Trial) Next(change float64) (z []float64) {
	for i, d := range t.devices {
		d.now, d.changed = d.now[:0], d.changed[:0]
		for range t.windows.Now {
			of := 1.0
			if i == 0 {
				of = change
			}
			usual, changed := t.batch(d, of)
			d.now, d.changed = append(d.now, usual), append(d.changed, changed)
		}
		tested := d.now
		if i == 0 && change != 1 {
			tested = d.changed
		}
		if score, degrees, ok := fleet.Test(tested, d.past); ok {
			z = append(z, fleet.Normal(score, degrees))
		}
		d.past = append(d.past[len(d.now):], d.now...)
	}
	return z
}

// Count returns how many of the fleets of that size that can be formed of z have a large z, and
// their number.
func Count(z []float64, size int) (large, fleets uint64) {
	for ; len(z) >= size; z = z[size:] {
		fleets++
		if math.Abs(fleet.Combine(z[:size])) >= Mark {
			large++
		}
	}
	return large, fleets
}
