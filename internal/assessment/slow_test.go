// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package assessment

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

// A class whose responses take seconds is a leak, and its labels are fair: requests that arrived
// later do not overtake those that are outstanding.
func TestSlowClass(t *testing.T) {
	const second = 1_000_000_000
	for _, slowNs := range []uint64{second / 2, 3 * second / 2, 4 * second, 9 * second} {
		for _, connections := range []int{1, 8, 50} {
			r := rand.New(rand.NewPCG(slowNs, uint64(connections)))
			s := New(nil)
			reload(t, s, configuration(t, leak.Random, "a"), 0)
			nowNs := uint64(100 * second)
			outstanding := make([]bpf.Exchange, connections)
			begin := func(i int, position uint32) {
				class := r.IntN(2)
				responseNs := uint64(1e6*(1+r.ExpFloat64())) + uint64(class)*slowNs
				outstanding[i] = bpf.Exchange{
					Assessment: "a", Class: class, TimeNs: nowNs + 1e5 + responseNs, ResponseNs: responseNs,
					Connection: uint64(i), Position: position, HasStart: true,
				}
			}
			oldest := func(sinceNs uint64) uint64 {
				oldestNs := uint64(math.MaxUint64)
				for i := range outstanding {
					if arrivalNs := outstanding[i].TimeNs - outstanding[i].ResponseNs; arrivalNs >= sinceNs {
						oldestNs = min(oldestNs, arrivalNs)
					}
				}
				return oldestNs
			}
			for i := range outstanding {
				begin(i, 0)
			}
			lookNs := nowNs
			for range 3000 {
				next := slices.MinFunc(outstanding, func(a, b bpf.Exchange) int { return cmp.Compare(a.TimeNs, b.TimeNs) })
				for ; lookNs < next.TimeNs; lookNs += second / 2 {
					_ = s.Advance(lookNs - second)
					s.Await(oldest, at(lookNs))
				}
				nowNs = next.TimeNs
				_ = s.Add([]bpf.Exchange{next})
				begin(int(next.Connection), next.Position+1)
			}
			_ = s.Advance(nowNs + 11*second)
			if c := s.Counts(); c != (Counts{}) {
				t.Errorf("%d ns slower, %d connections: %+v, want none held or too late", slowNs, connections, c)
			}
			if report := s.Snapshot()[0].Report; report.Verdict != leak.Leak {
				t.Errorf("%d ns slower, %d connections: %v: %s", slowNs, connections, report.Verdict, report.Sentence)
			}
		}
	}
}

// A request that is never answered delays others for ten seconds, and not for longer.
func TestNeverAnswered(t *testing.T) {
	const second = 1_000_000_000
	s := New(nil)
	reload(t, s, configuration(t, leak.Random, "a"), 0)
	first := uint64(100 * second)
	s.Await(func(uint64) uint64 {
		t.Error("the table was looked at although no request waits")
		return 0
	}, at(first))
	for nowNs := first; nowNs < first+30*second; nowNs += second / 4 {
		_ = s.Add([]bpf.Exchange{{Assessment: "a", TimeNs: nowNs + 1000, ResponseNs: 1000}})
		s.Await(func(sinceNs uint64) uint64 {
			if first >= sinceNs {
				return first
			}
			return math.MaxUint64
		}, at(nowNs+2000))
		held := s.Snapshot()[0].Held
		if age := nowNs - first; age < 9*second && held != age/(second/4)+1 {
			t.Fatalf("%d held after %d ns", held, age)
		} else if age > 12*second && held > 10 {
			t.Fatalf("%d held after %d ns", held, age)
		}
	}
}
