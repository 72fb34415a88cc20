// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leak

import (
	"math/rand/v2"
	"testing"
)

// BenchmarkResponse measures a response of each order, with no difference between the classes.
func BenchmarkResponse(b *testing.B) {
	for _, order := range []Order{Random, Blocks} {
		b.Run(order.String(), func(b *testing.B) {
			j := newTestJudge(b, order)
			r := rand.New(rand.NewPCG(1, 2))
			times := make([]uint64, 1<<16)
			flips := make([]Class, 1<<16)
			for i := range times {
				times[i] = uint64(200_000 + 10_000*r.NormFloat64())
				flips[i] = Class(r.IntN(2))
			}
			numbers := [64]uint32{}
			first := [64]Class{}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				k := i % len(times)
				connection := (i / 2) % 64
				class := flips[k]
				if order == Blocks {
					if numbers[connection]%2 == 0 {
						first[connection] = class
					} else {
						class = 1 - first[connection]
					}
				}
				j.Response(Request{Class: class, TimeNs: uint64(i), Connection: uint64(connection), Number: numbers[connection]}, times[k])
				numbers[connection]++
				i++
			}
		})
	}
}

// BenchmarkReport measures a report after 100,000 responses.
func BenchmarkReport(b *testing.B) {
	j := newTestJudge(b, Random)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 100_000 {
		j.Response(Request{Class: Class(r.IntN(2)), TimeNs: uint64(i)}, uint64(200_000+10_000*r.NormFloat64()))
	}
	for b.Loop() {
		j.Report()
	}
}

func newTestJudge(t testing.TB, order Order) *Judge {
	t.Helper()
	j, err := New(Config{Order: order, Classes: [2]string{"fixed", "random"}, TargetNs: 1000, Alpha: 1e-5, TickNs: 1})
	if err != nil {
		t.Fatal(err)
	}
	return j
}
